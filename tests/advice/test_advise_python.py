from __future__ import annotations

import copy
import gc
import json
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from advice_projects import Own, OwnData, text_data, text_module
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from reviews import make_reviews, save_csv

from lightning_freeze import Advice, FrozenPrefixCache, LayerFreezing, Phase, PhasedFineTuning, StepTrigger, advise
from lightning_freeze.advice import advice_run
from lightning_freeze.advice.candidates import FULL, Candidate
from lightning_freeze.advice.fits.single_fit import FitScore, FitSettings, run_fit
from lightning_freeze.advice.output.config_text import config_text
from lightning_freeze.advice.output.text import layer_rows
from lightning_freeze.errors import ConfigurationError

FREEZE = Candidate("freeze", "a test", ({"class_path": "LayerFreezing", "init_args": {"layers": "embeddings,:3"}},))
QUICK: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "examples": 30, "budget": 1, "verbose": False}


@pytest.fixture
def two_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice_run, "candidates_for", lambda *_: [Candidate(FULL, "the reference"), FREEZE])


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return save_csv(tmp_path / "reviews.csv", make_reviews(40))


@pytest.fixture(autouse=True)
def always_worth_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.cache.prefix.break_even.SLOWER", 1e9)


def scores(
    monkeypatch: pytest.MonkeyPatch, qualities: dict[str, float], examples: int = 0
) -> list[tuple[str, int, float]]:
    """Let fits reach given scores without training; returns what is fitted."""
    fits: list[tuple[str, int, float]] = []

    def fake(settings: Any, callbacks: list[Callback], seed: int, share: float = 1.0) -> FitScore:
        name = "freeze" if any(isinstance(each, LayerFreezing) for each in callbacks) else FULL
        fits.append((name, seed, share))
        right = round(qualities[name] * examples) if examples else 0
        return FitScore(qualities[name], (1.0,) * right + (0.0,) * (examples - right), 1.0)

    monkeypatch.setattr(advice_run, "run_fit", fake)
    return fits


@pytest.mark.slow
def test_a_module_of_ones_own_is_advised_and_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    module = Own()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    advice = advise(module, OwnData(), **{**QUICK, "max_epochs": 1})
    assert torch.equal(torch.rand(1), drawn), "the random numbers of the caller go on as if nothing had happened"
    assert isinstance(advice, Advice)
    assert (advice.monitor, advice.mode) == ("val_loss", "min")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert advice.recommended in str(advice)
    assert len(advice.best.scores) == 2
    assert advice.best.relative_time is not None
    assert capsys.readouterr().out == ""
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, callbacks=advice.callbacks())  # fmt: skip
    trainer.fit(module, datamodule=OwnData())


@pytest.mark.slow
def test_arguments_about_devices_and_logs_do_no_harm(two_plans: None) -> None:
    options = {"devices": 2, "strategy": "ddp", "logger": True, "enable_checkpointing": True}
    assert advise(Own(), OwnData(), **QUICK, **options).best.scores


def test_the_better_plan_is_recommended_with_how_sure_that_is(
    two_plans: None, tiny_bert_dir: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, {FULL: 0.7, "freeze": 0.9}, examples=100)
    advice = advise(text_module(tiny_bert_dir), text_data(tiny_bert_dir, reviews), **QUICK)
    assert advice.recommended == "freeze"
    assert advice.difference is not None
    assert advice.difference.mean == pytest.approx(0.2)
    assert 0.1 < advice.difference.low < 0.2 < advice.difference.high < 0.3
    assert "Use freeze: val_accuracy 0.900 ± 0.000 over 2 seeds, full fine-tuning 0.700 ± 0.000." in str(advice)
    assert advice.callbacks()[0].layers == "embeddings,:3"  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(("quality", "recommended"), [(0.696, "freeze"), (0.69, FULL)])
def test_a_cheaper_plan_may_be_worse_by_the_tolerance(
    two_plans: None,
    tiny_bert_dir: Path,
    reviews: Path,
    monkeypatch: pytest.MonkeyPatch,
    quality: float,
    recommended: str,
) -> None:
    scores(monkeypatch, {FULL: 0.7, "freeze": quality})
    advice = advise(text_module(tiny_bert_dir), text_data(tiny_bert_dir, reviews), **QUICK)
    assert advice.recommended == recommended


@pytest.mark.slow
def test_smaller_is_better_where_the_metric_says_so(two_plans: None, monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, {FULL: 0.7, "freeze": 0.3})
    advice = advise(Own(), OwnData(), **QUICK)
    assert advice.recommended == "freeze"
    assert advice.difference is not None
    assert advice.difference.mean == pytest.approx(0.4), "positive is better"


