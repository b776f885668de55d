"""A run that is killed at any moment and resumed in a new process equals the uninterrupted run."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))
from test_resume import EPOCHS, SCHEDULES, module
from toys import StatefulLoader, loader, trainer

SCHEDULE = "plateau, refreezing, the best weights"


class Pace(Callback):
    """Tells the parent of each batch, and leaves it the time to strike in the midst of one."""

    def __init__(self, started):
        self.started = started

    def on_train_batch_start(self, *args):
        if self.started is not None:
            self.started.set()
            time.sleep(0.03)


def run(folder, started=None):
    saving = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=1, save_last=True, save_top_k=2, monitor="step"
    )
    the_module = module()
    the_trainer = trainer(
        *SCHEDULES[SCHEDULE](),
        Pace(started),
        saving,
        max_epochs=EPOCHS,
        enable_checkpointing=True,
        val_check_interval=0.5,
    )
    is_resumed = (folder / "last.ckpt").exists()
    the_trainer.fit(the_module, StatefulLoader(), loader(2, seed=2), ckpt_path="last" if is_resumed else None)
    optimizer = the_trainer.optimizers[0]
    state = {name: optimizer.state.get(p, {}) for name, p in the_module.named_parameters()}
    end = {"weights": the_module.state_dict(), "optimizer": state, "step": the_trainer.global_step}
    torch.save(end, folder / "end.part")
    (folder / "end.part").rename(folder / "end.pt")  # all of it or nothing: it may be killed here too


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    run(folder)
    return torch.load(folder / "end.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_it_still_ends_where_the_straight_run_does(seed, straight, tmp_path):
    context, rng, kills, resumes = multiprocessing.get_context("fork"), random.Random(seed), 0, 0
    for _ in range(40):
        resumes += (tmp_path / "last.ckpt").exists()
        started = context.Event()
        process = context.Process(target=run, args=(tmp_path, started))
        process.start()
        started.wait(30)
        # A step takes about 50 ms, its checkpoint included; on a busy machine no step might ever end in that time.
        process.join(rng.uniform(0.01, 0.2) if kills < 25 else None)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if (tmp_path / "end.pt").exists():
            break
    assert kills >= 2
    assert resumes >= 2
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    assert end["step"] == straight["step"]
    assert same(end["weights"], straight["weights"])
    assert same(end["optimizer"], straight["optimizer"])


@pytest.mark.slow
def test_in_a_fresh_interpreter(straight, tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.03)
    process.kill()
    process.wait()
    assert not (tmp_path / "end.pt").exists()
    subprocess.run(command, check=True, capture_output=True)
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    assert same(end["weights"], straight["weights"])
    assert same(end["optimizer"], straight["optimizer"])


if __name__ == "__main__":
    run(Path(sys.argv[1]))
