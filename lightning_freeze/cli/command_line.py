"""The command ``lightning-freeze``: which command is meant, and how it ends."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from lightning_freeze.cli.parsing.given_options import forget_options, given_options
from lightning_freeze.cli.parsing.user_errors import message_for
from lightning_freeze.cli.runs.divergence import DivergedError
from lightning_freeze.cli.trainer_commands import DEFAULT_EPOCHS, FreezeCLI
from lightning_freeze.errors import ConfigurationError, debugging, listing, suggest

COMMANDS = ("fit", "validate", "test", "predict", "plan", "advise", "compare", "layers", "cache", "merge-checkpoint")

__all__ = ["COMMANDS", "DEFAULT_EPOCHS", "FreezeCLI", "main"]


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    A wrong set-up ends with one message and exit code 2, a run that has diverged with one message and exit code 1, a
    command that was interrupted with one message and exit code 130, as shells have it.

    Args:
        args: The arguments; by default those of the process.
    """
    given = sys.argv[1:] if args is None else args
    silence_known_noise()
    forget_options()
    _find_project()
    try:
        _run(given, args)
    except BrokenPipeError:
        # The reader of the output has closed it, as `| head` does. Nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except DivergedError as error:
        _end(str(error), 1)
    except KeyboardInterrupt as error:
        if debugging():
            raise
        _end(f"interrupted. {error}".rstrip(), 130)
    except Exception as error:
        message = None if debugging() else message_for(error, given_options())
        if message is None:
            raise
        _end(message, 2)


def _run(given: list[str], args: list[str] | None) -> None:
    """Run one command. Each is imported when it is called: `cache` needs lmdb, the others do not."""
    if given[:1] == ["layers"]:
        from lightning_freeze.cli.layers import main as show_layers

        show_layers(given[1:])
    elif given[:1] == ["plan"]:
        from lightning_freeze.cli.plan import main as plan

        plan(given[1:])
    elif given[:1] == ["advise"]:
        from lightning_freeze.cli.advise import main as advise

        advise(given[1:])
    elif given[:1] == ["compare"]:
        from lightning_freeze.cli.compare import main as compare

        compare(given[1:])
    elif given[:1] == ["cache"]:
        from lightning_freeze.cli.cache import main as look_after_cache

        look_after_cache(given[1:])
    elif given[:1] == ["merge-checkpoint"]:
        from lightning_freeze.cli.merge_checkpoint import main as merge_checkpoint

        merge_checkpoint(given[1:])
    else:
        if not given or (given[0] not in COMMANDS and not given[0].startswith("-")):
            what = f"{given[0]!r} is no command" if given else "No command is given"
            nearest = suggest(given[0], COMMANDS) if given else ""
            raise ConfigurationError(f"{what}: expected one of {listing(COMMANDS)}.{nearest}")
        FreezeCLI(args=args)


def _find_project() -> None:
    # A config may name classes of the user's project. Unlike `python -m`, a command does not look in its folder.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _end(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def silence_known_noise() -> None:
    """Hide messages that users of this command cannot act on: false alarms about small data, advertisements."""
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*LeafSpec.*is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()


if __name__ == "__main__":
    main()
