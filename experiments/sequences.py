"""For experiments in which fits depend on each other, which ``lightning-freeze compare`` does not run.

Such a folder has a script of its own, and a file like ``sequence.yaml`` with ``plans``, ``seeds`` and ``baseline``. Its
results have the same form as those of a comparison, so ``measure.py --tables`` writes their tables and figures.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from measure import ROOT, note_commit, versions
from results import Fit, Origin, read_results, write_atomically, write_results

from lightning_freeze import FrozenPrefixCache
from lightning_freeze.cli.command_line import FreezeCLI, silence_known_noise

Values = dict[str, float]
#: Of all fits, so that they say little beside what the script says.
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--report=false")


class TrainedShare(Callback):
    """Counts the parameters that train in each batch."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self.parameters = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.parameters = sum(each.numel() for each in pl_module.parameters())
        self._sizes.append(sum(each.numel() for each in pl_module.parameters() if each.requires_grad))

    @property
    def values(self) -> Values:
        """All parameters, and those that trained: the most at a time, and their share on average."""
        return {
            "parameters": self.parameters,
            "trainable_parameters": max(self._sizes),
            "trained_share": sum(self._sizes) / len(self._sizes) / self.parameters,
        }


class FitWithCache(FreezeCLI):
    """``lightning-freeze fit`` with the cache in a given folder, if it has one.

    Args:
        arguments: The options.
        folder: The folder.
        callbacks: Further callbacks.

    Attributes:
        began: When the fit began, as :func:`time.perf_counter` tells it.
        seconds: How long it took.
        share: The parameters that trained.
    """

    def __init__(self, arguments: list[str], folder: str, callbacks: Sequence[Callback] = ()) -> None:
        self._folder = folder
        self.began = self.seconds = 0.0
        self.share = TrainedShare()
        own = {"callbacks": [self.share, *callbacks]}
        super().__init__(args=["fit", *arguments], trainer_defaults=own, save_config_callback=None)

    @property
    def hit_rate(self) -> float:
        """The share of samples that were read from the cache; 0 without one."""
        caches = [each for each in self.trainer.callbacks if isinstance(each, FrozenPrefixCache)]
        return caches[0].hit_rate if caches else 0.0

    def before_instantiate_classes(self) -> None:
        """Put the cache into the folder."""
        super().before_instantiate_classes()
        for callback in self.config["fit"]["trainer"]["callbacks"] or ():
            if callback["class_path"].endswith("FrozenPrefixCache"):
                callback["init_args"]["cache_dir"] = self._folder

    def before_fit(self) -> None:
        """Begin to take the time."""
        super().before_fit()
        self.began = time.perf_counter()

    def after_fit(self) -> None:
        """End the time."""
        self.seconds = time.perf_counter() - self.began
        super().after_fit()


def settings_of(file: Path) -> dict[str, Any]:
    """Go to the folder that paths in configs begin with, and read the settings of a script."""
    os.chdir(ROOT)
    silence_known_noise()
    settings: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return settings


def fingerprint(files: Iterable[Path], *more: str) -> str:
    """What measurements depend on: the content of configs, and further settings."""
    content = b"".join(file.read_bytes() for file in files) + " ".join(more).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def once(file: Path, key: str, name: str, measure: Callable[[], Any]) -> Any:
    """Measure, or read what was measured with the same key before.

    Args:
        file: Where the measurements are kept.
        key: What they depend on.
        name: What is measured, for the line that is printed.
        measure: Returns the measurements, for JSON.
    """
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            print(f"{name}: already measured")
            return kept["values"]
    print(f"{name}: running", flush=True)
    values = measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps({"key": key, "values": values}))
    return values


def publish(
    script: Path,
    settings: Mapping[str, Any],
    metric: str,
    found: Mapping[tuple[str, int], Values],
    commits: str,
    better: Literal["larger", "smaller"] = "larger",
) -> None:
    """Write the results of a script into ``results.csv`` of its folder.

    Args:
        script: The script; its name is that of the comparison.
        settings: Its settings.
        metric: The metric that counts.
        found: The measurements by plan and seed.
        commits: The commits of the code.
        better: Whether a larger or a smaller value of the metric is better.
    """
    seeds: Sequence[int] = range(settings["seeds"])
    fits = [Fit(script.stem, plan, seed, found[plan, seed]) for plan in settings["plans"] for seed in seeds]
    origin = Origin(
        comparison=script.stem,
        command=f"python {script.relative_to(ROOT)}",
        seeds=" ".join(map(str, seeds)),
        metric=metric,
        better=better,
        baseline=settings["baseline"],
        test="t",
        commit=commits,
        versions=versions(),
    )
    file = script.parent / "results.csv"
    write_results(file, read_results(file).replaced(origin, fits))


def commits_of(runs: Path) -> str:
    """The commits of the code that has worked in a folder of runs, this one among them."""
    return note_commit(runs / "commits.txt")
