"""The metric of a comparison, and whether a larger or a smaller one is better."""

from __future__ import annotations

from lightning_freeze.comparison.records import FitResult
from lightning_freeze.comparison.settings import Mode
from lightning_freeze.errors import ConfigurationError, listing, suggest
from lightning_freeze.module.metric_direction import larger_is_better


def metric_of(result: FitResult, wanted: str | None) -> str:
    """The name of the metric that counts.

    Args:
        result: The measurements of a fit.
        wanted: What the settings say.

    Raises:
        ConfigurationError: If the fit has no such metric.
    """
    name = result.main_metric if wanted is None else wanted
    if name not in result.metrics:
        raise ConfigurationError(
            f"metric is {name!r}, which the fits do not have: expected one of {listing(result.metrics)}."
            f"{suggest(name, result.metrics)}"
        )
    return name


def mode_of(metric: str, wanted: Mode | None) -> Mode:
    """Whether a larger metric is better.

    Args:
        metric: Its name.
        wanted: What the settings say.

    Raises:
        ConfigurationError: If neither the settings nor the name say it.
    """
    if wanted is not None:
        return wanted
    is_better = larger_is_better(metric)
    if is_better is None:
        raise ConfigurationError(f"mode is not given, and {metric!r} does not tell it: expected 'max' or 'min'.")
    return "max" if is_better else "min"
