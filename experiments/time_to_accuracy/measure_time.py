"""Measure how long each plan takes until it has a given accuracy on the validation texts.

    python experiments/time_to_accuracy/measure_time.py     # from the repository root, after prepare.py

To be run on a machine that does nothing else. Each fit is one of ``lightning-freeze fit``. It validates four times an
epoch and ends with the first validation that reaches the target. The time begins with ``Trainer.fit``: it includes
tokenising and all validations, and neither the start of Python nor the loading of the model. Within a seed the plans
are fitted one after another in one process, after a few steps that are not measured, because the first steps of a
process are slower. A finished seed is a file in ``runs/time_to_accuracy/measure_time``, so the script may be
interrupted and called again; a seed whose configs have changed runs again. In the end the results go to
``results.csv``, and ``python experiments/measure.py --tables time_to_accuracy`` writes the table of the README from
it.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lightning.pytorch import Callback, LightningModule, Trainer
from sequences import QUIET, FitWithCache, Values, commits_of, fingerprint, once, publish, settings_of

HERE = Path(__file__).resolve().parent
RUNS = Path("runs") / "time_to_accuracy" / "measure_time"
#: Steps of the fit that is not measured; one validation is among them.
WARM_UP = "--trainer.max_steps=16"


class StopAtTarget(Callback):
    """Ends a fit with the first validation that is good enough, and notes when that was.

    Args:
        target: The accuracy on the validation texts.

    Attributes:
        time: When the target was reached, as :func:`time.perf_counter` tells it; None before.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.time: float | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if the target is reached."""
        if self.time is None and float(trainer.callback_metrics["val_accuracy"]) >= self.target:
            self.time = time.perf_counter()
            trainer.should_stop = True


def main() -> None:
    """Run the seeds that are missing, then write all results."""
    del sys.argv[1:]
    settings = settings_of(HERE / "measure_time.yaml")
    commits = commits_of(RUNS)
    found: dict[tuple[str, int], Values] = {}
    for seed in range(settings["seeds"]):
        found |= {(plan, seed): values for plan, values in measured(settings, seed).items()}
    publish(HERE / "measure_time.py", settings, "seconds_to_target", found, commits, better="smaller")


def measured(settings: Mapping[str, Any], seed: int) -> dict[str, Values]:
    """The measurements of all plans with one seed, from their file if they are finished."""
    plans, target = settings["plans"], settings["target"]
    key = fingerprint([HERE / "base.yaml", *(HERE / file for file in plans.values())], str(target))
    folder = RUNS / f"seed_{seed}"
    values: dict[str, Values] = once(
        folder.with_suffix(".json"), key, f"seed {seed}", lambda: fit_all(plans, target, seed, folder)
    )
    return values


def fit_all(
    plans: Mapping[str, str], target: float, seed: int, folder: Path, options: Sequence[str] = ()
) -> dict[str, Values]:
    """Fit plans one after another with one cache folder that is empty at first.

    Args:
        plans: The config of each fit.
        target: The accuracy at which a fit ends.
        seed: The seed of the fits and of the split.
        folder: Where logs and the cache are while the fits run; what is there is removed.
        options: Further options of the fits.
    """
    shutil.rmtree(folder, ignore_errors=True)

    def arguments(file: str, name: str) -> list[str]:
        return [
            f"--config={HERE / file}",
            f"--data.split_seed={seed}",
            f"--seed_everything={seed}",
            f"--trainer.logger.init_args={{save_dir: {folder}, name: '', version: {name}}}",
            *QUIET,
            *options,
        ]

    FitWithCache([*arguments(next(iter(plans.values())), "warm_up"), WARM_UP], str(folder / "unused"))
    found = {plan: timed(arguments(file, plan), target, str(folder / "cache")) for plan, file in plans.items()}
    shutil.rmtree(folder)
    return found


def timed(arguments: list[str], target: float, cache: str) -> Values:
    """The time and the steps of one fit until it has reached the target; without them if it has not."""
    stop = StopAtTarget(target)
    fit = FitWithCache(arguments, cache, [stop])
    steps = fit.trainer.global_step
    reached = {} if stop.time is None else {"seconds_to_target": stop.time - fit.began, "steps_to_target": steps}
    return {
        **reached,
        "reached": float(stop.time is not None),
        "hit_rate": fit.hit_rate,
        "steps": steps,
        **fit.share.values,
        "seconds": round(fit.seconds, 1),
    }


if __name__ == "__main__":
    main()
