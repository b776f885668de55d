"""The command ``lightning-freeze compare``: plans x seeds on the same data, and which plan wins."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_freeze.cli.parsing.own_options import CommandParser
from lightning_freeze.comparison import compare
from lightning_freeze.comparison.comparing import ENGINES
from lightning_freeze.errors import ConfigurationError, suggest

_DESCRIPTION = (
    "Fit several plans with several seeds on the same data, and test which is better. Goes on where it was when it is "
    "called again. Writes comparison.html, comparison.csv, comparison.json and fits.csv. "
    "The exit code is 1 if a fit has failed."
)
_OPTIONS = ("--config", "--directory", "--workers", "--engine", "--address", "--help")


def main(args: Sequence[str]) -> None:
    """Run the command.

    Args:
        args: ``--config FILE [--directory DIR] [--workers N] [--engine local|ray] [--address ADDRESS]``.

    Raises:
        ConfigurationError: If an option or the comparison file is wrong.
        SystemExit: With code 1 if a fit has failed.
    """
    options, rest = _parser().parse_known_args(args)
    if rest:
        name = rest[0].partition("=")[0]
        what = "There is no option" if name.startswith("-") else "There is no place for"
        raise ConfigurationError(f"{what} {name}.{suggest(name, _OPTIONS)}")
    if len(options.config) > 1:  # unlike `fit`, which puts several together
        raise ConfigurationError(f"--config is given {len(options.config)} times: expected one comparison file.")
    try:
        comparison = compare(
            options.config[0],
            directory=options.directory,
            workers=options.workers,
            engine=options.engine,
            address=options.address,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("The same command goes on where it was; fits that were running start again.") from None
    print(comparison)
    if any(fit.result is None for fit in comparison.fits):
        raise SystemExit(1)


def _parser() -> CommandParser:
    parser = CommandParser("lightning-freeze compare", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", required=True, action="append", help="the comparison file")
    parser.add_argument("--directory", metavar="DIR", help="where all results go, instead of what the file says")
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="how many fits run at a time (default: 1)")
    parser.add_argument(
        "--engine", default="local", help=f"where fits run: {' or '.join(ENGINES)} (default: local); ray needs ray"
    )
    parser.add_argument("--address", help="the address of a running Ray cluster")
    return parser
