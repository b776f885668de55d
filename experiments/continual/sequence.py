"""Learn tasks one after another with each plan, and measure what is left of the earlier ones.

    python experiments/continual/sequence.py      # from the repository root, after prepare.py

Each fit is one of ``lightning-freeze fit`` with the data of one task. It begins with the best weights of the task before,
its classifier among them, and is followed by a test on all tasks so far. A finished sequence of fits is a file in
``runs/continual/sequence``, so the script may be interrupted and called again; a sequence whose configs have changed runs
again. In the end the results go to ``results.csv``, and ``python experiments/measure.py --tables continual`` writes the
tables of the README from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from measure import note_commit, versions
from results import Fit, Origin, read_results, write_atomically, write_results

from lightning_freeze import TextDataModule, task_forgetting
from lightning_freeze.cli.command_line import FreezeCLI, silence_known_noise

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = Path("runs") / "continual" / "sequence"
DATA = "experiments/continual/data/{task}.csv"


@dataclass(frozen=True)
class Step:
    """One task of a sequence, learned.

    Attributes:
        scores: The accuracy on each task so far, in order.
        weights: The best checkpoint.
        steps: Optimizer steps.
        trained: Parameters that trained in a batch, on average.
        parameters: All parameters.
    """

    scores: list[float]
    weights: str
    steps: int
    trained: float
    parameters: int


def main() -> None:
    """Run the sequences that are missing, then write all results."""
    del sys.argv[1:]
    os.chdir(ROOT)  # paths in configs begin here
    silence_known_noise()
    settings = yaml.safe_load((HERE / "sequence.yaml").read_text(encoding="utf-8"))
    seeds = range(settings["seeds"])
    commits = note_commit(RUNS / "commits.txt")
    found = {}
    for seed in seeds:
        for plan, file in settings["plans"].items():
            found[plan, seed] = measured(plan, HERE / file, seed, settings["tasks"])
    fits = [Fit("sequence", plan, seed, found[plan, seed]) for plan in settings["plans"] for seed in seeds]
    origin = Origin(
        comparison="sequence",
        command="python experiments/continual/sequence.py",
        seeds=" ".join(map(str, seeds)),
        metric="average_accuracy",
        better="larger",
        baseline=settings["baseline"],
        test="t",
        commit=commits,
        versions=versions(),
    )
    write_results(HERE / "results.csv", read_results(HERE / "results.csv").replaced(origin, fits))


def measured(plan: str, config: Path, seed: int, tasks: Sequence[str]) -> Mapping[str, float]:
    """The measurements of one sequence, from its file if it is finished."""
    file, key = RUNS / plan / f"seed_{seed}.json", fingerprint(config, tasks)
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            print(f"{plan}, seed {seed}: already measured")
            return dict(kept["values"])
    print(f"{plan}, seed {seed}: running", flush=True)
    began = time.perf_counter()
    folder = RUNS / plan / f"seed_{seed}"
    steps = learn(config, seed, {task: DATA.format(task=task) for task in tasks}, folder)
    shutil.rmtree(folder)  # the checkpoints
    values = {**summary(steps, tasks), "seconds": round(time.perf_counter() - began, 1)}
    write_atomically(file, json.dumps({"key": key, "values": values}))
    return values


def learn(config: Path, seed: int, tasks: Mapping[str, str], folder: Path, options: Sequence[str] = ()) -> list[Step]:
    """Learn tasks one after another.

    Args:
        config: The config of a fit.
        seed: The seed of the fits and of the split.
        tasks: The file of each task, in order.
        folder: Where logs and checkpoints go; what is there is removed.
        options: Further options of the fits.
    """
    shutil.rmtree(folder, ignore_errors=True)
    steps: list[Step] = []
    for number, file in enumerate(tasks.values()):
        share = TrainedShare()
        arguments = [
            f"--config={config}",
            f"--data.data={file}",
            f"--data.split_seed={seed}",
            f"--seed_everything={seed}",
            f"--trainer.logger.init_args={{save_dir: {folder}, name: '', version: task_{number}}}",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            "--report=false",
            *options,
        ]
        cli = ContinuedFit(arguments, steps[-1].weights if steps else None, share)
        trainer, best = cli.trainer, cli.trainer.checkpoint_callback.best_model_path
        scores = [
            trainer.test(cli.model, data_of(cli, earlier), ckpt_path=best, verbose=False)[0]["test_accuracy"]
            for earlier in list(tasks.values())[: number + 1]
        ]
        parameters = sum(each.numel() for each in cli.model.parameters())
        steps.append(Step(scores, best, trainer.global_step, share.mean, parameters))
    return steps


def summary(steps: Sequence[Step], tasks: Sequence[str]) -> dict[str, float]:
    """What is left of the tasks, by the definitions of :func:`task_forgetting`, and every accuracy."""
    lost = task_forgetting([step.scores for step in steps])
    scores = {
        f"{task}_after_{after}": steps[tasks.index(after)].scores[number]
        for number, task in enumerate(tasks)
        for after in tasks[number:]
    }
    parameters = steps[0].parameters
    trained = sum(step.trained for step in steps) / len(steps)
    return {
        "average_accuracy": lost.average,
        "forgetting": lost.forgetting,
        "backward_transfer": lost.backward_transfer,
        **scores,
        "steps": sum(step.steps for step in steps),
        "parameters": parameters,
        "trainable_parameters": round(trained),
        "trained_share": trained / parameters,
    }


def fingerprint(config: Path, tasks: Sequence[str]) -> str:
    """What the measurements of a plan depend on: the config, what it includes, and the tasks."""
    content = config.read_bytes() + (config.parent / "base.yaml").read_bytes() + " ".join(tasks).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def data_of(cli: FreezeCLI, file: str) -> TextDataModule:
    """The data of another task, read and split in the same way."""
    arguments = cli.config["fit"]["data"]["init_args"].as_dict()
    return TextDataModule(**{**arguments, "data": file})


class ContinuedFit(FreezeCLI):
    """``lightning-freeze fit`` that begins with the weights of another fit, if there is one.

    Args:
        arguments: The options.
        weights: The checkpoint of that fit.
        callback: A callback beside those of the config.
    """

    def __init__(self, arguments: list[str], weights: str | None, callback: Callback) -> None:
        self._weights = weights
        super().__init__(
            args=["fit", *arguments], trainer_defaults={"callbacks": [callback]}, save_config_callback=None
        )

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Load the weights, then fit."""
        if self._weights is not None:
            model.load_state_dict(torch.load(self._weights, map_location="cpu", weights_only=True)["state_dict"])
        self.trainer.fit(model, **kwargs)


class TrainedShare(Callback):
    """Counts the parameters that train in each batch."""

    def __init__(self) -> None:
        self._sizes: list[int] = []

    @property
    def mean(self) -> float:
        """Their mean over the batches."""
        return sum(self._sizes) / len(self._sizes)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._sizes.append(sum(each.numel() for each in pl_module.parameters() if each.requires_grad))


if __name__ == "__main__":
    main()
