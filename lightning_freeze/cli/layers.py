"""The command ``lightning-freeze layers``: the layers of a model as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from lightning_freeze.cli.parsing.own_options import CommandParser
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.table import layers_table
from lightning_freeze.module.pretrained.structure import load_structure


def main(args: Sequence[str]) -> None:
    """Run the command.

    Args:
        args: ``MODEL_NAME_OR_PATH``.

    Raises:
        ConfigurationError: If there is no such model.
    """
    parser = CommandParser("lightning-freeze layers", description="Print a model's layers as a table.")
    parser.add_argument("model", metavar="MODEL_NAME_OR_PATH", help="a local folder or hub name")
    Console().print(layers_table(LayerStack(load_structure(parser.parse_args(args).model))))
