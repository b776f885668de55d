"""Options of a command that takes those of ``fit`` too, whose parser would take a misspelt one for its own."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_freeze.errors import ConfigurationError, suggest

_OPTIONS_OF_FIT = frozenset(
    {
        *("config", "print_config", "help", "seed_everything", "ckpt_path", "weights_only"),
        *("model", "data", "trainer", "optimizer", "lr_scheduler", "report"),
    }
)


def check_names(args: Sequence[str], options: Sequence[str]) -> None:
    """Find a misspelt option of the command itself.

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
