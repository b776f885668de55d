"""Options that a command has of its own, beside those of ``fit`` or without them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from lightning_freeze.errors import ConfigurationError, suggest

_OPTIONS_OF_FIT = frozenset(
    {
        *("config", "print_config", "help", "seed_everything", "ckpt_path", "weights_only"),
        *("model", "data", "trainer", "optimizer", "lr_scheduler", "report"),
    }
)


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are those of the command line: one message, and the same exit code."""

    def error(self, message: str) -> NoReturn:
        """Refuse the options.

        Args:
            message: What is wrong.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(f"{self.prog}: {message}.")


def check_names(args: Sequence[str], options: Sequence[str]) -> None:
    """Find a misspelt option of a command that takes those of ``fit`` too, whose parser would take it for its own.

    Args:
        args: What the command's own parser has left over.
        options: The names of its options.

    Raises:
        ConfigurationError: If an option is none of ``fit``, and almost one of the command.
    """
    names = [arg[2:].partition("=")[0] for arg in args if arg.startswith("--")]
    for name in names:
        nearest = suggest(name, options) if "." not in name and name not in _OPTIONS_OF_FIT else ""
        if nearest:
            raise ConfigurationError(f"There is no option --{name}.{nearest}")
