"""What is known of one fit of a comparison, as a plain record that goes through JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class FitResult:
    """The measurements of one fit.

    Attributes:
        metrics: Every metric of the weights that are kept, by name: those of the test data, of the validation data
            where there is no test data, and otherwise what was logged last in training.
        stage: Which of these: ``"test"``, ``"validate"`` or ``"fit"``.
        main_metric: The name of the metric that counts for the task; the loss where the model does not say.
        seconds: Wall time from ``on_fit_start`` to ``on_fit_end``, validation included. Building the model, tokenising
            and starting processes come before, and the test after it.
        peak_memory: The most memory in bytes: on an accelerator, what tensors took in the fit; on the CPU, the
            resident memory of the whole process in the fit, libraries included. ``None`` if it is not known.
        memory_of: ``"accelerator"`` or ``"process"``.
        parameters: Number of elements in all parameters of the model.
        trainable_parameters: The most of these that trained at the same time.
        mean_trainable: How many trained in a training batch, on average.
        steps: Optimizer steps.
        cache_hit_rate: Share of the samples whose hidden states FrozenPrefixCache has read; ``None`` without one.
        forgetting: How much worse the metric of forgetting is than before the fit; ``None`` if there is no such metric.
        checkpoint: The checkpoint whose weights were measured; empty if it was not kept.
        environment: The device and the versions of the libraries.
        warnings: What this package has warned of in the fit.
    """

    metrics: Mapping[str, float]
    stage: Literal["test", "validate", "fit"]
    main_metric: str
    seconds: float
    peak_memory: int | None
    memory_of: Literal["accelerator", "process"]
    parameters: int
    trainable_parameters: int
    mean_trainable: float
    steps: int
    cache_hit_rate: float | None = None
    forgetting: float | None = None
    checkpoint: str = ""
    environment: str = ""
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The record as dicts and numbers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FitResult:
        """The record that :meth:`to_dict` gave.

        Args:
            values: What it returned.

        Raises:
            TypeError: If a field is missing.
        """
        names = {each.name for each in fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        return cls(**{**known, "warnings": tuple(known.get("warnings", ()))})
