"""A comparison of three plans on tiny data, and the commands that run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = """
model: {encoder: ./tiny, task: classification}
data: {class_path: TextDataModule, init_args: {data: reviews.csv, batch_size: 8}}
trainer: {max_epochs: 1, accelerator: cpu}
"""
COMPARE = """
base: base.yaml
seeds: 2
metric: test_loss
plans:
  full:
  head_only:
    model.optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
    trainer.callbacks+:
      - class_path: LayerFreezing
        init_args: {layers: "embeddings,:"}
      - class_path: FrozenPrefixCache
"""


def environment() -> dict[str, str]:
    paths = [str(ROOT), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "lightning_freeze.cli", "compare", *args]


def start(*args: str) -> subprocess.Popen[str]:
    """Start the command in the current folder."""
    return subprocess.Popen(
        command(*args),
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_heed_interrupts,
    )


def _heed_interrupts() -> None:
    """Undo what a shell does to commands in the background: they ignore interrupts, and so does all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the current folder."""
    return subprocess.run(command(*args), env=environment(), text=True, capture_output=True, timeout=500)
