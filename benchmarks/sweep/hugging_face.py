"""Every model type that the Auto classes of the installed transformers reach."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from sweep.block_counts import expected
from sweep.inputs import Maker, configs
from sweep.known.block_counts import FAILED
from sweep.model_settings import CONFIGS, FACTORS, INPUTS, REASONS
from sweep.rows import LARGEST, Row, judge, short
from sweep.shrink import Shrink
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

_TABLES = sorted(n for n in dir(modeling_auto) if n.startswith("MODEL_") and n.endswith("MAPPING_NAMES"))
# One head is taken from the first of these tables that has the type.
_PREFERRED = (
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_CTC_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
)


def classes() -> list[tuple[str, str]]:
    """Pairs of model type and class name: the plain model and one with a head, as far as there are."""
    tables = {name: dict(getattr(modeling_auto, name)) for name in _TABLES}
    rows = []
    for kind in CONFIG_MAPPING:
        base = _names(tables["MODEL_MAPPING_NAMES"].get(kind))
        ordered = [*_PREFERRED, *(t for t in _TABLES if t not in _PREFERRED and t != "MODEL_MAPPING_NAMES")]
        heads = [name for table in ordered for name in _names(tables[table].get(kind)) if name not in base]
        rows += [(kind, name) for name in [*base, *heads[:1]]]
    return list(dict.fromkeys(rows))


def _names(value: Any) -> list[str]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def examine(kind: str, name: str) -> Row:
    """Build, run and judge one class."""
    best: Row | None = None
    tried = 0
    for factor in FACTORS.get(kind) or _factors(kind):
        row = Row("transformers", kind, name)
        _attempt(row, kind, name, factor)
        if best is None or _rank(row) > _rank(best):
            best = row
        tried += row.outcome == "not run"
        if row.outcome in {"pass", "coarser", "said", "fail"} or tried == 4:
            break
    assert best is not None
    if best.outcome in {"not built", "not run"}:
        _at_full_size(best, kind, name)
    if best.outcome in {"not built", "not run"}:
        best.reason = REASONS.get(name) or REASONS.get(kind) or best.reason
    if best.outcome == "fail" and name in FAILED:
        best.reason = f"{best.reason.partition(':')[0]}: {FAILED[name]}"
    return best


def _factors(kind: str) -> tuple[int, ...]:
    """Width divisors to try: heads of 128 become heads of 8 where widths are large."""
    try:
        widest = max(
            (v for c in configs(CONFIG_MAPPING[kind]()) if type(v := c.__dict__.get("hidden_size")) is int), default=0
        )
    except Exception:
        widest = 0
    return (16, 8, 4, 2, 1) if widest >= 2048 else (8, 4, 2, 1)


def _rank(row: Row) -> int:
    return ["not built", "not run", "coarser", "fail", "said", "pass"].index(row.outcome)


def _class(kind: str, name: str) -> Any:
    """The class of that name; not all that the Auto tables name are exported."""
    module = CONFIG_MAPPING[kind].__module__.replace(".configuration_", ".modeling_")
    return getattr(transformers, name, None) or getattr(importlib.import_module(module), name)


def _part(cls: Any, config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration in it that the class is made for: a decoder is built from the one of the decoder."""
    wanted = getattr(cls, "config_class", None)
    return config if not wanted else next((c for c in configs(config) if type(c) is wanted), config)


def _attempt(row: Row, kind: str, name: str, factor: int) -> None:
    try:
        cls = _class(kind, name)
        config = Shrink(factor, {**CONFIGS.get(kind, {}), **CONFIGS.get(name, {})})(CONFIG_MAPPING[kind]())
        config = _part(cls, config)
        with torch.device("meta"):
            size = sum(p.numel() for p in cls(config).parameters())
        if size > LARGEST:
            row.outcome, row.reason = "not built", f"too large to be given weights: {size:,} parameters"
            return
        torch.manual_seed(0)
        module = cls(config).float()
    except Exception as error:
        row.outcome, row.reason = "not built", short(error)
        return
    torch.manual_seed(1)
    try:
        runs = Maker(module, {**INPUTS.get(kind, {}), **INPUTS.get(name, {})}).attempts()
        judge(row, module, runs, expected(module, name))
    except Exception as error:
        row.outcome, row.reason = "fail", f"{short(error)} at {traceback.format_exc().splitlines()[-3].strip()}"


def _at_full_size(row: Row, kind: str, name: str) -> None:
    """Structural checks on the meta device, in the size that the default configuration gives."""
    reason = row.reason
    try:
        cls = _class(kind, name)
        with torch.device("meta"):
            module = cls(_part(cls, CONFIG_MAPPING[kind]()))
    except Exception as error:
        if row.outcome == "not built":
            row.reason = f"{reason} (default configuration: {short(error)})" if reason != short(error) else reason
        return
    judge(row, module, (), expected(module, name))
    if row.outcome == "not run":
        row.reason = reason
    if row.reason.startswith("(c)"):
        row.outcome = "fail"


def catalogue() -> Iterator[tuple[str, str, str]]:
    """All rows to make: library, kind, name."""
    for kind, name in classes():
        yield "transformers", kind, name
