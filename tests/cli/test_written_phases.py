"""A schedule that ``plan --write`` has written trains what the callback trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_freeze.cli.command_line import main

CALLBACKS: dict[str, list[str]] = {
    "gradual": ["GradualUnfreezing"],
    "gradual options": [
        "{class_path: GradualUnfreezing, init_args: {trigger: {class_path: StepTrigger, init_args: {n: 2}}, "
        "start: '-1,head', layers_per_phase: 2, stop: '0', warmup_steps: 2, frozen_eval: false}}",
    ],
    "plateau": [
        "{class_path: GradualUnfreezing, init_args: {restore_best: true, trigger: {class_path: AnyTrigger, init_args: "
        "{triggers: [{class_path: PlateauTrigger, init_args: {monitor: val_loss, patience: 0}}, "
        "{class_path: StepTrigger, init_args: {n: 9}}]}}}}",
    ],
    "groups": [
        "{class_path: GradualUnfreezing, init_args: {groups: {low: [model.bert.embeddings, "
        "model.bert.encoder.layer.0], top: [model.bert.encoder.layer.1, model.bert.encoder.layer.2], "
        "head: model.classifier}}}",
    ],
    "phased": [
        "{class_path: PhasedFineTuning, init_args: {phases: [{train: head, lr: 2.0, until: {class_path: StepTrigger, "
        "init_args: {n: 3}}}, {train: '-1,head', factors: {'-1': 0.5}, "
        "until: {class_path: EpochTrigger, init_args: {n: 1}}}, {train: '*.bias', lr: 0.1}]}}",
    ],
    "with others": [
        "{class_path: LayerFreezing, init_args: {layers: embeddings}}",
        "GradualUnfreezing",
        "{class_path: DiscriminativeLR, init_args: {decay: 0.5}}",
        "{class_path: FrozenPrefixCache}",
    ],
    "probe": ["LinearProbeThenFineTune"],
    "thaw": [
        "{class_path: ChainThaw, init_args: {monitor: val_loss, trigger: {class_path: StepTrigger, init_args: {n: 3}}}}"
    ],
    "ulmfit": ["ULMFiT"],
    "lisa": ["{class_path: LISA, init_args: {interval: 3}}"],
    "freezing": ["{class_path: LayerFreezing, init_args: {layers: ':2'}}"],
}
CONFIG = """
model: {{encoder: tiny, task: classification}}
data: {{class_path: TextDataModule, init_args: {{data: reviews.csv, batch_size: 16}}}}
trainer:
  max_epochs: 6
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
{callbacks}
"""


def _fitted(*options: str) -> dict[str, Any]:
    saves = "{class_path: ModelCheckpoint, init_args: {dirpath: out, save_last: true}}"
    main(["fit", *options, f"--trainer.callbacks+={saves}"])
    weights: dict[str, Any] = torch.load("out/last.ckpt", weights_only=False)["state_dict"]
    for file in Path("out").iterdir():
        file.unlink()
    return weights


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.filterwarnings("ignore")
def test_written_phases_train_the_same_weights(project: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(CONFIG.format(callbacks="\n".join(f"    - {each}" for each in CALLBACKS[name])))
    main(["plan", "--config", "config.yaml", "--write", "phases.yaml"])
    given = _fitted("--config", "config.yaml")
    written = _fitted("--config", "config.yaml", "--config", "phases.yaml")
    assert given.keys() == written.keys()
    assert all(torch.equal(given[key], written[key]) for key in given), Path("phases.yaml").read_text()
    callbacks = yaml.safe_load(Path("phases.yaml").read_text())["trainer"]["callbacks"]
    assert len(callbacks) == len(CALLBACKS[name])
