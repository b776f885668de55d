"""Every config that a run saves runs again, and so does the test command that the tool prints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from projects import FIT, QUIET, checkpoint

from lightning_freeze.cli import command_line

pytestmark = [pytest.mark.usefixtures("project"), pytest.mark.filterwarnings("ignore:.*")]

ADD = "--trainer.callbacks+="
ARGUMENT = "--trainer.callbacks."
ANY = (
    '{"class_path": "AnyTrigger", "init_args": {"triggers": [{"class_path": "EpochTrigger", "init_args": {"n": 1}}, '
    '{"class_path": "PlateauTrigger", "init_args": {"monitor": "val_loss"}}]}}'
)
PHASES = (
    '[{"train": "head", "until": {"class_path": "StepTrigger", "init_args": {"n": 1}}}, {"train": "3,head", "until": '
    '{"class_path": "PlateauTrigger", "init_args": {"monitor": "val_loss"}}}, {"train": "all"}]'
)
FORMS = {
    "no callback": [],
    "LayerFreezing": [f"{ADD}LayerFreezing", f"{ARGUMENT}layers=embeddings,:2"],
    "GradualUnfreezing": [f"{ADD}GradualUnfreezing"],
    "GradualUnfreezing with triggers": [f"{ADD}GradualUnfreezing", f"{ARGUMENT}trigger={ANY}"],
    "PhasedFineTuning": [f"{ADD}PhasedFineTuning", f"{ARGUMENT}phases={PHASES}"],
    "DiscriminativeLR": [f"{ADD}DiscriminativeLR"],
    "DiscriminativeLR with factors": [f"{ADD}DiscriminativeLR", ARGUMENT + 'factors={"0:2": 0.1, "head": 2}'],
    "FrozenPrefixCache": [f"{ADD}LayerFreezing", f"{ARGUMENT}layers=embeddings,:2", f"{ADD}FrozenPrefixCache"],
    "all": [f"{ADD}GradualUnfreezing", f"{ADD}DiscriminativeLR", f"{ADD}FrozenPrefixCache"],
    "optimizer and schedule": [
        "--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--model.lr_scheduler=CosineAnnealingLR",
        "--model.lr_scheduler.T_max=2",
    ],
    # Their defaults are objects.
    "SWA": [f"{ADD}StochasticWeightAveraging", f"{ARGUMENT}swa_lrs=0.01"],
    "Timer": [f"{ADD}Timer", f"{ARGUMENT}duration=00:00:10:00"],
    "plateau": [
        "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau", "--model.lr_scheduler.monitor=val_loss"
    ],
}  # fmt: skip


def test_every_callback_is_among_the_forms() -> None:
    import lightning_freeze
    from lightning_freeze import callbacks

    assert {name for name in callbacks.__all__ if name in lightning_freeze.__all__} <= FORMS.keys()


@pytest.mark.fast_cases(1, "FrozenPrefixCache")
@pytest.mark.parametrize("form", FORMS)
def test_saved_config_and_proposed_test_run(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    command_line.main(["fit", *FIT, "--trainer.max_epochs=2", *QUIET, *FORMS[form]])
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("test it: lightning-freeze ").split()
    first = torch.load(checkpoint(), weights_only=True)["state_dict"]
    config = Path("lightning_logs/version_0/config.yaml").read_text()
    assert "Unable to serialize" not in config
    command_line.main(["fit", "--config=lightning_logs/version_0/config.yaml"])
    (again,) = Path("lightning_logs/version_1/checkpoints").glob("*.ckpt")
    second = torch.load(again, weights_only=True)["state_dict"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert Path("lightning_logs/version_1/config.yaml").read_text() == config
    command_line.main(command)
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy 0.")


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("form", FORMS)
def test_printed_config_runs(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        command_line.main(["fit", *FIT, *QUIET, *FORMS[form], "--print_config"])
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert "Unable to serialize" not in printed
    Path("printed.yaml").write_text(printed)
    command_line.main(["fit", "--config=printed.yaml", "--trainer.fast_dev_run=true"])


@pytest.mark.slow
def test_config_of_a_run_survives_a_test_in_its_folder() -> None:
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.", "--trainer.logger.version=one"]
    command_line.main(["fit", *FIT, *QUIET, *logger, "--trainer.max_epochs=1"])
    folder = Path("lightning_logs/one")
    saved = (folder / "config.yaml").read_text()
    command_line.main(["test", f"--config={folder / 'config.yaml'}"])
    assert (folder / "config.yaml").read_text() == saved
    command_line.main(["test", f"--config={folder / 'test_config.yaml'}"])
    command_line.main(["fit", f"--config={folder / 'config.yaml'}"])


def test_barebones_trainer() -> None:
    command_line.main(["fit", *FIT, "--trainer.barebones=true", "--trainer.accelerator=cpu", "--trainer.max_steps=1"])


def init_args(*more: str) -> dict[str, object]:
    command_line.main(["fit", *FIT, "--trainer.max_steps=1", *QUIET, *more])
    config = yaml.safe_load(sorted(Path("lightning_logs").glob("*/config.yaml"))[-1].read_text())
    arguments: dict[str, object] = config["model"]["optimizer"]["init_args"]
    return arguments


@pytest.mark.slow
def test_class_named_alone_has_its_own_defaults() -> None:
    arguments = init_args("--model.optimizer=Adam")
    assert (arguments["lr"], arguments["weight_decay"]) == (0.001, 0)
    arguments = init_args("--model.optimizer=Adam", "--model.optimizer.lr=0.5")
    assert (arguments["lr"], arguments["weight_decay"]) == (0.5, 0)
    saved = sorted(Path("lightning_logs").glob("*/config.yaml"))[-1]
    arguments = init_args(f"--config={saved}", "--model.optimizer=torch.optim.NAdam")
    assert (arguments["lr"], arguments["momentum_decay"]) == (0.002, 0.004)
    assert init_args(f"--config={saved}", "--model.optimizer=torch.optim.Adam")["lr"] == 0.5, "the same class"
    arguments = init_args("--model.optimizer=AdamW")
    assert (arguments["lr"], arguments["weight_decay"]) == (0.001, 0.01)
