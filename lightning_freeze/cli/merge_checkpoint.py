"""The command ``lightning-freeze merge-checkpoint``: a whole checkpoint from one that leaves frozen weights out."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_freeze.checkpoints.merging import merged, omitted_weights
from lightning_freeze.checkpoints.weight_files import check_output, read_weights, write_checkpoint
from lightning_freeze.cli.parsing.own_options import CommandParser
from lightning_freeze.cli.runs.checkpoint_file import read_checkpoint
from lightning_freeze.cli.runs.run_module import build_module
from lightning_freeze.errors import ConfigurationError

_DESCRIPTION = (
    "Write a whole checkpoint from one that was saved with save_frozen=False. The weights that it leaves out are taken "
    "from the module of the run, which is built again, or from files, and compared with their fingerprints."
)


def main(args: Sequence[str]) -> None:
    """Run the command.

    Args:
        args: ``CHECKPOINT OUTPUT`` and its options.

    Raises:
        ConfigurationError: If a file cannot be read or written, or the weights are not those that were left out.
    """
    options = _parser().parse_args(args)
    if options.weights and (options.config or options.module):
        raise ConfigurationError("--weights and a module to build: expected one of the two as the source of weights.")
    output = Path(options.output)
    check_output(output, options.overwrite)
    checkpoint = read_checkpoint(options.checkpoint)
    omitted = omitted_weights(checkpoint)
    if not omitted:
        raise ConfigurationError(
            f"{options.checkpoint!r} leaves nothing out: expected one saved with save_frozen=False."
        )
    weights, source = _weights(options, checkpoint)
    write_checkpoint(merged(checkpoint, weights, source), output, options.overwrite)
    print(f"merged {len(omitted)} weights from {source}: {output}")


def _weights(options: argparse.Namespace, checkpoint: dict[str, Any]) -> tuple[Iterable[tuple[str, Tensor]], str]:
    if options.weights:
        paths = [Path(path) for path in options.weights]
        return chain.from_iterable(map(read_weights, paths)), ", ".join(map(str, paths))
    module = build_module(checkpoint, options.config, options.module)
    return _state(module.state_dict()), f"the {type(module).__name__} that was built"


def _state(state: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in state.items() if isinstance(value, Tensor))


def _parser() -> CommandParser:
    parser = CommandParser("lightning-freeze merge-checkpoint", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the checkpoint that leaves weights out")
    parser.add_argument("output", metavar="OUTPUT", help="the file to write")
    parser.add_argument(
        *("--weights",), metavar="PATH", action="append",
        help="base weights: a .safetensors file, a state dict, a checkpoint, or a model's folder; may be repeated",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="config of the run, whose model section is built")
    parser.add_argument(
        *("--module",), metavar="CLASS",
        help="import path of the LightningModule, built from the checkpoint's hyperparameters; by default "
        "TransformerModule",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    return parser
