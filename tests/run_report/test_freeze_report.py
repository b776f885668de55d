"""The report of a run with callbacks of this package: what it shows, logs, and how it survives."""

from __future__ import annotations

import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from run_report.reading import CHARTS, Page
from toys import fit, loader, make, trainer, weights

from lightning_freeze import (
    DiscriminativeLR,
    DynamicFreezing,
    EpochTrigger,
    FreezeReport,
    FrozenPrefixCache,
    GradualUnfreezing,
    LayerFreezing,
    OneLayerAtATime,
    Phase,
    PhasedFineTuning,
    PlateauTrigger,
    plan_training,
)
from lightning_freeze.errors import ConfigurationError


def adamw(module: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def report(**options: Any) -> FreezeReport:
    return FreezeReport(**{"every_n_steps": 1, "verbose": False, **options})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run that unfreezes on a plateau, then after an epoch."""
    phases = [
        Phase("head", PlateauTrigger("scripted", patience=1)),
        Phase("3,head", EpochTrigger(1)),
        Phase("2:,head", lr=0.5),
    ]
    callback = report()
    module = make(make_optimizers=adamw, values=[1.0, 2.0, 2.0, 0.5, 0.4])
    fit(
        module,
        PhasedFineTuning(phases, verbose=False),
        callback,
        max_epochs=5,
        tmp_path=tmp_path_factory.mktemp("plateau"),
    )
    return Page(callback.path or "")


def test_every_chart_is_there_with_its_table(page: Page) -> None:
    assert set(page.charts) == set(CHARTS)
    assert all(len(page.tables[chart]) > 1 for chart in CHARTS)


def test_phases_begin_when_and_for_the_reason_that_the_schedule_says(page: Page) -> None:
    assert "Phase 1, epoch 0, step 0 (the run began): head trains" in page.text
    assert "Phase 2, epoch 3, step 12: 3, head train" in page.text
    assert "because scripted had not improved on 1 for 2 validations." in page.text
    assert "Phase 3, epoch 4, step 16: 2, 3, head train" in page.text
    assert "because 1 epoch had passed." in page.text


def test_the_timeline_holds_phases_rates_and_the_metric(page: Page) -> None:
    head, *rows = page.tables["timeline"]
    assert head[-1] == "best scripted"
    assert [row[2] for row in rows] == ["0", "12", "16"]
    assert [row[6] for row in rows] == ["0.01", "0.01", "0.005"]
    assert [row[7] for row in rows] == ["1", "0.5", "0.4"]
    frozen = {row[0]: row[1:].count("frozen") for row in page.tables["rates"][1:]}
    assert frozen["head"] == 0
    assert frozen["embeddings"] == len(page.tables["rates"][0]) - 1
    assert 0 < frozen["3"] < frozen["2"]


def test_backward_stops_at_the_lowest_layer_that_trains(page: Page) -> None:
    assert [row[2:] for row in page.tables["backward"][1:]] == [["none", "head"], ["none", "3"], ["none", "2"]]


def test_the_page_needs_nothing_else_and_is_small(page: Page) -> None:
    assert "script" not in page.tags
    assert all(address.startswith(("#", "data:")) for address in page.loaded)
    assert "http" not in page.html.replace("http://www.w3.org/", "").replace("https://www.w3.org/", "")
    assert len(page.html.encode()) < 1_500_000
    assert "prefers-color-scheme: dark" in page.html


def test_the_numbers_are_in_the_page(page: Page) -> None:
    assert page.data["layers"] == ["embeddings", "0", "1", "2", "3", "head"]
    assert len(page.data["samples"]["records"]) == 20


class Norms(Callback):
    """The norm of each layer's gradient, the plain way."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        layers = {"head": pl_module.classifier, "3": pl_module.encoder.layers[3]}
        self.found.append(
            {
                name: math.sqrt(sum(float(p.grad.pow(2).sum()) for p in layer.parameters() if p.grad is not None))
                for name, layer in layers.items()
            }
        )


@pytest.mark.slow
def test_gradients_rates_and_distances_are_true(tmp_path: Path) -> None:
    callback, norms = report(), Norms()
    module = make(make_optimizers=adamw)
    start = weights(module)
    fit(module, DiscriminativeLR(0.5, verbose=False), callback, norms, tmp_path=tmp_path, max_epochs=2)
    history = callback.state_dict()["history"]
    samples = history["samples"]["records"]
    assert len(samples) == 8
    for sample, expected in zip(samples, norms.found, strict=True):
        assert sample["gradients"][5] == pytest.approx(expected["head"])
        assert sample["gradients"][4] == pytest.approx(expected["3"])
    assert samples[0]["rates"] == pytest.approx([1e-2 * 0.5**height for height in range(5, -1, -1)])
    for index, prefix in ((5, "classifier."), (1, "encoder.layers.0.")):
        names = [name for name in start if name.startswith(prefix)]
        moved = sum(float((module.state_dict()[n] - start[n]).pow(2).sum()) for n in names)
        norm = sum(float(start[n].pow(2).sum()) for n in names)
        assert history["distances"][index] == pytest.approx(math.sqrt(moved / norm), rel=1e-4)


@pytest.mark.slow
def test_a_frozen_layer_has_no_gradient_and_stays_where_it_is(tmp_path: Path) -> None:
    callback = report()
    fit(make(make_optimizers=adamw), LayerFreezing("embeddings,:2", verbose=False), callback, tmp_path=tmp_path)
    history = callback.state_dict()["history"]
    assert history["distances"][:3] == [0, 0, 0]
    assert all(sample["gradients"][:3] == [None] * 3 for sample in history["samples"]["records"])
    (phase,) = history["phases"]
    assert phase["lowest"] == 3
    memory = phase["memory"]
    sizes = {name: p.numel() * 8 for name, p in make().named_parameters()}
    frozen = sum(s for n, s in sizes.items() if n.startswith(("encoder.emb", "encoder.layers.0", "encoder.layers.1")))
    assert memory["gradients"] == sum(sizes.values()) - frozen
    assert memory["full_gradients"] == sum(sizes.values())
    assert 2 * memory["gradients"] <= memory["optimizer"] <= 2 * memory["gradients"] + 4 * len(sizes)


@pytest.mark.slow
def test_backward_through_frozen_layers_is_shown(tmp_path: Path) -> None:
    callback = report()
    with pytest.warns(UserWarning, match="backward still runs"):
        fit(make(make_optimizers=adamw), LayerFreezing(":2", verbose=False), callback, tmp_path=tmp_path)
    page = Page(callback.path or "")
    assert page.tables["backward"][1][2:] == ["0, 1", "embeddings"]
    assert "backward still runs through all of them" in page.text  # the warning is in the page


@pytest.mark.slow
def test_scalars_go_to_the_loggers(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callback = report(every_n_steps=2)
    schedule = GradualUnfreezing(stop="2", verbose=False)
    fit(make(make_optimizers=adamw), schedule, callback, logger=logger, tmp_path=tmp_path)
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    names = set(lines[0].split(","))
    assert {
        "freeze/phase",
        "freeze/trainable_parameters",
        "freeze/batch_seconds",
        "freeze/gradient_bytes",
        "freeze/optimizer_bytes",
        "freeze/lr/head",
        "freeze/grad_norm/head",
        "freeze/relative_grad_norm/head",
        "freeze/distance/embeddings",
    } <= names
    assert "freeze/grad_norm/embeddings" not in names  # three epochs unfreeze the head and two blocks
    column = lines[0].split(",").index("freeze/trainable_parameters")
    assert [line.split(",")[column] for line in lines[1:] if line.split(",")[column]] == [
        *["18.0"] * 2, *["106.0"] * 2, *["194.0"] * 2
    ]  # fmt: skip
    assert Path(logger.log_dir, "freeze_report.html").is_file()


@pytest.mark.slow
def test_log_off_and_other_places(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callback = report(log=False, dirpath=tmp_path / "deep" / "folder", filename="other.html")
    fit(make(), callback, logger=logger, tmp_path=tmp_path)
    assert "freeze/" not in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert (tmp_path / "deep" / "folder" / "other.html").is_file()
    assert [path.name for path in (tmp_path / "deep" / "folder").iterdir()] == ["other.html"]  # no draft is left


def test_the_run_is_the_same_with_and_without_a_report(tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [report()]):
        torch.manual_seed(3)
        module = make(make_optimizers=adamw, dropout=0.1)
        fit(module, *callbacks, GradualUnfreezing(verbose=False), tmp_path=tmp_path, max_epochs=6)
        ends.append((weights(module), torch.rand(1)))
    assert all(torch.equal(a, b) for a, b in zip(ends[0][0].values(), ends[1][0].values(), strict=True))
    assert torch.equal(ends[0][1], ends[1][1])


@pytest.mark.slow
def test_a_resumed_run_continues_its_history(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    module = make(make_optimizers=adamw)
    start = weights(module)
    options: dict[str, Any] = {"tmp_path": tmp_path, "enable_checkpointing": True}
    schedule: dict[str, Any] = {"stop": "1", "verbose": False}
    fit(module, GradualUnfreezing(**schedule), report(), saving, max_epochs=4, **options)
    again, callback = make(seed=5, make_optimizers=adamw), report()
    last = tmp_path / "epoch=1.ckpt"
    fit(again, GradualUnfreezing(**schedule), callback, max_epochs=4, ckpt_path=last, **options)
    history = callback.state_dict()["history"]
    assert [sample["step"] for sample in history["samples"]["records"]] == list(range(16))
    assert [phase["step"] for phase in history["phases"]] == [0, 4, 8, 12]
    assert [each["step"] for each in history["validations"]["records"]] == [4, 8, 12, 16]
    assert {"step": 8, "text": "training was resumed"} in history["events"]
    # Far from the weights of the first run, not from those of the checkpoint.
    weight = "classifier.weight"
    moved = again.state_dict()[weight] - start[weight]
    head = torch.cat([moved.flatten(), again.state_dict()["classifier.bias"] - start["classifier.bias"]])
    norm = torch.cat([start[weight].flatten(), start["classifier.bias"]]).norm()
    assert history["distances"][-1] == pytest.approx(float(head.norm() / norm), rel=1e-4)
    assert "training was resumed" in Page(callback.path or "").text


@pytest.mark.slow
def test_a_report_that_joins_a_resumed_run_begins_there(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    options: dict[str, Any] = {"tmp_path": tmp_path, "enable_checkpointing": True}
    fit(make(), saving, max_epochs=1, **options)
    callback = report()
    fit(make(), callback, max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt", **options)
    assert callback.state_dict()["history"]["began"] == 4
    assert "The history begins at step 4." in Page(callback.path or "").text


@pytest.mark.slow
def test_a_history_of_other_layers_is_not_continued(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    options: dict[str, Any] = {"tmp_path": tmp_path, "enable_checkpointing": True}
    fit(make(), report(), saving, max_epochs=1, **options)
    callback = report(groups={"whole": ["encoder", "classifier"]})
    fit(make(), callback, max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt", **options)
    history = callback.state_dict()["history"]
    assert (history["layers"], history["began"]) == (["whole"], 4)
    assert "cannot be continued" in history["events"][0]["text"]


@pytest.mark.slow
def test_two_fits_with_one_callback_are_two_histories(tmp_path: Path) -> None:
    callback = report()
    fit(make(), callback, tmp_path=tmp_path, max_epochs=2)
    fit(make(), callback, tmp_path=tmp_path, max_epochs=1)
    assert callback.state_dict()["history"]["batches"] == 4


@pytest.mark.slow
def test_a_trainer_that_goes_on_continues_its_history(tmp_path: Path) -> None:
    callback, module = report(), make()
    the_trainer = trainer(callback, tmp_path=tmp_path, max_epochs=1)
    the_trainer.fit(module, loader())
    the_trainer.fit_loop.max_epochs = 2
    the_trainer.fit(module, loader())
    assert callback.state_dict()["history"]["batches"] == 8


@pytest.mark.slow
def test_cache_hits(tmp_path: Path) -> None:
    callback = report()
    cache = FrozenPrefixCache(verbose=False)
    fit(make(), LayerFreezing("embeddings,:2", verbose=False), cache, callback, tmp_path=tmp_path, max_epochs=3)
    page = Page(callback.path or "")
    assert "cache" in page.charts
    assert float(page.tables["cache"][-1][1]) == pytest.approx(cache.hit_rate, abs=1e-3)
    assert cache.hit_rate > 0.5
    assert "samples were found" in page.text


@pytest.mark.slow
def test_a_plan_is_compared_with_the_run(tmp_path: Path) -> None:
    batch = next(iter(loader()))
    callbacks = [GradualUnfreezing(verbose=False)]
    plan = plan_training(make(make_optimizers=adamw), callbacks, batch, max_epochs=6, batches_per_epoch=4)
    file = plan.save(tmp_path / "plan.json")
    callback = report(plan=file)
    fit(make(make_optimizers=adamw), *callbacks, callback, tmp_path=tmp_path, max_epochs=6)
    page = Page(callback.path or "")
    assert page.tables["time"][0][-2:] == ["planned", "planned, relative to full fine-tuning"]
    assert "-" not in [row[-1] for row in page.tables["time"][1:]]
    together, planned = (page.tables["memory"][0].index(name) for name in ("together", "planned"))
    assert all(row[together] == row[planned] for row in page.tables["memory"][2:-1])


@pytest.mark.slow
def test_warnings_are_listed_once_and_still_shown(tmp_path: Path) -> None:
    class Warns(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            warnings.warn("the <b>data</b> is odd", stacklevel=1)
            warnings.warn("old", DeprecationWarning, stacklevel=1)

    shown_by = warnings.showwarning
    callback = report()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        fit(make(), callback, Warns(), tmp_path=tmp_path, max_epochs=1)
    assert sum("data" in str(each.message) for each in shown) == 4
    assert warnings.showwarning is shown_by
    page = Page(callback.path or "")
    assert "the <b>data</b> is odd (step 1, 4 times)" in page.text
    assert "<b>data" not in page.html
    assert "old" not in [warned["text"] for warned in page.data["warnings"]]


@pytest.mark.slow
def test_a_warning_that_an_earlier_run_has_shown_is_listed(tmp_path: Path) -> None:
    texts = []
    with warnings.catch_warnings():
        warnings.simplefilter("once")
        for run in range(2):
            callback = report()
            freezing = LayerFreezing(":2", verbose=False)
            fit(make(make_optimizers=adamw), freezing, callback, tmp_path=tmp_path / str(run))
            texts.append([warned["text"] for warned in Page(callback.path or "").data["warnings"]])
    assert any("backward still runs" in text for text in texts[0])
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_plan_need_not_be_a_file(tmp_path: Path) -> None:
    callback = report()
    freezing = LayerFreezing(verbose=False, layers="embeddings,:1")
    callback.compare_with(plan_training(make(make_optimizers=adamw), [freezing], next(iter(loader())), max_epochs=1))
    fit(make(make_optimizers=adamw), freezing, callback, tmp_path=tmp_path, max_epochs=1)
    assert "planned" in Page(callback.path or "").tables["memory"][0]


def test_a_failure_of_the_report_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no norms")

    monkeypatch.setattr("lightning_freeze.run_report.recorder.GradientNorms.measure", fails)
    module = make()
    with pytest.warns(UserWarning, match="FreezeReport is switched off.*no norms.*goes on without"):
        the_trainer = fit(module, report(), tmp_path=tmp_path)
    assert the_trainer.global_step == 12


@pytest.mark.slow
def test_a_page_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    callback = report(dirpath=tmp_path / "taken")
    with pytest.warns(UserWarning, match=r"FreezeReport cannot write .*freeze_report.html") as caught:
        the_trainer = fit(make(), callback, tmp_path=tmp_path)
    assert the_trainer.global_step == 12
    assert sum("cannot write" in str(each.message) for each in caught) == 1


def test_without_the_extra_one_line_is_printed_and_scalars_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lightning_freeze.run_report.freeze_report.missing_libraries", lambda: ["matplotlib"])
    logger = CSVLogger(tmp_path)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(make(), report(), logger=logger, tmp_path=tmp_path)
    assert sum("pip install 'lightning-freeze[report]'" in message for message in caplog.messages) == 1
    assert "freeze/phase" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0.*1 or more"),
        ({"every_n_steps": "5"}, "whole number"),
        ({"filename": "report.pdf"}, "name of an HTML file"),
        ({"filename": "folder/report.html"}, "name of an HTML file"),
        ({"dirpath": ""}, "expected a folder"),
        ({"monitor": ""}, "name of a logged metric"),
        ({"mode": "min"}, "no effect without monitor"),
        ({"monitor": "val_loss", "mode": "mni"}, "Did you mean 'min'"),
        ({"plan": "none.json"}, "cannot be read"),
        ({"log": "yes"}, "log='yes'"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        FreezeReport(**options)


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"phases": [1]}')
    with pytest.raises(ConfigurationError, match="lightning-freeze plan --output"):
        FreezeReport(plan=tmp_path / "plan.json")


def test_two_reports_and_wrong_groups_are_refused(tmp_path: Path) -> None:
    class Another(FreezeReport):
        pass

    with pytest.raises(ConfigurationError, match="2 FreezeReport callbacks: expected one"):
        fit(make(), report(), Another(), tmp_path=tmp_path)
    with pytest.raises(ConfigurationError, match=r"FreezeReport: .*nothing"):
        fit(make(), report(groups={"stem": ["nothing"]}), tmp_path=tmp_path)


@pytest.mark.slow
def test_a_copy_holds_no_run(tmp_path: Path) -> None:
    callback = report()
    fit(make(), callback, tmp_path=tmp_path)
    twin = pickle.loads(pickle.dumps(callback))
    assert twin.state_dict()["history"] == callback.state_dict()["history"]
    assert twin.path is None


@pytest.mark.slow
def test_the_turns_of_a_policy_are_phases(tmp_path: Path) -> None:
    callback = report()
    fit(make(), DynamicFreezing(OneLayerAtATime(), interval=2), callback, tmp_path=tmp_path, max_epochs=2)
    causes = [phase["cause"] for phase in callback.state_dict()["history"]["phases"]]
    assert causes == ["the run began", *(f"turn {turn} of DynamicFreezing began" for turn in (2, 3, 4))]
