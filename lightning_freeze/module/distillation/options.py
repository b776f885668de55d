"""The options of a distillation, as a config gives them and as they are used."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from lightning_freeze.arguments.annotations import described, fits, reading_of
from lightning_freeze.cache.store.sizes import parse_size
from lightning_freeze.errors import ConfigurationError, listing, suggest


class DistillationOptions(TypedDict, total=False):
    """How a student learns from its teacher.

    Attributes:
        temperature: Divides the logits of both before the softmax; above 0. 2.0 unless given, as in the code that Sanh
            et al. (2019) published for fine-tuning with a teacher.
        alpha: Share of the teacher's outputs in the loss, from 0 to 1; the labels have the rest. 0.5 unless given,
            as in the same code.
        hidden_weight: Weight of the cosine distance between the last hidden states of student and teacher, 0 or more;
            0 unless given. Sanh et al. (2019) use 1.0 for pre-training. Both models need the same hidden size.
        start_from_teacher: Whether the student begins with the teacher's weights wherever name and shape are the same:
            with fewer blocks, the first ones of the teacher. False unless given.
        keep: Whether the outputs of the teacher are kept, so that it runs once for each sample; true unless given. Set
            it to false if the inputs of a sample differ in each epoch.
        cache_dir: Folder for these outputs, shared with other processes and later runs; memory alone unless given.
        max_memory: Budget in memory, as ``"4GiB"`` or a number of bytes; a quarter of the free memory unless given.
        verify: How many batches with kept outputs are compared with the teacher; 1 unless given.
    """

    temperature: float
    alpha: float
    hidden_weight: float
    start_from_teacher: bool
    keep: bool
    cache_dir: str | None
    max_memory: str | int | None
    verify: int


@dataclass(frozen=True)
class Settings:
    """The same options, checked, with their defaults."""

    temperature: float = 2.0
    alpha: float = 0.5
    hidden_weight: float = 0.0
    start_from_teacher: bool = False
    keep: bool = True
    cache_dir: str | None = None
    max_memory: str | int | None = None
    verify: int = 1


def check_options(options: Mapping[str, Any] | None) -> Settings:
    """Check options.

    Args:
        options: What was given; None stands for the defaults.

    Raises:
        ConfigurationError: A name is unknown, or a value is wrong or has no effect.
    """
    given = {} if options is None else options
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"distillation is {given!r}: expected a map of options, as in {{temperature: 2.0}}.")
    names, hints = [field.name for field in fields(Settings)], typing.get_type_hints(Settings)
    for name, value in given.items():
        if name not in names:
            raise ConfigurationError(
                f"distillation: {name!r} is no option: expected one of {listing(names)}.{suggest(name, names)}"
            )
        if not fits(value, hints[name]):
            reading = reading_of(value, hints[name]) if isinstance(value, str) else None
            nearest = "" if reading is None else f" Did you mean {reading!r}?"
            raise ConfigurationError(f"distillation: {name} is {value!r}: expected {described(hints[name])}.{nearest}")
    settings = Settings(**given)
    _check_ranges(settings)
    unused = [name for name in ("cache_dir", "max_memory") if given.get(name) is not None and not settings.keep]
    if unused:
        raise ConfigurationError(f"distillation: {unused[0]} has no effect with keep=False: expected one of the two.")
    return settings


def _check_ranges(settings: Settings) -> None:
    wrong = [
        ("temperature", settings.temperature, "a finite number above 0", 0 < settings.temperature < math.inf),
        ("alpha", settings.alpha, "a share from 0 to 1", 0 <= settings.alpha <= 1),
        ("hidden_weight", settings.hidden_weight, "a finite number, 0 or more", 0 <= settings.hidden_weight < math.inf),
        ("verify", settings.verify, "a number of batches, 0 or more", settings.verify >= 0),
        ("cache_dir", settings.cache_dir, "a folder, or None", settings.cache_dir != ""),
    ]
    for name, value, expected, is_right in wrong:
        if not is_right:
            raise ConfigurationError(f"distillation: {name} is {value!r}: expected {expected}.")
    if settings.alpha == 0 and settings.hidden_weight == 0:
        raise ConfigurationError(
            "distillation: with alpha=0 and hidden_weight=0 the teacher has no effect: expected one of them above 0."
        )
    parse_size(settings.max_memory, "distillation: max_memory")
