"""The recommended callbacks as a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lightning_freeze.advice.output.sentences import sentences
from lightning_freeze.advice.records import AdviceRecord


def config_text(advice: AdviceRecord, config: Mapping[str, Any] | None = None, how: str = "") -> str:
    """A config with the recommended callbacks, and why in comments.

    Args:
        advice: The advice.
        config: A config as nested dicts whose callbacks are replaced; by default there are callbacks alone.
        how: How to use it.
    """
    content = {"trainer": {"callbacks": entries(advice)}} if config is None else config
    lines = [f"# {line}" for line in [*sentences(advice), how] if line]
    dumped: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    return "\n".join([*lines, dumped])


def entries(advice: AdviceRecord) -> list[dict[str, Any]]:
    """The recommended callbacks as entries of a config.

    Args:
        advice: The advice.
    """
    return [_plain(entry) for entry in advice.best.entries if "init_args" in entry]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
