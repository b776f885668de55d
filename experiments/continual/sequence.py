"""Learn tasks one after another with each plan, and measure what is left of the earlier ones.

    python experiments/continual/sequence.py      # from the repository root, after prepare.py

Each fit is one of ``lightning-freeze fit`` with the data of one task. It begins with the best weights of the task
before, its classifier among them, and is followed by a test on all tasks so far. A finished sequence of fits is a file
in ``runs/continual/sequence``, so the script may be interrupted and called again; a sequence whose configs have
changed runs again. In the end the results go to ``results.csv``, and ``python experiments/measure.py --tables
continual`` writes the tables of the README from it.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from lightning.pytorch import LightningModule
from sequences import QUIET, TrainedShare, Values, commits_of, fingerprint, once, publish, settings_of

from lightning_freeze import TextDataModule, task_forgetting
from lightning_freeze.cli.command_line import FreezeCLI

HERE = Path(__file__).resolve().parent
RUNS = Path("runs") / "continual" / "sequence"
DATA = "experiments/continual/data/{task}.csv"


@dataclass(frozen=True)
class LearnedTask:
    """One task of a sequence, learned.

    Attributes:
        scores: The accuracy on each task so far, in order.
        weights: The best checkpoint.
        steps: Optimizer steps.
        trained: What :class:`TrainedShare` has counted.
    """

    scores: list[float]
    weights: str
    steps: int
    trained: Values


def main() -> None:
    """Run the sequences that are missing, then write all results."""
    del sys.argv[1:]
    settings = settings_of(HERE / "sequence.yaml")
    commits = commits_of(RUNS)
    found = {
        (plan, seed): measured(plan, HERE / file, seed, settings["tasks"])
        for seed in range(settings["seeds"])
        for plan, file in settings["plans"].items()
    }
    publish(HERE / "sequence.py", settings, "average_accuracy", found, commits)


def measured(plan: str, config: Path, seed: int, tasks: Sequence[str]) -> Values:
    """The measurements of one sequence, from its file if it is finished."""
    folder = RUNS / plan / f"seed_{seed}"

    def measure() -> Values:
        began = time.perf_counter()
        learned = learn(config, seed, {task: DATA.format(task=task) for task in tasks}, folder)
        shutil.rmtree(folder)  # the checkpoints
        return {**summary(learned, tasks), "seconds": round(time.perf_counter() - began, 1)}

    key = fingerprint([HERE / "base.yaml", config], *tasks)
    values: Values = once(folder.with_suffix(".json"), key, f"{plan}, seed {seed}", measure)
    return values


def learn(
    config: Path, seed: int, tasks: Mapping[str, str], folder: Path, options: Sequence[str] = ()
) -> list[LearnedTask]:
    """Learn tasks one after another.

    Args:
        config: The config of a fit.
        seed: The seed of the fits and of the split.
        tasks: The file of each task, in order.
        folder: Where logs and checkpoints go; what is there is removed.
        options: Further options of the fits.
    """
    shutil.rmtree(folder, ignore_errors=True)
    learned: list[LearnedTask] = []
    for number, file in enumerate(tasks.values()):
        arguments = [
            f"--config={config}",
            f"--data.data={file}",
            f"--data.split_seed={seed}",
            f"--seed_everything={seed}",
            f"--trainer.logger.init_args={{save_dir: {folder}, name: '', version: task_{number}}}",
            *QUIET,
            *options,
        ]
        fit = ContinuedFit(arguments, learned[-1].weights if learned else None)
        best = fit.trainer.checkpoint_callback.best_model_path
        scores = [
            fit.trainer.test(fit.model, fit.data_of(earlier), ckpt_path=best, verbose=False)[0]["test_accuracy"]
            for earlier in list(tasks.values())[: number + 1]
        ]
        learned.append(LearnedTask(scores, best, fit.trainer.global_step, fit.share.values))
    return learned


def summary(learned: Sequence[LearnedTask], tasks: Sequence[str]) -> Values:
    """What is left of the tasks, by the definitions of :func:`task_forgetting`, and every accuracy."""
    lost = task_forgetting([each.scores for each in learned])
    scores = {
        f"{task}_after_{after}": learned[tasks.index(after)].scores[number]
        for number, task in enumerate(tasks)
        for after in tasks[number:]
    }
    return {
        "average_accuracy": lost.average,
        "forgetting": lost.forgetting,
        "backward_transfer": lost.backward_transfer,
        **scores,
        "steps": sum(each.steps for each in learned),
        **learned[-1].trained,
    }


class ContinuedFit(FreezeCLI):
    """``lightning-freeze fit`` that begins with the weights of another fit, if there is one.

    Args:
        arguments: The options.
        weights: The checkpoint of that fit.
    """

    def __init__(self, arguments: list[str], weights: str | None) -> None:
        self._weights, self.share = weights, TrainedShare()
        super().__init__(
            args=["fit", *arguments], trainer_defaults={"callbacks": [self.share]}, save_config_callback=None
        )

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Load the weights, then fit."""
        if self._weights is not None:
            model.load_state_dict(torch.load(self._weights, map_location="cpu", weights_only=True)["state_dict"])
        self.trainer.fit(model, **kwargs)

    def data_of(self, file: str) -> TextDataModule:
        """The data of another task, read and split in the same way."""
        return TextDataModule(**{**self.config["fit"]["data"]["init_args"].as_dict(), "data": file})


if __name__ == "__main__":
    main()
