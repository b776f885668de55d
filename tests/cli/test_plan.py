from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from lightning_freeze.cli.command_line import main
from lightning_freeze.data import TextDataModule

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_output_memory_and_defaults_of_fit(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *FIT, "--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=embeddings",
          "--memory", "1GiB", "--output", "plan.json"])  # fmt: skip
    data = json.loads(Path("plan.json").read_text())
    assert data["batches"] == 3 * data["batches_per_epoch"]  # `fit` trains for 3 epochs by default
    assert data["phases"][0]["selector" if "selector" in data["phases"][0] else "trains"][0] != "embeddings"
    assert "It fits in 1.0 GiB." in capsys.readouterr().out


@pytest.mark.slow
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


@pytest.mark.fast_cases(2)
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


@pytest.mark.slow
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
        (["--memory", "lots"], "--memory is 'lots': expected a size"),
        (["--memory", ""], "--memory is ''"),
        (["--memory"], "error: lightning-freeze plan: argument --memory: expected one argument."),
        (["--output", "--write"], "argument --output: expected one argument."),
        (
            ["--write", "none/phases.yaml"],
            "--write none/phases.yaml: expected a folder that exists, and none does not.",
        ),
        (["--write", "tiny"], "--write tiny: expected a file, and this is a folder."),
        (["--write", "phases.json"], "phases.json: expected a file that ends with '.yaml'"),
        (["--output", "tiny.html"], "tiny.html: expected a file, and this is a folder."),
        (["--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=hed"], "names no layer"),
    ],
)
def test_wrong_options(project: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    Path("tiny.html").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["plan", *FIT, *options])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err and "usage:" not in printed.err


@pytest.mark.parametrize("given", [["--config", "config.yaml"], ["-c", "config.yaml"], ["-cconfig.yaml"]], ids=str)
def test_the_planned_config_is_not_overwritten(
    project: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    Path("config.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit):
        main(["plan", *given, "--write", "../" + project.name + "/config.yaml"])
    assert "would replace the config that is planned" in capsys.readouterr().err
    assert Path("config.yaml").read_text() == CONFIG


@pytest.mark.parametrize("given", [["--trainer", "trainer.yaml"], ["--trainer=trainer.yaml"]], ids=str)
def test_the_config_of_a_section_is_not_overwritten(
    project: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    Path("trainer.yaml").write_text("max_epochs: 2")
    with pytest.raises(SystemExit):
        main(["plan", *FIT, *given, "--write", "trainer.yaml"])
    assert "would replace the config that is planned" in capsys.readouterr().err
    assert Path("trainer.yaml").read_text() == "max_epochs: 2"


@pytest.mark.slow
def test_written_phases_name_all_that_they_come_after(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(CONFIG)
    Path("more epochs.yaml").write_text("trainer: {max_epochs: 8}")
    main(["plan", "-c", "config.yaml", "--config=more epochs.yaml", "--write", "phases.yaml"])
    assert (
        "fit --config config.yaml --config 'more epochs.yaml' --config phases.yaml" in Path("phases.yaml").read_text()
    )
    main(["plan", *FIT, "--trainer.callbacks+=GradualUnfreezing", "--write", "phases.yml"])
    assert (
        "after all other options:\n#   lightning-freeze fit ... --config phases.yml" in Path("phases.yml").read_text()
    )


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("options", "batches"),
    [
        (["--trainer.fast_dev_run=true"], 1),
        (["--trainer.overfit_batches=2"], 6),
        (["--trainer.limit_train_batches=2", "--trainer.max_steps=3", "--trainer.max_epochs=-1"], 3),
        (["--trainer.max_time=00:01:00:00", "--model.lr_scheduler=ConstantLR"], None),
    ],
    ids=str,
)
def test_the_course_is_that_of_the_run(
    project: Path, capsys: pytest.CaptureFixture[str], options: list[str], batches: int | None
) -> None:
    main(["plan", *FIT, *options, "--output", "plan.json"])
    assert json.loads(Path("plan.json").read_text())["batches"] == batches


@pytest.mark.slow
def test_a_run_on_an_accelerator_is_planned_without_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = [
        "--trainer.accelerator=gpu",
        "--trainer.precision=16-mixed",
        "--trainer.devices=2",
        "--trainer.strategy=fsdp",
    ]
    layers = ["--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=embeddings,:2"]
    main(["plan", *FIT, *gpu, *layers, "--output", "gpu.json"])
    printed = capsys.readouterr().out
    assert "Note: One device is planned; on 2 an epoch has about 2 times fewer batches." in printed
    assert "fp16 is not supported" not in printed
    main(["plan", *FIT, *layers, "--trainer.precision=bf16-mixed", "--trainer.accelerator=cpu", "--output", "cpu.json"])
    on_gpu, on_cpu = (json.loads(Path(name).read_text())["phases"][0] for name in ("gpu.json", "cpu.json"))
    assert on_gpu["memory"] == on_cpu["memory"]
    assert on_gpu["time"] != on_cpu["time"]


class DataWithTensors(TextDataModule):
    """Reads the values of tensors that it has made when it is built."""

    def __init__(self, data: str) -> None:
        super().__init__(data=data, tokenizer="tiny", batch_size=int(torch.tensor([8]).max()))


@pytest.mark.slow
def test_data_is_built_with_memory(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--data={DataWithTensors.__module__}.DataWithTensors", "--data.data=reviews.csv"]
    main(["plan", "--model.encoder=tiny", "--model.task=classification", *options, "--output", "plan.json"])
    assert json.loads(Path("plan.json").read_text())["batch_size"] == 8


@pytest.mark.slow
def test_a_resumed_run_is_a_note(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *FIT, "--trainer.max_epochs=1", "--trainer.accelerator=cpu"])
    (checkpoint,) = project.rglob("*.ckpt")
    capsys.readouterr()
    main(["plan", *FIT, "--ckpt_path", str(checkpoint)])
    assert "Note: The whole run is planned from its beginning" in capsys.readouterr().out


def test_several_devices_are_a_note(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *FIT, "--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu"])
    assert "Note: One device is planned; on 2 an epoch has about 2 times fewer batches." in capsys.readouterr().out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--help"])
    assert ended.value.code == 0
    assert "--write FILE" in capsys.readouterr().out
