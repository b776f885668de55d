"""The scripts of fits that depend on each other: what one hands over to the next, and what is measured once."""

import csv
import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch
import yaml
from results import read_results
from sequences import once, publish

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def texts(tmp_path, monkeypatch) -> Path:
    """216 short texts, all different, with the columns of all tasks, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "sentiment", "strength", "rating", "source", "review"])
        words = ["good", "bad", "film", "book", "plot", "dull"]
        for i, text in enumerate(itertools.product(words, repeat=3)):
            label = "positive" if i % 2 else "negative"
            writer.writerow([" ".join(text), label, label, ["strong", "weak"][i // 2 % 2], i % 9 - 4, i, i])
    return path


def weights(checkpoint: str) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["none", "half_frozen", "l2sp", "lora"])
def test_each_task_is_learned_after_the_one_before(plan, texts, tiny_bert_dir, tmp_path, monkeypatch):
    if plan == "lora":
        pytest.importorskip("peft")
    script = load(EXPERIMENTS / "continual" / "sequence.py")
    started_from = []

    class Watched(script.ContinuedFit):
        def __init__(self, arguments, weights):
            started_from.append(weights)
            super().__init__(arguments, weights)

    monkeypatch.setattr(script, "ContinuedFit", Watched)
    tasks = {"a": str(texts), "b": str(texts), "c": str(texts)}
    options = [f"--model.encoder={tiny_bert_dir}", "--trainer.max_epochs=1"]
    learned = script.learn(EXPERIMENTS / "continual" / f"{plan}.yaml", 0, tasks, tmp_path / "runs", options)
    assert started_from == [None, learned[0].weights, learned[1].weights]
    assert [len(each.scores) for each in learned] == [1, 2, 3]
    values = script.summary(learned, list(tasks))
    assert values["b_after_c"] == learned[2].scores[1]
    assert values["trained_share"] == 1 if plan in ("none", "l2sp") else values["trained_share"] < 0.9


@pytest.mark.slow
def test_a_fit_begins_with_the_weights_of_another(texts, tiny_bert_dir, tmp_path):
    script = load(EXPERIMENTS / "continual" / "sequence.py")
    # At a rate of 0, the weights at the end are those at the start.
    options = [f"--model.encoder={tiny_bert_dir}", "--trainer.max_epochs=1", "--model.optimizer.init_args.lr=0"]
    config = EXPERIMENTS / "continual" / "none.yaml"
    (first,) = script.learn(config, 0, {"a": str(texts)}, tmp_path / "runs", options)
    checkpoint = torch.load(first.weights, weights_only=True)
    for tensor in checkpoint["state_dict"].values():
        tensor += 1
    torch.save(checkpoint, tmp_path / "other.ckpt")
    fit = script.ContinuedFit([f"--config={config}", f"--data.data={texts}", *options], str(tmp_path / "other.ckpt"))
    ended = weights(fit.trainer.checkpoint_callback.best_model_path)
    assert all(torch.equal(tensor, ended[name]) for name, tensor in checkpoint["state_dict"].items())


@pytest.mark.slow
def test_a_seed_gives_the_first_task_other_weights(texts, tiny_bert_dir, tmp_path):
    script = load(EXPERIMENTS / "continual" / "sequence.py")
    options = [f"--model.encoder={tiny_bert_dir}", "--trainer.max_epochs=1"]
    config = EXPERIMENTS / "continual" / "none.yaml"
    heads = []
    for seed in (0, 1):
        (only,) = script.learn(config, seed, {"a": str(texts)}, tmp_path / "runs", options)
        heads.append(weights(only.weights))
    assert not all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.mark.slow
def test_the_second_and_third_task_find_in_the_cache_what_the_first_has_computed(texts, tiny_bert_dir, tmp_path):
    script = load(EXPERIMENTS / "multi_task" / "warm.py")
    plans = yaml.safe_load((EXPERIMENTS / "multi_task" / "warm.yaml").read_text())["plans"]
    options = [f"--model.encoder={tiny_bert_dir}", f"--data.data={texts}", "--data.batch_size=8"]
    for frozen in ("frozen", "half"):
        chosen = {plan: files for plan, files in plans.items() if plan.startswith(frozen)}
        values = script.share_cache(chosen, 0, tmp_path / "runs", options)
        rates = [each["hit_rate"] for each in values.values()]
        assert rates[0] < 0.75 < 0.8 < min(rates[1:])
        assert values[f"{frozen}_rating"]["trained_share"] < 0.7
        assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_fit_ends_with_the_first_validation_that_reaches_the_target(texts, tiny_bert_dir, tmp_path):
    script = load(EXPERIMENTS / "time_to_accuracy" / "measure_time.py")
    plans = yaml.safe_load((EXPERIMENTS / "time_to_accuracy" / "measure_time.yaml").read_text())["plans"]
    options = [f"--model.encoder={tiny_bert_dir}", f"--data.data={texts}", "--data.batch_size=4"]
    values = script.fit_all(plans, 0.0, 0, tmp_path / "runs", [*options, "--trainer.max_epochs=2"])
    assert list(values) == list(plans) and not (tmp_path / "runs").exists()
    for plan in values.values():
        # 117 of 216 texts in batches of 4, with a validation every 7 steps.
        assert plan["reached"] == 1 and plan["steps"] == plan["steps_to_target"] == 7
        assert plan["seconds_to_target"] > 0
    rates = {name: plan["hit_rate"] for name, plan in values.items()}
    # Some of the texts have the same tokens, so an empty cache has a few of them too.
    assert rates["full"] == rates["frozen"] == 0 and rates["cache_cold"] < 0.5 < rates["cache_warm"]


@pytest.mark.slow
def test_a_fit_that_does_not_reach_the_target_has_no_time(texts, tiny_bert_dir, tmp_path):
    script = load(EXPERIMENTS / "time_to_accuracy" / "measure_time.py")
    options = [f"--model.encoder={tiny_bert_dir}", f"--data.data={texts}", "--trainer.max_epochs=1"]
    values = script.fit_all({"full": "full.yaml"}, 1.1, 0, tmp_path / "runs", options)
    assert values["full"]["reached"] == 0 and values["full"]["steps"] == 4
    assert not {"seconds_to_target", "steps_to_target"} & set(values["full"])


def test_what_is_measured_is_measured_once_until_its_key_changes(tmp_path, capsys):
    calls = []

    def measure() -> dict[str, float]:
        calls.append(1)
        return {"a": float(len(calls))}

    file = tmp_path / "runs" / "seed_0.json"
    assert once(file, "key", "plan, seed 0", measure) == once(file, "key", "plan, seed 0", measure) == {"a": 1.0}
    assert "plan, seed 0: already measured" in capsys.readouterr().out
    assert once(file, "other", "plan, seed 0", measure) == {"a": 2.0}


def test_results_of_a_script_are_in_the_form_of_a_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr("sequences.ROOT", tmp_path)
    settings = {"plans": {"none": "none.yaml", "lora": "lora.yaml"}, "seeds": 2, "baseline": "none"}
    found = {
        (plan, seed): {"average_accuracy": 0.5, "trained_share": 1.0, "seconds": 1.0}
        for plan in settings["plans"]
        for seed in range(2)
    }
    publish(tmp_path / "sequence.py", settings, "average_accuracy", found, "abc")
    results = read_results(tmp_path / "results.csv")
    assert results.plans("sequence") == ["none", "lora"] and len(results.fits) == 4
    origin = results.origins["sequence"]
    assert (origin.command, origin.seeds, origin.commit) == ("python sequence.py", "0 1", "abc")
    assert origin.better == "larger"
    publish(tmp_path / "sequence.py", settings, "seconds", found, "abc", better="smaller")
    assert read_results(tmp_path / "results.csv").origins["sequence"].better == "smaller"
