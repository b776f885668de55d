from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from projects import fails

from lightning_freeze.advice.single_fit import FitScore, run_fit
from lightning_freeze.cli.command_line import main

CONFIG = """
model:
  encoder: tiny
  task: classification
data: {class_path: TextDataModule, init_args: {data: reviews.csv, batch_size: 8, split: [0.6, 0.3, 0.1]}}
trainer:
  max_epochs: 2
  accelerator: cpu
  callbacks:
    - class_path: EarlyStopping
      init_args: {monitor: val_loss}
    - class_path: LayerFreezing
      init_args: {layers: "embeddings,1"}
"""
SMALL = ["--config", "config.yaml", "--budget", "1", "--seeds", "2", "--examples", "30"]


@pytest.fixture
def config(project: Path) -> Path:
    Path("config.yaml").write_text(CONFIG)
    return project


def test_advice_from_a_csv_file_ends_in_a_config_that_fits_unchanged(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["advise", *SMALL])
    printed = capsys.readouterr().out
    assert "use it: lightning-freeze fit --config advice/recommended.yaml" in printed
    assert "as configured" in printed
    assert {path.name for path in Path("advice").iterdir()} >= {
        *("advice.html", "advice.json", "recommended.yaml", "fits.jsonl"),
    }
    found = json.loads(Path("advice/advice.json").read_text())
    names = [result["name"] for result in found["results"]]
    assert found["recommended"] in names
    assert {"full fine-tuning", "head only", "head, then all", "as configured"} <= set(names)
    assert [depth["name"] for depth in found["measurements"]["depths"]] == ["embeddings", "0", "1", "2", "3"]
    finalists = [result for result in found["results"] if result["scores"]]
    assert [len(result["scores"]) for result in finalists] == [2, 2]
    assert found["cost"] <= 1 + 2 * 2 + 1e-6
    written = yaml.safe_load(Path("advice/recommended.yaml").read_text())
    assert written["trainer"]["callbacks"][0]["class_path"].endswith("EarlyStopping")
    assert not Path("lightning_logs").exists()

    main(["fit", "--config", "advice/recommended.yaml"])
    assert "best checkpoint" in capsys.readouterr().out


def test_a_call_that_was_interrupted_goes_on_where_it_was(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[int] = []

    def interrupted(*args: Any, **options: Any) -> FitScore:
        if len(fits) == 12:
            raise KeyboardInterrupt
        fits.append(1)
        return run_fit(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr("lightning_freeze.advice.advice_run.run_fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(["advise", *SMALL])
    stored = Path("advice/fits.jsonl").read_text()
    assert len(stored.splitlines()) == 12
    main(["advise", *SMALL])
    assert Path("advice/fits.jsonl").read_text().startswith(stored)
    assert len(Path("advice/fits.jsonl").read_text().splitlines()) == 21
    capsys.readouterr()


def test_whatever_is_recommended_is_what_the_config_trains(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a huge tolerance the cheapest finalist is recommended."""
    main(["advise", *SMALL, "--tolerance", "1"])
    found = json.loads(Path("advice/advice.json").read_text())
    best = next(result for result in found["results"] if result["name"] == found["recommended"])
    assert found["recommended"] != "full fine-tuning"
    written = yaml.safe_load(Path("advice/recommended.yaml").read_text())["trainer"]["callbacks"]
    if found["recommended"] != "as configured":
        assert [entry["class_path"] for entry in written[1:]] == [entry["class_path"] for entry in best["entries"]]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0"], "budget=0.0: expected a number of runs above 0"),
        (["--seeds", "0"], "seeds=0: expected a whole number, 1 or more"),
        (["--examples", "3"], "examples=3: expected a whole number, 10 or more"),
        (["--tolerance", "-1"], "tolerance=-1.0: expected a number of 0 or more"),
        (["--buget", "2"], "There is no option --buget. Did you mean 'budget'?"),
        (["--monitor", "val_accurracy"], "monitor='val_accurracy' is not logged in validation"),
        (["--monitor", "quality"], "the name does not tell if larger is better"),
        (["--data.init_args.split", "[0.9, 0.0, 0.1]"], "has no validation data"),
    ],
)
def test_wrong_options(config: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert message in fails(capsys, "advise", *SMALL, *options)


def test_a_metric_that_is_almost_logged_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'val_accuracy'?" in fails(capsys, "advise", *SMALL, "--monitor", "val_accurracy")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["advise", "--help"])
    assert ended.value.code == 0
    assert "--budget RUNS" in capsys.readouterr().out
