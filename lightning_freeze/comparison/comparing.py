"""``compare``: runs the fits that are missing, and tells which plan wins."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout

from lightning_freeze.comparison.comparison import Comparison
from lightning_freeze.comparison.engines.local import LocalProcesses
from lightning_freeze.comparison.engines.worker_process import prepare
from lightning_freeze.comparison.fits import FitOutcome, FitTask, changes, tasks_of
from lightning_freeze.comparison.metric import metric_of, mode_of
from lightning_freeze.comparison.output.files import write_all
from lightning_freeze.comparison.plan_summary import all_pairs, summarise
from lightning_freeze.comparison.result_files import read_result
from lightning_freeze.comparison.settings import ComparisonSettings
from lightning_freeze.comparison.statistics import SIGNIFICANCE, smallest_p_value
from lightning_freeze.errors import ConfigurationError, listing, suggest

ENGINES = ("local", "ray")
_LIBRARIES = ("scipy", "matplotlib", "jinja2")


class Engine(Protocol):
    """Runs fits somewhere."""

    def run(self, tasks: Sequence[FitTask]) -> Iterator[FitOutcome]:
        """Run fits.

        Args:
            tasks: The fits.

        Yields:
            How each ended, as soon as it has.
        """


def compare(
    config: str | os.PathLike[str] | Mapping[str, Any],
    *,
    directory: str | os.PathLike[str] | None = None,
    workers: int = 1,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    verbose: bool = True,
) -> Comparison:
    """Fit several plans with several seeds on the same data, and test which is better.

    Each fit has a process of its own and leaves one file when it ends. A call that was interrupted goes on where it was
    when it is made again: only fits that were running are lost. A plan whose config or data has changed since is fitted
    again, and a line says so. A fit that fails is reported and does not stop the others; the next call tries it again.

    Args:
        config: A comparison file, or what it would hold; see
            :class:`~lightning_freeze.comparison.settings.ComparisonSettings`.
        directory: Where all results go, instead of what the config says.
        workers: How many fits run at a time on this machine. Their wall times affect each other.
        engine: ``"local"`` for this machine, ``"ray"`` for a Ray cluster (extra ``cluster``).
        address: The address of the Ray cluster; by default that of ``RAY_ADDRESS``, else a new one on this machine.
        verbose: Whether to print a line for each fit.

    Returns:
        The comparison: ``print`` shows it, ``save`` writes it.

    Raises:
        ConfigurationError: If anything in the config is wrong, a library is missing, another process works in the same
            directory, or no fit has succeeded.

    Examples:
        >>> comparison = compare("compare.yaml", workers=2)  # doctest: +SKIP
        >>> comparison.save("comparison.html")  # doctest: +SKIP
    """
    _check_arguments(workers, engine, address)
    file = None if isinstance(config, Mapping) else os.fspath(config)
    prepared = prepare(config if isinstance(config, Mapping) else None, file)
    settings = ComparisonSettings(**{**prepared["settings"], "seeds": tuple(prepared["settings"]["seeds"])})
    root = Path(directory or settings.directory)
    tasks = tasks_of(settings, prepared["configs"], root)
    say = print if verbose else _say_nothing
    with _locked(root):
        outcomes = _known(tasks, say)
        missing = [task for task in tasks if task.key not in outcomes]
        if missing:
            say(f"{len(missing)} of {len(tasks)} fits to run, results in {root}", flush=True)
            runner = _engine(engine, workers, address, settings)
            for outcome in runner.run(missing):
                outcomes[outcome.task.key] = outcome
                say(_line(outcome, settings, f"{len(outcomes)} of {len(tasks)}"), flush=True)
    ordered = [outcomes[task.key] for task in tasks]
    comparison = _comparison(ordered, settings, _notes(ordered, settings, workers if engine == "local" else 1))
    files = write_all(comparison, root)
    say("written: " + ", ".join(map(str, files)), flush=True)
    return comparison


def _check_arguments(workers: int, engine: str, address: str | None) -> None:
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigurationError(f"workers is {workers!r}: expected a whole number, 1 or more.")
    if engine not in ENGINES:
        raise ConfigurationError(f"engine is {engine!r}: expected one of {listing(ENGINES)}.{suggest(engine, ENGINES)}")
    if engine == "local" and address is not None:
        raise ConfigurationError(f"address is {address!r}: expected engine='ray' with it, because 'local' has none.")
    if engine == "ray" and workers > 1:
        raise ConfigurationError(
            f"workers is {workers}: expected 1 with engine='ray', which runs as many fits as `resources` allows."
        )
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"compare needs {' and '.join(missing)}: pip install 'lightning-freeze[compare]'.")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigurationError("engine='ray' needs ray: pip install 'lightning-freeze[cluster]'.")


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep other comparisons out of a directory. The system lifts the lock when this process ends, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"directory is {str(root)!r}, in which another comparison is running: expected it to end first, or another "
            "directory."
        ) from None
    except OSError as error:
        raise ConfigurationError(f"directory is {str(root)!r}, which cannot be used: {error.strerror}.") from error
    try:
        yield
    finally:
        lock.release()


def _known(tasks: Sequence[FitTask], say: Any) -> dict[str, FitOutcome]:
    """The fits that need not be run, by their keys; of those whose set-up has changed, say what has."""
    found: dict[str, FitOutcome] = {}
    changed: dict[str, list[str]] = {}
    for task in tasks:
        stored = read_result(task)
        if stored is None:
            continue
        if stored.key == task.key:
            found[task.key] = FitOutcome(task, stored.result)
        else:
            changed.setdefault(task.plan, []).append(changes(stored.config, task.config))
    for plan, differences in changed.items():
        what = differences[0] or "its data, or the metric of forgetting"
        count = f"{len(differences)} fit{'s' * (len(differences) != 1)}"
        say(f"plan {plan!r} has changed since its {count} ({what}), run again", flush=True)
    if found:
        say(f"{len(found)} of {len(tasks)} fits were done before", flush=True)
    return found


def _engine(name: str, workers: int, address: str | None, settings: ComparisonSettings) -> Engine:
    if name == "local":
        return LocalProcesses(workers)
    from lightning_freeze.comparison.engines.ray_cluster import RayCluster

    return RayCluster(address, settings.resources, settings.retries)


def _line(outcome: FitOutcome, settings: ComparisonSettings, progress: str) -> str:
    task, result = outcome.task, outcome.result
    if result is None:
        return f"{task.name}: failed, {outcome.error} All output: {task.log} ({progress})"
    metric = metric_of(result, settings.metric)
    return f"{task.name}: {metric} {result.metrics[metric]:.4g}, {result.seconds:.1f} s ({progress})"


def _comparison(outcomes: Sequence[FitOutcome], settings: ComparisonSettings, notes: Sequence[str]) -> Comparison:
    first = next((outcome.result for outcome in outcomes if outcome.result is not None), None)
    if first is None:
        failed = outcomes[0]
        raise ConfigurationError(
            f"No fit has succeeded. The first one, {failed.task.name}, has failed: {failed.error} All output: "
            f"{failed.task.log}"
        )
    metric = metric_of(first, settings.metric)
    mode = mode_of(metric, settings.mode)
    plans = list(settings.plans)
    return Comparison(
        plans=tuple(summarise(plans, outcomes, metric, mode, settings.baseline, settings.test)),
        pairs=tuple(all_pairs(plans, outcomes, metric, settings.test)),
        fits=tuple(outcomes),
        metric=metric,
        mode=mode,
        baseline=settings.baseline,
        test=settings.test,
        seeds=settings.seeds,
        notes=tuple(notes),
    )


def _notes(outcomes: Sequence[FitOutcome], settings: ComparisonSettings, workers: int) -> list[str]:
    """Sentences on what has to be known to read the numbers."""
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    found = _failures(outcomes)
    warned = [(each.task.plan, text) for each in outcomes if each.result for text in each.result.warnings]
    found += [f"{plan} has warned: {text}" for plan, text in dict.fromkeys(warned)]
    wrong = [
        each.task.name
        for each in outcomes
        if each.result is not None and not all(map(math.isfinite, each.result.metrics.values()))
    ]
    if wrong:
        found.append(f"A metric of {listing(wrong)} is NaN or infinite.")
    seeds = len(settings.seeds)
    if seeds < 2:
        found.append("With one seed there is no spread and no test. Give several seeds.")
    elif smallest_p_value(seeds, settings.test) > SIGNIFICANCE:
        found.append(
            f"With {seeds} seeds Wilcoxon's test has no p-value below {smallest_p_value(seeds, settings.test):.2g}. "
            "Give six seeds or more, or test: t."
        )
    if any(result.stage == "validate" for result in results):
        found.append(
            "There is no test data, so the metric is that of the validation data, which has chosen the checkpoints."
        )
    if workers > 1:
        found.append(f"Up to {workers} fits ran at a time, so their wall times affect each other.")
    environments = sorted({result.environment for result in results})
    if len(environments) > 1:
        found.append(f"Wall times are not comparable, because the environments differ: {'; '.join(environments)}.")
    if any(result.cache_hit_rate is not None for result in results):
        found.append("Fits share one cache of hidden states: one that finds them there is faster than the first.")
    return found


def _failures(outcomes: Sequence[FitOutcome]) -> list[str]:
    """Which fits have failed and why: one sentence for all seeds of a plan that failed for the same reason."""
    seeds: dict[tuple[str, str], list[FitOutcome]] = {}
    for each in outcomes:
        if each.result is None:
            seeds.setdefault((each.task.plan, each.error), []).append(each)
    found = []
    for (plan, error), failed in seeds.items():
        numbers = ", ".join(str(each.task.seed) for each in failed)
        name = failed[0].task.name if len(failed) == 1 else f"{plan}, seeds {numbers}"
        found.append(f"{name} {'has' if len(failed) == 1 else 'have'} failed: {error}")
    return found


def _say_nothing(*_: Any, **__: Any) -> None:
    pass
