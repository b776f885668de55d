"""`fit` writes a page about the run by default."""

from __future__ import annotations

from csv import DictReader
from pathlib import Path

import pytest
import yaml
from cli.projects import FIT, QUIET, checkpoint, fails
from run_report.reading import CHARTS, Page

from lightning_freeze.cli import command_line

FIRST = Path("lightning_logs/version_0/freeze_report.html")


@pytest.fixture(autouse=True)
def figures_of_reports() -> None:
    """Here they are drawn, unlike in the other tests of the command line."""


def fit(*more: str) -> None:
    command_line.main(["fit", *FIT, *QUIET, "--trainer.max_epochs=2", *more])


@pytest.mark.slow
def test_fit_writes_a_report_beside_its_logs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    assert set(Page(FIRST).charts) == set(CHARTS)
    assert f"freeze report: {FIRST}" in capsys.readouterr().out
    assert "freeze/grad_norm/head" in Path("lightning_logs/version_0/metrics.csv").read_text()


@pytest.mark.slow
def test_the_report_compares_the_run_with_its_plan(project: Path) -> None:
    fit("--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=embeddings")
    page = Page(FIRST)
    assert "of the time of full fine-tuning in these phases" in page.text
    tables = page.tables
    together, planned = (tables["memory"][0].index(name) for name in ("together", "planned"))
    assert tables["memory"][1][together] == tables["memory"][1][planned]
    assert 0 < float(tables["time"][1][-1]) < 1  # the time of full fine-tuning is 1


@pytest.mark.slow
def test_the_plan_changes_nothing(project: Path) -> None:
    losses = []
    for report in ("true", "false"):
        fit(f"--report={report}")
        with Path(f"lightning_logs/version_{len(losses)}/metrics.csv").open() as lines:
            losses.append([row["val_loss"] for row in DictReader(lines) if row["val_loss"]])
    assert losses[0] == losses[1] != []


def test_it_can_be_turned_off_and_the_saved_config_says_so(project: Path) -> None:
    fit("--report=false")
    assert not FIRST.exists()
    assert yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())["report"] is False


@pytest.mark.slow
def test_a_report_in_the_config_is_the_only_one(project: Path) -> None:
    fit("--trainer.callbacks+=FreezeReport", "--trainer.callbacks.filename=mine.html")
    assert [path.name for path in project.rglob("*.html")] == ["mine.html"]


@pytest.mark.slow
def test_the_saved_config_tests_and_resumes(project: Path) -> None:
    fit()
    saved = "lightning_logs/version_0/config.yaml"
    command_line.main(["test", "--config", saved, "--ckpt_path", checkpoint(), *QUIET])
    before = FIRST.read_text()
    command_line.main(["fit", "--config", saved, "--ckpt_path", checkpoint(), "--trainer.max_epochs=3", *QUIET])
    assert FIRST.read_text() == before
    (path,) = set(project.rglob("*.html")) - {project / FIRST}
    page = Page(path)
    assert "training was resumed" in page.text
    assert page.data["samples"]["records"][0]["step"] == 0


def test_without_the_extra_fit_works(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lightning_freeze.run_report.freeze_report.missing_libraries", lambda: ["jinja2"])
    with caplog.at_level("INFO"):
        fit()
    assert sum("lightning-freeze[report]" in message for message in caplog.messages) == 1
    assert not list(project.rglob("*.html"))
    assert checkpoint()


def test_a_wrong_option_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "fit", *FIT, "--report=maybe")
    assert "report" in message
    message = fails(
        capsys, "fit", *FIT, "--trainer.callbacks+=FreezeReport", "--trainer.callbacks.every_n_steps=0", *QUIET
    )
    assert "every_n_steps=0" in message
    message = fails(capsys, "fit", *FIT, "--trainer.callbacks+=FreezeReprot", *QUIET)
    assert "Did you mean 'FreezeReport'?" in message
