"""Fit three tasks one after another with one cache folder, and measure how much each finds in it.

    python experiments/multi_task/warm.py         # from the repository root, after prepare.py

The folder is empty before the first task. A finished sequence of fits is a file in ``runs/multi_task/warm``, so the
script may be interrupted and called again; a sequence whose configs have changed runs again. In the end the results go
to ``results.csv``, and ``python experiments/measure.py --tables multi_task`` writes the tables of the README from it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sequences import QUIET, FitWithCache, Values, commits_of, fingerprint, once, publish, settings_of

HERE = Path(__file__).resolve().parent
RUNS = Path("runs") / "multi_task" / "warm"


def main() -> None:
    """Run the sequences that are missing, then write all results."""
    del sys.argv[1:]
    settings = settings_of(HERE / "warm.yaml")
    commits = commits_of(RUNS)
    found: dict[tuple[str, int], Values] = {}
    for seed in range(settings["seeds"]):
        for frozen in dict.fromkeys(files[-1] for files in settings["plans"].values()):
            plans = {plan: files for plan, files in settings["plans"].items() if files[-1] == frozen}
            found |= {(plan, seed): values for plan, values in measured(plans, seed).items()}
    publish(HERE / "warm.py", settings, "hit_rate", found, commits)


def measured(plans: Mapping[str, Sequence[str]], seed: int) -> dict[str, Values]:
    """The measurements of fits that share a cache, from their file if they are finished."""
    name = "-".join(plans)
    key = fingerprint([HERE / "base.yaml", *(HERE / file for files in plans.values() for file in files)])
    folder = RUNS / name / f"seed_{seed}"
    values: dict[str, Values] = once(
        folder.with_suffix(".json"), key, f"{name}, seed {seed}", lambda: share_cache(plans, seed, folder)
    )
    return values


def share_cache(
    plans: Mapping[str, Sequence[str]], seed: int, folder: Path, options: Sequence[str] = ()
) -> dict[str, Values]:
    """Fit plans one after another with one cache folder that is empty at first.

    Args:
        plans: The configs of each fit.
        seed: The seed of the fits and of the split.
        folder: Where logs, checkpoints and the cache are while the fits run; what is there is removed.
        options: Further options of the fits.
    """
    shutil.rmtree(folder, ignore_errors=True)
    found = {}
    for plan, files in plans.items():
        arguments = [
            *(f"--config={HERE / file}" for file in files),
            f"--data.split_seed={seed}",
            f"--seed_everything={seed}",
            f"--trainer.logger.init_args={{save_dir: {folder}, name: '', version: {plan}}}",
            *QUIET,
            *options,
        ]
        fit = FitWithCache(arguments, str(folder / "cache"))
        found[plan] = {
            "hit_rate": fit.hit_rate,
            "steps": fit.trainer.global_step,
            **fit.share.values,
            "seconds": round(fit.seconds, 1),
        }
    shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    main()
