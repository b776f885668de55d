"""The benchmark of advice, on made-up reviews and a tiny encoder."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from reviews import make_reviews

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import advice as benchmark
from benchmarks.advicetest import datasets
from benchmarks.advicetest.sweep import frozen, key_of, sweep_plans
from lightning_freeze import LayerStack, TransformerModule

ARGUMENTS = argparse.Namespace(rows=60, epochs=1, seeds=2, plans=3, precision="32-true", quick=True)


@pytest.fixture
def reviews(monkeypatch: pytest.MonkeyPatch, tiny_bert_dir: Path) -> datasets.DataSet:
    monkeypatch.setattr(benchmark, "encoder", lambda: tiny_bert_dir)
    monkeypatch.setattr(datasets, "_fetch", lambda package, folder: folder)
    rows = [(row["text"], row["label"]) for row in make_reviews(90)]
    return replace(datasets.DATASETS["amazon"], read=lambda _: iter(rows))


@pytest.mark.slow
def test_regret_and_cost_on_one_data_set_and_a_second_call_trains_nothing(
    reviews: datasets.DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = benchmark.judge(reviews, ARGUMENTS, tmp_path)
    assert verdict.regret("full") >= 0, "full fine-tuning is part of the sweep"
    assert verdict.accuracy["best"] >= verdict.accuracy["full"]
    assert verdict.cost[0] > 0
    assert verdict.cost[1] > 2, "two seeds of three plans"
    table = benchmark.table_of({"x": verdict}, ARGUMENTS).markdown()
    assert "regret of advice" in table
    assert "Summary" in benchmark.summary_of({"x": verdict}).markdown()

    monkeypatch.setattr("benchmarks.advicetest.sweep.Bench._fit", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr("lightning_freeze.advice.advice_run.run_fit", lambda *_: pytest.fail("trained again"))
    assert benchmark.judge(reviews, ARGUMENTS, tmp_path) == verdict


def test_the_sweep_has_every_depth_once(tiny_bert_dir: Path) -> None:
    stack = LayerStack(TransformerModule(str(tiny_bert_dir), num_classes=2))
    plans = sweep_plans(stack, 40, 5e-5)
    assert len({key_of(plan) for plan in plans}) == len(plans)
    frozen_depths = {plan.name for plan in plans if plan.name.startswith("freeze embeddings")}
    assert frozen_depths == {"freeze embeddings", *(f"freeze embeddings,:{depth}" for depth in range(1, 5))}
    assert key_of(plans[0]) == key_of(frozen(""))


def test_a_cache_is_no_part_of_a_plan() -> None:
    plan = frozen("embeddings,:2")
    assert key_of(plan.with_cache("folder")) == key_of(plan)
    assert key_of(plan) != key_of(frozen(""))


def test_rows_are_spread_over_the_file(reviews: datasets.DataSet, tmp_path: Path) -> None:
    everything = datasets.csv_file(reviews, tmp_path, 1000).read_text().splitlines()
    some = datasets.csv_file(reviews, tmp_path, 10).read_text().splitlines()
    assert len(some) == 11
    assert set(some) <= set(everything)
