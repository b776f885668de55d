from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_freeze.cli.command_line import main

FIT = ["--model.encoder", "tiny", "--model.task", "classification", "--data.data", "reviews.csv"]
CONFIG = """
model: {encoder: tiny, task: classification}
data: {class_path: TextDataModule, init_args: {data: reviews.csv, batch_size: 8}}
trainer:
  max_epochs: 7
  accelerator: cpu
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {monitor: val_loss}
    - class_path: GradualUnfreezing
      init_args:
        trigger:
          class_path: AnyTrigger
          init_args:
            triggers:
              - {class_path: EpochTrigger, init_args: {n: 1}}
              - {class_path: PlateauTrigger, init_args: {monitor: val_loss}}
        warmup_steps: 3
    - class_path: DiscriminativeLR
      init_args: {decay: 0.5}
"""


def test_plan_trains_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *FIT, "--trainer.callbacks+=GradualUnfreezing", "--trainer.max_epochs=3"])
    printed = capsys.readouterr().out
    assert "Plan" in printed
    assert "embeddings" not in printed.split("relative to full")[0].splitlines()[-3]
    assert "The whole run takes" in printed
    assert not list(project.rglob("*.ckpt"))
    assert not (project / "lightning_logs").exists()


@pytest.mark.parametrize(
    ("given", "meant"), [("--outptu=x.html", "output"), ("--memroy", "memory"), ("--wirte", "write")]
)
def test_misspelt_option_of_plan(project: Path, given: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", *FIT, given, "1GiB"])
    assert f"There is no option {given.partition('=')[0]}. Did you mean '{meant}'?" in capsys.readouterr().err


def test_output_memory_and_defaults_of_fit(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *FIT, "--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=embeddings",
          "--memory", "1GiB", "--output", "plan.json"])  # fmt: skip
    data = json.loads(Path("plan.json").read_text())
    assert data["batches"] == 3 * data["batches_per_epoch"]  # `fit` trains for 3 epochs by default
    assert data["phases"][0]["selector" if "selector" in data["phases"][0] else "trains"][0] != "embeddings"
    assert "It fits in 1.0 GiB." in capsys.readouterr().out


def test_written_phases_plan_the_same(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(CONFIG)
    main(["plan", "--config", "config.yaml", "--write", "phases.yaml", "--output", "one.json"])
    written = yaml.safe_load(Path("phases.yaml").read_text())["trainer"]["callbacks"]
    assert [entry["class_path"].rpartition(".")[2] for entry in written] == [
        "ModelCheckpoint",
        "PhasedFineTuning",
        "DiscriminativeLR",
    ]
    phases = written[1]["init_args"]["phases"]
    assert [phase["train"] for phase in phases] == ["head", "3,head", "2:,head", "1:,head", ":,head", "all"]
    assert written[1]["init_args"]["warmup_steps"] == 3
    main(["plan", "--config", "config.yaml", "--config", "phases.yaml", "--output", "two.json"])
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    assert one == two
    assert "fit --config config.yaml --config phases.yaml" in Path("phases.yaml").read_text()


@pytest.mark.parametrize(
    ("strategy", "written_as"),
    [("ULMFiT", "ULMFiT"), ("LISA", "LISA"), ("BlockCoordinate", "BlockCoordinate"), ("AutoFreeze", "AutoFreeze"),
     ("FisherUnfreezing", "FisherUnfreezing"), ("SlimFit", "SlimFit"), ("FreezeOut", "FreezeOut"),
     ("SpectrumFreezing", "SpectrumFreezing"), ("LinearProbeThenFineTune", "PhasedFineTuning")],
)  # fmt: skip
def test_strategies_that_are_more_than_phases_stay_as_they_are(project: Path, strategy: str, written_as: str) -> None:
    main(["plan", *FIT, f"--trainer.callbacks+={strategy}", "--write", "phases.yaml"])
    (entry,) = yaml.safe_load(Path("phases.yaml").read_text())["trainer"]["callbacks"]
    assert entry["class_path"].rpartition(".")[2] == written_as


def test_written_phases_can_be_fitted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(CONFIG)
    main(["plan", "--config", "config.yaml", "--write", "phases.yaml"])
    capsys.readouterr()
    main(["fit", "--config", "config.yaml", "--config", "phases.yaml"])
    assert "phase 6 of 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "plan.pdf"], "plan.pdf: expected a file that ends with"),
        (["--memory", "lots"], "lots"),
        (["--write", "none/phases.yaml"], "none"),
        (["--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=hed"], "names no layer"),
    ],
)
def test_wrong_options(project: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *FIT, *options])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err


def test_several_devices_are_a_note(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *FIT, "--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu"])
    assert "Note: One device is planned; on 2 an epoch has about 2 times fewer batches." in capsys.readouterr().out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--help"])
    assert ended.value.code == 0
    assert "--write FILE" in capsys.readouterr().out
