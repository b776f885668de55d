"""Every config under experiments/ runs, on a tiny model and a tiny file, and really takes in what it shares."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_freeze.cli.command_line import main

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CONFIGS = sorted(path for path in EXPERIMENTS.rglob("*.yaml") if path.name != "base.yaml")


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture
def reviews(tmp_path) -> Path:
    """Sixty short sentences of twenty reviews."""
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "review"])
        for i in range(60):
            writer.writerow([f"it is {'good' if i % 2 else 'bad'} number {i}", ["negative", "positive"][i % 2], i // 3])
    return path


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_review_experiments_are_there():
    expected = {"discriminative", "full", "gradual", "head_only", "plateau", "static"}
    assert {path.stem for path in CONFIGS if path.parent.name == "reviews"} == expected


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_fast_dev_run(config, reviews, tiny_bert_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a config writes, it writes here
    flags = [f"--model.encoder={tiny_bert_dir}", f"--data.data={reviews}"]
    own = yaml.safe_load(config.read_text())
    if "model.peft" in own:
        pytest.importorskip("peft")
    if "model.teacher" in own:  # the config beside it makes the teacher
        main(["fit", f"--config={config.parent / 'teacher.yaml'}", *flags, "--trainer.max_epochs=1"])
    main(["fit", f"--config={config}", *flags, "--trainer.fast_dev_run=true"])


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_config_takes_in_its_base(config, capsys, monkeypatch):
    monkeypatch.chdir(EXPERIMENTS.parent)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", f"--config={config}", "--print_config"])
    assert not exit_.value.code
    printed = leaves(yaml.safe_load(capsys.readouterr().out))
    own = yaml.safe_load(config.read_text())
    assert own.pop("config") == "base.yaml"
    assert not [key for key, value in own.items() if key in ("trainer", "model", "data") and isinstance(value, dict)]
    for key, value in leaves(yaml.safe_load((config.parent / "base.yaml").read_text())).items():
        if not any(key == mine or key.startswith(f"{mine}.") for mine in own) and not key.endswith("class_path"):
            assert printed[key] == value, key
