"""The parser of one command: options and config files into a config, errors in a line or two."""

from __future__ import annotations

import inspect
import os
import sys
from argparse import ArgumentError
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_freeze.cli.parsing.class_defaults import described
from lightning_freeze.cli.parsing.config_files import MODE, problems
from lightning_freeze.cli.parsing.parser_messages import shortened
from lightning_freeze.data import TextDataModule
from lightning_freeze.errors import debugging

# What Lightning calls `skip_none`, jsonargparse calls `skip_unset` since 4.49.
_RENAMED = {"skip_none": "skip_unset"}


class FreezeArgumentParser(LightningArgumentParser):
    """A parser whose errors are a line or two, and whose configs can be used again once they are saved.

    Args:
        *args: As for LightningArgumentParser.
        **kwargs: As for LightningArgumentParser.
    """

    #: Where the values come from that are being parsed, if not from the command line.
    source = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("parser_mode", MODE)
        kwargs.setdefault("allow_abbrev", False)  # the values of options are looked at by their whole names
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with a message and exit code 2.

        Args:
            message: What is wrong.
            ex: The exception that told so.
        """
        if debugging():
            raise ArgumentError(None, message) from ex
        if not self.exit_on_error:
            super().error(message, ex)
        where = f"{self.source}: " if self.source else ""
        options = getattr(ex, "subcommand_parser", self)._option_names()
        unread = next((problem for text, problem in problems.items() if len(text) > 2 and text in message), None)
        if unread is not None:
            message = f"{message.partition(':')[0].removeprefix('Parser key ')}: {unread}".replace('"', "")
        sys.stderr.write(f"error: {where}{shortened(message, options)}\n")
        self.exit(2)

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Read a config file. Messages about it name it.

        Args:
            path: The file.
            *args: As for LightningArgumentParser.
            **kwargs: As for LightningArgumentParser.
        """
        before, FreezeArgumentParser.source = FreezeArgumentParser.source, f"--config {os.fspath(path)}"
        try:
            config: Namespace = super().parse_path(path, *args, **kwargs)
            return config
        finally:
            FreezeArgumentParser.source = before

    def dump(self, config: Namespace, **kwargs: Any) -> str:
        """Return a config as YAML, in which default objects are given by class and arguments.

        Args:
            config: The config.
            **kwargs: As for LightningArgumentParser.
        """
        text: str = super().dump(described(config), **_as_yaml(kwargs))
        return text

    def save(self, config: Namespace, *args: Any, **kwargs: Any) -> None:
        """Write a config to a file, as :meth:`dump` returns it.

        Args:
            config: The config.
            *args: As for LightningArgumentParser.
            **kwargs: As for LightningArgumentParser.
        """
        super().save(described(config), *args, **_as_yaml(kwargs))

    def _option_names(self) -> list[str]:
        data = list(inspect.signature(TextDataModule.__init__).parameters)[1:]
        given = [option.lstrip("-") for action in self._actions for option in action.option_strings]
        return [*given, *(f"data.{name}" for name in data)]


def _as_yaml(options: dict[str, Any]) -> dict[str, Any]:
    renamed = {_RENAMED.get(name, name): value for name, value in options.items()}
    return {**renamed, "format": "yaml"} if renamed.get("format", "parser_mode") == "parser_mode" else renamed
