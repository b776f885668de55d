"""``run_fit``: one fit of one config, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_freeze.cli.measured_fit import run_fit
from lightning_freeze.cli.runs.divergence import DivergedError
from lightning_freeze.comparison.records import FitResult
from lightning_freeze.errors import ConfigurationError


def config(callbacks: list[dict[str, Any]] | None = None, **model: Any) -> dict[str, Any]:
    return {
        "model": {"encoder": "./tiny", "task": "classification", **model},
        "data": {"class_path": "TextDataModule", "init_args": {"data": "reviews.csv", "batch_size": 8}},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "callbacks": callbacks or []},
    }


def test_what_is_measured(project: Path) -> None:
    result = run_fit(config(), 0, "fit")
    assert result.stage == "test"
    assert 0 <= result.metrics["test_accuracy"] <= 1
    assert result.seconds > 0
    assert result.memory_of == "process" and result.peak_memory is not None and result.peak_memory > 50_000_000
    assert result.trainable_parameters == result.mean_trainable == result.parameters
    assert result.steps == 12
    assert (result.cache_hit_rate, result.forgetting, result.checkpoint) == (None, None, "")
    assert (project / "fit" / "logs" / "metrics.csv").is_file()
    assert not list(project.rglob("*.ckpt")) and not (project / "lightning_logs").exists()
    assert FitResult.from_dict(result.to_dict()) == result


@pytest.mark.slow
def test_a_seed_decides_the_run(project: Path) -> None:
    one, same, other = (run_fit(config(), seed, "fit").metrics["test_loss"] for seed in (1, 1, 2))
    assert one == same != other


def test_parameters_that_train_are_counted_in_each_batch(project: Path) -> None:
    until = {"class_path": "EpochTrigger", "init_args": {"n": 1}}
    phases = [{"train": "head", "until": until}, {"train": "all"}]
    unfreezing = {"class_path": "PhasedFineTuning", "init_args": {"phases": phases}}
    result = run_fit(config([unfreezing]), 0, "fit")
    assert result.trainable_parameters == result.parameters
    head = 2 * result.mean_trainable - result.parameters
    assert 0 < head < 0.1 * result.parameters


@pytest.mark.slow
def test_hits_of_the_cache_and_a_checkpoint_that_is_kept(project: Path) -> None:
    callbacks = [
        {"class_path": "LayerFreezing", "init_args": {"layers": "embeddings,:"}},
        {"class_path": "FrozenPrefixCache", "init_args": {"cache_dir": "cache"}},
    ]
    first = run_fit(config(callbacks), 0, "one", keep_checkpoint=True)
    second = run_fit(config(callbacks), 1, "two")
    assert Path(first.checkpoint).is_file()
    assert first.cache_hit_rate is not None and second.cache_hit_rate is not None
    assert second.cache_hit_rate > 0.9 > first.cache_hit_rate > 0  # a first batch is compared with a real pass


def test_what_the_callback_forgetting_has_measured_is_among_the_metrics(project: Path) -> None:
    Path("general.txt").write_text("the film was good\nthe book was dull\nit is great\na slow plot\n")
    result = run_fit(config([{"class_path": "Forgetting", "init_args": {"text": "general.txt"}}]), 0, "fit")
    assert 0 <= result.metrics["forgetting/ranking_drop"] <= 2
    assert result.metrics["forgetting/l2/0"] > 0
    assert "test_accuracy" in result.metrics and result.main_metric == "test_accuracy"


class _Norm:
    """A metric of the weights, which the fit changes."""

    def __init__(self, higher_is_better: bool) -> None:
        self.higher_is_better = higher_is_better
        self.values: list[float] = []

    def __call__(self, module: LightningModule, datamodule: LightningDataModule) -> float:
        self.values.append(float(sum(p.detach().double().pow(2).sum() for p in module.parameters())))
        return self.values[-1]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_forgetting_is_how_much_worse_a_metric_becomes(higher_is_better: bool, project: Path) -> None:
    metric = _Norm(higher_is_better)
    result = run_fit(config(), 0, "fit", forgetting=metric)
    before, after = metric.values
    assert before != after
    assert result.forgetting == (before - after if higher_is_better else after - before)


@pytest.mark.slow
def test_the_callback_says_what_is_forgotten_where_no_metric_does(project: Path) -> None:
    Path("general.txt").write_text("the book is good\na bad phone\nthe film\ngood and bad\nthe phone is a book\n")
    callback = {"class_path": "Forgetting", "init_args": {"text": "general.txt", "verbose": False}}
    frozen = {"class_path": "LayerFreezing", "init_args": {"layers": "embeddings,:"}}
    result = run_fit(config([callback]), 0, "fit")
    assert result.forgetting == result.metrics["forgetting/ranking_drop"] != 0
    assert run_fit(config([callback, frozen]), 0, "frozen").forgetting == pytest.approx(0, abs=1e-6)
    assert run_fit(config([callback]), 0, "both", forgetting=lambda *_: 1.0).forgetting == 0


@pytest.mark.slow
def test_without_test_data_the_validation_counts(project: Path) -> None:
    split = config()
    split["data"]["init_args"]["split"] = [0.8, 0.2, 0]
    result = run_fit(split, 0, "fit")
    assert result.stage == "validate"
    assert "val_accuracy" in result.metrics


def test_a_wrong_config_is_an_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="heda"):
        run_fit(config([{"class_path": "LayerFreezing", "init_args": {"layers": "heda"}}]), 0, "fit")
    with pytest.raises(SystemExit):
        run_fit(config([{"class_path": "LayerFreezin"}]), 0, "fit")
    assert "Did you mean 'LayerFreezing'?" in capsys.readouterr().err


def test_a_run_that_diverges_is_no_result(project: Path) -> None:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}
    with pytest.raises(DivergedError), pytest.warns(UserWarning):
        run_fit(config(optimizer=optimizer), 0, "fit")
    assert not torch.is_inference_mode_enabled()
