"""The command ``lightning-freeze merge-checkpoint``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from frozen_runs import assert_same, content, omitted
from projects import FIT, QUIET, checkpoint, fails

from lightning_freeze import TransformerModule
from lightning_freeze.cli.command_line import main

FREEZE = [
    "--trainer.callbacks+=LayerFreezing",
    "--trainer.callbacks.layers=embeddings,:",
    "--trainer.callbacks.save_frozen=false",
]
OWN_MODULE = """\
import torch
from lightning.pytorch import LightningModule


class Net(LightningModule):
    def __init__(self, width: int = 4, part: torch.nn.Module = None):
        super().__init__()
        self.save_hyperparameters(ignore=["part"])
        self.part = part
        torch.manual_seed(width)
        self.body = torch.nn.Linear(width, width)
        self.head = torch.nn.Linear(width, 2)
        self.body.weight.data.mul_(2)

    def training_step(self, batch, batch_idx):
        return self.head(self.body(batch[0])).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


@pytest.fixture
def small(project: Path) -> str:
    main(["fit", *QUIET, *FIT, *FREEZE, "--trainer.max_epochs=1"])
    path = checkpoint()
    assert len(omitted(path)) > 20
    return path


def own(project: Path, monkeypatch: pytest.MonkeyPatch, source: str = OWN_MODULE) -> str:
    """A small checkpoint of a module in a file of the project."""
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_freeze import LayerFreezing

    (project / "own_net.py").write_text(source)
    monkeypatch.syspath_prepend(str(project))
    sys.modules.pop("own_net", None)
    from own_net import Net

    freezing = LayerFreezing("body", groups={"body": "body", "head": "head"}, verbose=False, save_frozen=False)
    trainer = Trainer(
        callbacks=[freezing], max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(Net(width=6), DataLoader(TensorDataset(torch.ones(4, 6))))
    trainer.save_checkpoint("own.ckpt")
    assert omitted("own.ckpt") == {"body.weight", "body.bias"}
    return "own.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize("source", [[], ["--config=lightning_logs/version_0/config.yaml"], ["--weights=tiny"]])
def test_a_run_of_the_command_line(small: str, source: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["merge-checkpoint", small, "whole.ckpt", *source])
    assert "whole.ckpt" in capsys.readouterr().out
    whole = content("whole.ckpt")
    assert not omitted("whole.ckpt")
    loaded = TransformerModule.load_from_checkpoint(small)
    assert_same(dict(whole["state_dict"]), dict(loaded.state_dict()))
    assert list(whole) == list(content(small))
    main(["test", *QUIET, *FIT, "--ckpt_path=whole.ckpt"])
    line = capsys.readouterr().out.splitlines()[-1]
    main(["test", *QUIET, *FIT, f"--ckpt_path={small}"])
    assert capsys.readouterr().out.splitlines()[-1] == line


@pytest.mark.slow
def test_the_command_line_resumes_from_a_small_checkpoint(small: str) -> None:
    main(["fit", *QUIET, *FIT, *FREEZE, "--trainer.max_epochs=2", f"--ckpt_path={small}"])
    assert len(list(Path("lightning_logs").glob("version_1/checkpoints/*.ckpt"))) == 1


@pytest.mark.slow
def test_another_model_is_refused_in_one_message(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    torch.manual_seed(5)
    config = transformers.AutoConfig.from_pretrained("tiny")
    transformers.BertModel(config).save_pretrained("other")
    transformers.AutoTokenizer.from_pretrained("tiny").save_pretrained("other")
    Path("tiny").unlink()
    Path("other").rename("tiny")
    for command in (["test", *QUIET, *FIT, f"--ckpt_path={small}"], ["merge-checkpoint", small, "whole.ckpt"]):
        message = fails(capsys, *command)
        assert "base weights" in message and "layers: embeddings, 0, 1 and 2 more" in message
    assert "are not in tiny" in fails(capsys, "merge-checkpoint", small, "whole.ckpt", "--weights=tiny")
    assert not Path("whole.ckpt").exists()


def test_a_module_of_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own(project, monkeypatch)
    assert "--module" in fails(capsys, "merge-checkpoint", path, "a.ckpt")
    main(["merge-checkpoint", path, "a.ckpt", "--module=own_net.Net"])
    section = {"class_path": "own_net.Net", "init_args": {"width": 6, "part": {"class_path": "torch.nn.Identity"}}}
    Path("config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, "model": section}))
    main(["merge-checkpoint", path, "b.ckpt", "--config=config.yaml"])
    assert_same(content("a.ckpt"), content("b.ckpt"))
    message = fails(capsys, "merge-checkpoint", path, "c.ckpt", "--module=own_net.Nett")
    assert "Did you mean 'Net'?" in message
    assert "No module named" in fails(capsys, "merge-checkpoint", path, "c.ckpt", "--module=nothing.Net")


@pytest.mark.parametrize(("config", "seed"), [({}, 42), ({"seed_everything": True}, 0), ({"seed_everything": 7}, 7)])
def test_the_module_is_built_from_the_seed_of_the_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], seed: int
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(seed)
    path = own(project, monkeypatch, OWN_MODULE.replace("torch.manual_seed(width)", "pass"))
    torch.manual_seed(5)
    section = {"class_path": "own_net.Net", "init_args": {"width": 6}}
    Path("config.yaml").write_text(yaml.safe_dump({**config, "model": section}))
    main(["merge-checkpoint", path, "whole.ckpt", "--config=config.yaml"])
    assert not omitted("whole.ckpt")


def test_wrong_input_ends_in_one_message(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own(project, monkeypatch)
    Path("text.ckpt").write_text("no checkpoint")
    Path("cut.ckpt").write_bytes(Path(path).read_bytes()[:500])
    torch.save({"state_dict": {}}, "state.ckpt")
    torch.save({**content(path), "hyper_parameters": {"path": Path("a")}}, "unsafe.ckpt")
    main(["merge-checkpoint", path, "whole.ckpt", "--module=own_net.Net"])
    Path("list.yaml").write_text("- 1")
    Path("bad.yaml").write_text("model: [")
    Path("empty").mkdir()
    build = "--module=own_net.Net"
    for args, words in {
        ("missing.ckpt", "out.ckpt"): "does not exist",
        ("text.ckpt", "out.ckpt"): "not a checkpoint that can be read",
        ("cut.ckpt", "out.ckpt"): "not a checkpoint that can be read",
        ("state.ckpt", "out.ckpt"): "not a checkpoint of a Trainer",
        ("unsafe.ckpt", "out.ckpt"): "could run code",
        ("whole.ckpt", "out.ckpt"): "leaves nothing out",
        (".", "out.ckpt"): "is a folder, not a checkpoint",
        (path, "whole.ckpt", build): "--overwrite",
        (path, path, build): "--overwrite",
        (path, ".", build): "is a folder",
        (path, "no/out.ckpt", build): "'no' does not exist",
        (path, "out.ckpt", "--weights=text.ckpt"): "no weights that can be read",
        (path, "out.ckpt", "--weights=empty"): "holds no weights",
        (path, "out.ckpt", "--weights=wholee.ckpt"): "Did you mean 'whole.ckpt'?",
        (path, "out.ckpt", "--weights=state.ckpt"): "2 of the 2 weights",
        (path, "out.ckpt", "--weights=state.ckpt", build): "expected one of the two",
        (path, "out.ckpt", "--config=none.yaml"): "none.yaml",
        (path, "out.ckpt", "--config=list.yaml"): "section 'model'",
        (path, "out.ckpt", "--config=bad.yaml"): "no YAML",
    }.items():
        assert words in fails(capsys, "merge-checkpoint", *args), args
    assert not Path("out.ckpt").exists()
    main(["merge-checkpoint", path, path, build, "--overwrite"])
    assert_same(content(path), content("whole.ckpt"))
