"""Comparison files: what they may hold, and the message for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_freeze.comparison.settings import read_settings
from lightning_freeze.errors import ConfigurationError

PLANS = {"full": None, "head_only": {"trainer.max_epochs": 1}}


def test_defaults() -> None:
    settings = read_settings({"plans": PLANS}, "folder/mine.yaml")
    assert settings.plans == {"full": {}, "head_only": {"trainer.max_epochs": 1}}
    assert settings.seeds == (0, 1, 2)
    assert settings.baseline == "full"
    assert settings.directory == "runs/mine"
    assert read_settings({"plans": PLANS}).directory == "runs/comparison"


def test_seeds_are_a_number_or_a_list() -> None:
    assert read_settings({"plans": PLANS, "seeds": 5}).seeds == (0, 1, 2, 3, 4)
    assert read_settings({"plans": PLANS, "seeds": [7, 3]}).seeds == (7, 3)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "full.yaml").write_text("trainer: {}")
    monkeypatch.chdir(tmp_path)
    settings = read_settings({"plans": {**PLANS, "full": "full.yaml"}, "base": "full.yaml"}, "sub/compare.yaml")
    assert settings.plans["full"] == settings.base == str(tmp_path / "sub" / "full.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a map with 'plans'"),
        ([1], "expected a map with 'plans'"),
        ({"plans": PLANS, "seed": 3}, "there is no setting 'seed': .* Did you mean 'seeds'?"),
        ({"plans": {}}, "plans is {}: expected a map from the name of each plan"),
        ({"plans": ["full"]}, r"plans is \['full'\]: expected a map"),
        ({"plans": {"full": None}}, "plans holds 'full' alone: expected two plans or more"),
        ({"plans": {**PLANS, "a/b": None}}, "'a/b' names a plan: expected letters.* Did you mean 'a_b'?"),
        ({"plans": {**PLANS, 3: None}}, "3 names a plan: expected letters"),
        ({"plans": {**PLANS, "Full": None}}, "'full' and 'Full' differ in upper case alone"),
        ({"plans": {**PLANS, "x": 3}}, "plans.x is 3: expected a map of options, or the path of a config file"),
        ({"plans": PLANS, "base": True}, "base is True: expected a map of options"),
        ({"plans": PLANS, "seeds": 0}, "seeds is 0: expected a number of seeds, 1 or more, or a list"),
        ({"plans": PLANS, "seeds": True}, "seeds is True: expected a number of seeds"),
        ({"plans": PLANS, "seeds": []}, r"seeds is \[\]: expected a number of seeds"),
        ({"plans": PLANS, "seeds": [1, -2]}, r"seeds is \[1, -2\]: expected a number of seeds"),
        ({"plans": PLANS, "seeds": [4, 4]}, "seeds holds 4 twice"),
        ({"plans": PLANS, "baseline": "ful"}, "baseline is 'ful': expected one of 'full', 'head_only'. Did you mean"),
        ({"plans": PLANS, "mode": "maximum"}, "mode is 'maximum': expected one of 'min', 'max'. Did you mean 'max'?"),
        ({"plans": PLANS, "test": "wilcoxn"}, "test is 'wilcoxn': .* Did you mean 'wilcoxon'?"),
        ({"plans": PLANS, "metric": 3}, "metric is 3: expected text"),
        ({"plans": PLANS, "directory": ""}, "directory is '': expected text"),
        ({"plans": PLANS, "seed_options": "data.split_seed"}, "seed_options is 'data.split_seed': expected a list"),
        ({"plans": PLANS, "keep_checkpoints": "yes"}, "keep_checkpoints is 'yes': expected true or false"),
        ({"plans": PLANS, "retries": -1}, "retries is -1: expected a whole number, 0 or more"),
        ({"plans": PLANS, "resources": {"num_gpus": -1}}, "resources.num_gpus is -1: expected a number, 0 or more"),
        ({"plans": PLANS, "resources": 4}, "resources is 4: expected a map"),
        ({"plans": PLANS, "forgetting": 3}, "forgetting is 3: expected {class_path"),
        ({"plans": PLANS, "forgetting": {"class_path": "a.B", "args": {}}}, "forgetting has the key 'args'"),
    ],
)  # fmt: skip
def test_wrong_settings(content: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        read_settings(content, "mine.yaml")
    assert str(error.value).startswith("mine.yaml: ")


def test_a_config_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "gradual.yaml").touch()
    with pytest.raises(ConfigurationError, match=r"plans.x is 'gradul.yaml'.* Did you mean 'gradual.yaml'?"):
        read_settings({"plans": {**PLANS, "x": "gradul.yaml"}}, tmp_path / "compare.yaml")
