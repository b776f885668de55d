"""The project in experiments/integration, as it is and with lightning-freeze added by its patch."""

import csv
import math
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2] / "experiments" / "integration"
GRADUAL, DISCRIMINATIVE = "GradualUnfreezing(trigger=EpochTrigger(1))", "DiscriminativeLR(decay=0.9)"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A copy of the project that runs for three epochs, and is the current folder."""
    for file in [*PROJECT.glob("*.py"), *PROJECT.glob("*.patch")]:
        shutil.copy(file, tmp_path)
    replace(tmp_path / "train.py", "max_epochs=8", "max_epochs=3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} should stand once in {file.name}"
    file.write_text(text.replace(old, new))


def add_lightning_freeze(project: Path) -> None:
    # As the README says; git apply works outside a repository too.
    subprocess.run(["git", "apply", "with_lightning_freeze.patch"], cwd=project, check=True)


def train(project: Path) -> dict[str, list[float]]:
    """Run ``python train.py`` and return every logged column, one value for each step that has one."""
    try:
        runpy.run_path(str(project / "train.py"), run_name="__main__")
    finally:
        for name in ("data", "model"):
            sys.modules.pop(name, None)
    with (project / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    shutil.rmtree(project / "logs")
    # LearningRateMonitor may log a step twice, at the start of its epoch and of its batch: the later one counts.
    return {name: list({row["step"]: float(row[name]) for row in rows if row[name]}.values()) for name in rows[0]}


@pytest.mark.slow
def test_the_project_learns_without_us(project):
    assert "lightning_freeze" not in "".join(file.read_text() for file in project.glob("*.py"))
    log = train(project)
    assert len(log["train_loss"]) == 3 * 32
    assert log["val_loss"][-1] < log["val_loss"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "nothing",
    [
        {GRADUAL: 'GradualUnfreezing(start="all")', DISCRIMINATIVE: "DiscriminativeLR(decay=1.0)"},
        {GRADUAL: 'PhasedFineTuning(phases=[Phase(train="all")])', DISCRIMINATIVE: "DiscriminativeLR(decay=1.0)"},
    ],
    ids=["gradual", "phased"],
)
def test_callbacks_that_freeze_nothing_change_no_bit_of_any_loss(project, nothing):
    before = train(project)
    add_lightning_freeze(project)
    for old, new in nothing.items():
        replace(project / "train.py", old, new)
    replace(
        project / "train.py",
        "import DiscriminativeLR, EpochTrigger, GradualUnfreezing",
        "import DiscriminativeLR, GradualUnfreezing, Phase, PhasedFineTuning",
    )
    after = train(project)
    for name in ("train_loss", "val_loss", "val_accuracy"):
        assert after[name] == before[name]


@pytest.mark.slow
def test_the_patch_trains_gradually_and_at_discriminative_rates(project):
    replace(project / "train.py", "max_epochs=3", "max_epochs=6")  # one for each layer
    before = train(project)
    add_lightning_freeze(project)
    replace(project / "train.py", "DiscriminativeLR(decay=0.9)", "DiscriminativeLR(decay=0.9, log_rates=True)")
    after = train(project)
    assert after["train_loss"] != before["train_loss"]
    assert math.isfinite(after["val_loss"][-1])
    assert after["val_loss"][-1] < after["val_loss"][0]
    # One curve per layer; each is the user's OneCycle curve times a constant factor.
    user = before["lr-AdamW/pg1"]
    assert after["lr-AdamW/pg1"] == user  # LearningRateMonitor shows the user's own groups
    own = [name for name in before if name.startswith("lr-AdamW/")]
    rates = {name: curve for name, curve in after.items() if name.startswith("lr-AdamW/") and name not in own}
    factors = {round(curve[0] / user[0], 6) for curve in rates.values()}
    assert factors == {round(0.9**distance, 6) for distance in range(6)}  # head, four blocks, embeddings
    for curve in rates.values():
        assert curve == pytest.approx([rate * curve[0] / user[0] for rate in user])
