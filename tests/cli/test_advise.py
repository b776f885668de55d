from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from projects import fails

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


@pytest.mark.slow
def test_advice_from_a_csv_file_ends_in_a_config_that_fits_unchanged(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # With a huge tolerance the cheapest finalist is recommended.
    main(["advise", *SMALL, "--tolerance", "1"])
    printed = capsys.readouterr().out
    assert "use it: lightning-freeze fit --config advice/recommended.yaml" in printed
    assert "as configured" in printed
    assert {path.name for path in Path("advice").iterdir()} >= {
        *("advice.html", "advice.json", "recommended.yaml", "fits.jsonl"),
    }
    found = json.loads(Path("advice/advice.json").read_text())
    names = [result["name"] for result in found["results"]]
    assert found["recommended"] in names
    assert found["recommended"] != "full fine-tuning"
    assert {"full fine-tuning", "head only", "head, then all", "as configured"} <= set(names)
    assert [depth["name"] for depth in found["measurements"]["depths"]] == ["embeddings", "0", "1", "2", "3"]
    finalists = [result for result in found["results"] if result["scores"]]
    assert [len(result["scores"]) for result in finalists] == [2, 2]
    assert found["cost"] <= 1 + 2 * 2 + 1e-6
    written = yaml.safe_load(Path("advice/recommended.yaml").read_text())
    classes = [entry["class_path"].rpartition(".")[2] for entry in written["trainer"]["callbacks"]]
    best = next(result for result in found["results"] if result["name"] == found["recommended"])
    assert classes == ["EarlyStopping", *(entry["class_path"] for entry in best["entries"])]
    assert not Path("lightning_logs").exists()

    main(["fit", "--config", "advice/recommended.yaml"])
    assert "best checkpoint" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0"], "budget=0.0: expected a number of runs above 0"),
        (["--seeds", "0"], "seeds=0: expected a whole number, 1 or more"),
        (["--examples", "3"], "examples=3: expected a whole number, 10 or more"),
        (["--tolerance", "-1"], "tolerance=-1.0: expected a number of 0 or more"),
        (["--mode", "larger"], "argument --mode: invalid choice: 'larger'"),
        (["--seeds", "two"], "argument --seeds: invalid int value: 'two'"),
        (["--buget", "2"], "There is no option --buget. Did you mean 'budget'?"),
        (["--monitor", "val_accurracy"], "monitor='val_accurracy' is not logged in validation"),
        (["--monitor", "quality"], "the name does not tell if larger is better"),
        (["--data.init_args.split", "[0.9, 0.0, 0.1]"], "has no validation data"),
    ],
)
def test_wrong_options(config: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert message in fails(capsys, "advise", *SMALL, *options)


@pytest.mark.slow
def test_a_metric_that_is_almost_logged_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'val_accuracy'?" in fails(capsys, "advise", *SMALL, "--monitor", "val_accurracy")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["advise", "--help"])
    assert ended.value.code == 0
    assert "--budget RUNS" in capsys.readouterr().out
