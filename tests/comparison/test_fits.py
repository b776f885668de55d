"""The fits of a comparison: what tells one from another, and the options that are set in their configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_freeze.comparison.fits import changes, fingerprint, tasks_of, with_cache_dir, with_option
from lightning_freeze.comparison.settings import read_settings
from lightning_freeze.errors import ConfigurationError


def config(**trainer: Any) -> dict[str, Any]:
    return {
        "seed_everything": 42,
        "trainer": {"max_epochs": 3, "callbacks": [{"class_path": "FrozenPrefixCache"}], **trainer},
        "data": {"class_path": "TextDataModule", "init_args": {"data": "rows.csv", "split_seed": 0}},
    }


def test_a_fingerprint_depends_on_what_a_measurement_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text,label\n")
    same = fingerprint(config(), 0, None)
    assert fingerprint({**config(logger={"class_path": "CSVLogger"}), "seed_everything": 7}, 0, None) == same
    assert len({same, fingerprint(config(max_epochs=4), 0, None), fingerprint(config(), 1, None)}) == 3
    assert fingerprint(config(), 0, "metrics.forgetting") != same
    Path("rows.csv").write_text("text,label\ngood,1\n")
    assert fingerprint(config(), 0, None) != same


def test_an_encoder_folder_counts(tmp_path: Path) -> None:
    model = {"model": {"encoder": str(tmp_path)}}
    (tmp_path / "weights").write_bytes(b"1")
    before = fingerprint(model, 0, None)
    (tmp_path / "weights").write_bytes(b"12")
    assert fingerprint(model, 0, None) != before


def test_changes_are_named() -> None:
    assert changes(config(), config(max_epochs=4)) == "trainer.max_epochs: 3 -> 4"
    assert changes(config(), config(precision="bf16")) == "trainer.precision: none -> 'bf16'"
    callback = [{"class_path": "FrozenPrefixCache", "init_args": {"verify": 2}}]
    assert changes(config(), config(callbacks=callback)) == "trainer.callbacks[0].init_args.verify: none -> 2"
    many = changes(config(), config(**{f"option{i}": i for i in range(5)}))
    assert many.endswith(", 2 more")
    assert changes(config(), config()) == ""


def test_an_option_that_is_set_to_the_seed() -> None:
    before = config()
    for option in ("data.split_seed", "data.init_args.split_seed"):
        assert with_option(before, option, 5, "full")["data"]["init_args"]["split_seed"] == 5
    assert before == config()
    message = "seed_options: plan 'full' has no option 'data.split_sed'. Did you mean 'data.split_seed'?"
    with pytest.raises(ConfigurationError, match=message):
        with_option(before, "data.split_sed", 5, "full")


def test_one_cache_for_all_that_name_none() -> None:
    own = {"class_path": "lightning_freeze.FrozenPrefixCache", "init_args": {"cache_dir": "own"}}
    callbacks = [{"class_path": "FrozenPrefixCache"}, own, {"class_path": "LayerFreezing"}]
    found = with_cache_dir(config(callbacks=callbacks), "shared")["trainer"]["callbacks"]
    assert found == [{"class_path": "FrozenPrefixCache", "init_args": {"cache_dir": "shared"}}, *callbacks[1:]]
    assert with_cache_dir({"trainer": {"callbacks": None}}, "shared") == {"trainer": {"callbacks": None}}


def test_fits_come_seed_by_seed(tmp_path: Path) -> None:
    settings = read_settings({"plans": {"a": None, "b": None}, "seeds": [3, 1], "seed_options": ["data.split_seed"]})
    tasks = tasks_of(settings, {"a": config(), "b": config(max_epochs=1)}, tmp_path)
    assert [task.name for task in tasks] == ["a, seed 3", "b, seed 3", "a, seed 1", "b, seed 1"]
    assert [task.config["data"]["init_args"]["split_seed"] for task in tasks] == [3, 3, 1, 1]
    cache = tasks[0].config["trainer"]["callbacks"][0]["init_args"]["cache_dir"]
    assert cache == str(tmp_path / "cache")
    assert len({task.key for task in tasks}) == 4