@pytest.mark.slow
def test_a_metric_that_is_not_a_number_never_wins(two_plans: None, monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, {FULL: 0.7, "freeze": float("nan")})
    assert advise(Own(), OwnData(), **QUICK).recommended == FULL


def test_accuracy_by_example_is_that_of_the_metric(tiny_bert_dir: Path, reviews: Path) -> None:
    data = text_data(tiny_bert_dir, reviews)
    settings = FitSettings(lambda: text_module(tiny_bert_dir), data, "val_accuracy",
                           {"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0})  # fmt: skip
    found = run_fit(settings, [], seed=0)
    assert len(found.examples) == len(data.encoded["val"])
    assert sum(found.examples) / len(found.examples) == pytest.approx(found.score)
    assert run_fit(settings, [], seed=0).examples == found.examples
    short = run_fit(settings, [], seed=1, share=0.1)
    assert len(short.examples) == len(found.examples)


@pytest.mark.slow
def test_there_is_one_fit_in_memory_at_a_time(two_plans: None) -> None:
    made: list[weakref.ref[LightningModule]] = []
    alive: list[int] = []

    def make() -> LightningModule:
        alive.append(sum(ref() is not None for ref in made))
        module = Own()
        made.append(weakref.ref(module))
        return module

    gc.disable()
    try:
        advise(make, OwnData(), **QUICK)
    finally:
        gc.enable()
    assert len(made) == 5
    assert max(alive) == 1, "the one that is planned with"


@pytest.mark.slow
def test_fits_of_frozen_prefixes_share_one_cache(
    two_plans: None, tiny_bert_dir: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[FrozenPrefixCache] = []

    def watched(settings: Any, callbacks: list[Callback], *args: Any, **options: Any) -> FitScore:
        found = run_fit(settings, callbacks, *args, **options)
        if any(isinstance(each, LayerFreezing) for each in callbacks):
            caches.extend(each for each in callbacks if isinstance(each, FrozenPrefixCache))
        return found

    monkeypatch.setattr(advice_run, "run_fit", watched)
    monkeypatch.setattr(advice_run, "_CACHE_GAIN", -9)
    folder = tmp_path / "advice"
    advice = advise(text_module(tiny_bert_dir), text_data(tiny_bert_dir, reviews), folder=folder, **QUICK)
    assert {cache.cache_dir for cache in caches} == {folder / "cache"}
    first, second = caches
    assert first.hit_rate == 0.5, "the second of two epochs"
    assert second.hit_rate > 0.8, "all but the batch that is compared with a real pass"
    entry = advice.result("freeze").entries[-1]
    assert entry == {"class_path": "FrozenPrefixCache", "init_args": {"cache_dir": f"{folder}/cache"}}


@pytest.mark.slow
def test_a_call_that_was_interrupted_goes_on_where_it_was(
    two_plans: None, tiny_bert_dir: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[int] = []

    def interrupted(*args: Any, **options: Any) -> FitScore:
        if len(fits) == 3:
            raise KeyboardInterrupt
        fits.append(1)
        return run_fit(*args, **options)

    def call() -> Advice:
        return advise(
            text_module(tiny_bert_dir), text_data(tiny_bert_dir, reviews), folder=tmp_path / "advice", **QUICK
        )

    torch.manual_seed(0)
    with monkeypatch.context() as patched:
        patched.setattr(advice_run, "run_fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call()
    file = tmp_path / "advice" / "fits.jsonl"
    stored = file.read_text()
    assert len(stored.splitlines()) == 3
    file.write_text(stored + '{"key": "cut o')
    torch.manual_seed(0)
    advice = call()
    lines = file.read_text().splitlines()
    assert lines[:3] == stored.splitlines()
    assert len(lines) == 5, "the line that was cut off, and one more fit"
    assert advice.best.scores


@pytest.mark.slow
def test_scores_of_another_set_up_are_not_used(
    two_plans: None, tiny_bert_dir: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = scores(monkeypatch, {FULL: 0.7, "freeze": 0.9})
    torch.manual_seed(0)
    module, data = text_module(tiny_bert_dir), text_data(tiny_bert_dir, reviews)
    advise(module, data, folder=tmp_path, **QUICK)
    assert len(fits) == 4
    advise(module, data, folder=tmp_path, **QUICK)
    assert len(fits) == 4
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"max_epochs": 3}),
        ({"model_kwargs": {"hidden_dropout_prob": 0.3}}, {}),
        ({"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-4)}, {}),
        ({"optimizer": lambda p: torch.optim.AdamW(p, lr=5e-5, weight_decay=0.3)}, {}),
        ({"warmup_ratio": 0.4}, {}),
    ]
    for number, (model, run) in enumerate(changes, start=2):
        torch.manual_seed(0)
        advise(text_module(tiny_bert_dir, **model), data, folder=tmp_path, **{**QUICK, **run})
        assert len(fits) == 4 * number, (model, run)


@pytest.mark.slow
def test_scores_of_other_data_are_not_used(
    two_plans: None, tiny_bert_dir: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = scores(monkeypatch, {FULL: 0.7, "freeze": 0.9})
    module = text_module(tiny_bert_dir)
    advise(module, text_data(tiny_bert_dir, reviews), folder=tmp_path, **QUICK)
    rows = make_reviews(40)
    rows[-1]["text"] += " so"
    save_csv(reviews, rows)
    advise(module, text_data(tiny_bert_dir, reviews), folder=tmp_path, **QUICK)
    assert len(fits) == 8


@pytest.mark.slow
def test_very_short_runs_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [FULL, "freeze", "a", "b"]
    monkeypatch.setattr(advice_run, "candidates_for", lambda *_: [replace(FREEZE, name=name) for name in names])
    monkeypatch.setattr(advice_run, "run_fit", lambda *_: FitScore(0.5, (), 1.0))
    short = advise(Own(), OwnData(), **QUICK)
    assert short.notes == (
        "The shortest runs had about 3 optimizer steps, which hardly tell plans apart: a larger budget or a longer run "
        "makes them longer.",
    )
    assert advise(Own(), OwnData(), **{**QUICK, "max_epochs": 20}).notes == ()


@pytest.mark.slow
def test_a_plan_that_cannot_be_trained_is_left_out_with_its_reason(
    tiny_bert_dir: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Candidate("wrong", "a test", ({"class_path": "LayerFreezing", "init_args": {"layers": "nowhere"}},))
    monkeypatch.setattr(advice_run, "candidates_for", lambda *_: [Candidate(FULL, "the reference"), wrong])
    scores(monkeypatch, {FULL: 0.7})
    advice = advise(text_module(tiny_bert_dir), text_data(tiny_bert_dir, reviews), **QUICK)
    assert advice.recommended == FULL
    assert "nowhere" in advice.result("wrong").problem


@pytest.mark.slow
def test_callbacks_of_the_user_take_part_and_checkpoints_do_not(two_plans: None) -> None:
    started: list[str] = []

    class Own_(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            started.append(",".join(type(each).__name__ for each in trainer.callbacks))  # type: ignore[attr-defined]

    callbacks = [LayerFreezing("0", verbose=False), Own_(), ModelCheckpoint(), FrozenPrefixCache()]
    advice = advise(Own(), OwnData(), callbacks=callbacks, **QUICK)
    assert {result.name for result in advice.results} == {FULL, "freeze", "as configured"}
    assert started
    assert not any("ModelCheckpoint" in names for names in started)


@pytest.fixture
def advice(two_plans: None, tiny_bert_dir: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Advice]:
    scores(monkeypatch, {FULL: 0.7, "freeze": 0.9}, examples=100)
    yield advise(text_module(tiny_bert_dir), text_data(tiny_bert_dir, reviews), **{**QUICK, "budget": 2})


@pytest.mark.slow
def test_files_of_advice(advice: Advice, tmp_path: Path) -> None:
    assert [path.name for path in advice.save(tmp_path / "a")] == ["advice.json", "recommended.yaml", "advice.html"]
    content = json.loads((tmp_path / "a/advice.json").read_text())
    assert {result["name"]: result["mean"] for result in content["results"]} == {FULL: 0.7, "freeze": 0.9}
    text = (tmp_path / "a/recommended.yaml").read_text()
    assert yaml.safe_load(text)["trainer"]["callbacks"][0] == FREEZE.entries[0]
    assert "# Use freeze: val_accuracy 0.900" in text
    config = {"data": {"label": "Étiquette 中"}}
    assert "label: Étiquette 中\n" in config_text(advice, config)


@pytest.mark.slow
def test_the_page_is_self_contained_and_escapes_names(advice: Advice, tmp_path: Path) -> None:
    named = [replace(each, name="<b>x</b>" if each.name == "freeze" else each.name) for each in advice.results]
    odd = replace(advice, results=tuple(named), recommended="<b>x</b>", monitor="val_$x$")
    odd.save(tmp_path)
    page = (tmp_path / "advice.html").read_text()
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x" in page
    assert not re.search(r"(src|href)=\"http", page)
    assert "<script" not in page
    assert page.count("<svg") == 3
    assert "Layers before training" in page
    assert "prefers-color-scheme: dark" in page


@pytest.mark.slow
def test_layers_are_listed_from_the_input_up_where_the_embeddings_have_no_gradients(advice: Advice) -> None:
    layers = dict(advice.measurements.layers)
    del layers["embeddings"]
    adapted = replace(advice, measurements=replace(advice.measurements, layers=layers))
    names = [row[0] for row in layer_rows(adapted)]
    assert (names[0], names[-1]) == ("embeddings", "head")


@pytest.mark.slow
def test_a_page_without_measurements(advice: Advice, tmp_path: Path) -> None:
    from lightning_freeze.advice.measuring import Measurements

    replace(advice, measurements=Measurements(), difference=None).save(tmp_path)
    page = (tmp_path / "advice.html").read_text()
    assert page.count("<svg") == 1
    assert "cannot be said" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": None}, "advise needs the length of the run"),
        ({"budget": float("nan")}, "budget=nan"),
        ({"seeds": True}, "seeds=True"),
        ({"monitor": "score"}, "monitor='score': the name does not tell"),
        ({"tolerance": "little"}, "tolerance='little'"),
        ({"max_epoch": 3}, r"max_epoch is no argument of advise or of Trainer. Did you mean 'max_epochs'\?"),
        ({"toleranc": 3}, "Did you mean 'tolerance'"),
        ({"mode": "mx"}, r"mode='mx': expected 'min' or 'max'. Did you mean 'max'\?"),
        ({"callbacks": LayerFreezing("50%")}, "callbacks=.*: expected a list of callbacks. Did you mean"),
        ({"callbacks": None}, "callbacks=None: expected a list of callbacks; leave it out"),
        ({"callbacks": "LISA"}, "callbacks='LISA': expected a list of callbacks"),
        ({"callbacks": ["LISA"]}, r"callbacks holds 'LISA': expected callbacks, .* Did you mean LISA\(\)\?"),
        ({"callbacks": [LayerFreezing]}, r"Did you mean LayerFreezing\(\)\?"),
        ({"monitor": 5}, "monitor=5: expected the name of a metric"),
        ({"folder": 5}, "folder=5: expected the path of a folder"),
        ({"max_epochs": "1"}, r"max_epochs='1': expected a whole number or None. Did you mean 1\?"),
        ({"max_steps": 2.5}, "max_steps=2.5: expected a whole number"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        advise(Own(), OwnData(), **{**QUICK, **options})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (OwnData().train_dataloader(), "datamodule is a DataLoader: expected a LightningDataModule. .*from_datasets"),
        (OwnData, r"datamodule is the class OwnData: .* Did you mean OwnData\(\.\.\.\)\?"),
        (None, "datamodule is None: expected a LightningDataModule"),
    ],
)
def test_what_is_no_data_module_is_named(data: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        advise(Own(), data, **QUICK)


class Length(Callback):
    """Notes how long a run was, and when its callbacks changed what trains."""

    def __init__(self) -> None:
        self.epochs, self.steps, self.validations, self.phases = 0, 0, 0, []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.phases += [c.schedule.phase for c in trainer.callbacks if isinstance(c, PhasedFineTuning)]  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.validations += 1

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self.epochs, self.steps = trainer.current_epoch, trainer.global_step


def settings(**options: Any) -> FitSettings:
    trainer = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, **options}
    return FitSettings(Own, OwnData(), "val_loss", trainer, batches_per_epoch=6)


def test_a_short_run_where_steps_between_validations_are_counted_across_epochs() -> None:
    length = Length()
    fit = settings(check_val_every_n_epoch=None, val_check_interval=4)
    run_fit(fit, [length], seed=0, share=0.5)
    assert (length.epochs, length.steps) == (2, 6)
    assert length.validations == 3, "after each epoch, and at the end"
    length = Length()
    run_fit(settings(check_val_every_n_epoch=2), [length], seed=0, share=0.5)
    assert length.validations == 2, "after the second epoch, and at the end"


def test_step_triggers_of_the_user_are_shorter_in_a_short_run() -> None:
    own = PhasedFineTuning([Phase("head", StepTrigger(6)), Phase("1:,head")], verbose=False)
    candidate = Candidate("as configured", "", (), lambda: copy.deepcopy([own]))
    length = Length()
    run_fit(settings(), [*candidate.at(0.5).build(), length], seed=0, share=0.5)
    assert length.phases == [0, 0, 0, 1, 1, 1]
    length = Length()
    run_fit(settings(), [*candidate.build(), length], seed=0)
    assert length.phases == [0] * 6 + [1] * 6


def test_what_is_no_module_is_named() -> None:
    with pytest.raises(ConfigurationError, match="module is a int: expected a LightningModule"):
        advise(3, OwnData(), **QUICK)  # type: ignore[arg-type]
