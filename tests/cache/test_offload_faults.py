"""Weights that cannot leave stay where they are, and the run goes on."""

from __future__ import annotations

import re
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cached_fits import Plain, make_cache, make_trainer
from encoders import bert
from offloaded_fits import away, cache_of, data, fit, prefix
from test_explain import TwoTowers
from torch import Tensor, nn

from lightning_freeze import LayerFreezing
from lightning_freeze.cache.offload import WeightOffload
from lightning_freeze.cache.storage import open_storage
from lightning_freeze.cache.store.network_folder import Replacement

pytestmark = pytest.mark.usefixtures("tiny_weights_leave")


def fit_and_listen(module: Any = None, **options: Any) -> tuple[list[str], Any]:
    """Return the warnings about offloading in a fit, and what was away."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, watch = fit(None, module, **options)
    assert not watch.cache.reasons and away(watch.cache) == 0  # type: ignore[union-attr]
    return [str(w.message) for w in caught if "offload" in str(w.message)], watch


def no_room(self: WeightOffload, parameters: list[nn.Parameter]) -> list[Tensor]:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_host_memory_that_is_full_is_told_once_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightOffload, "_host_copies", no_room)
    said, watch = fit_and_listen()
    assert len(said) == 1 and "does nothing: the weights cannot leave (RuntimeError: DefaultCPU" in said[0]
    assert len(watch.before) == 24 and not any(watch.before)


def test_weights_that_have_left_before_an_error_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Plain(bert())
    expected = [p.clone() for p in prefix(module)]
    found: list[Any] = []

    def last_fails(self: WeightOffload, parameters: list[nn.Parameter]) -> list[Any]:
        found.extend(parameters)
        return [p.data.clone() for p in parameters[:-1]] + [None]

    monkeypatch.setattr(WeightOffload, "_host_copies", last_fails)
    said, watch = fit_and_listen(module)
    assert len(said) == 1 and "the weights cannot leave (" in said[0]
    assert len(watch.before) == 24 and not any(watch.before) and len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(prefix(module), expected, strict=True))


def test_systems_without_a_c_library_under_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_on_windows(name: str | None) -> Any:
        raise TypeError("argument of type 'NoneType' is not iterable")

    monkeypatch.setattr("lightning_freeze.cache.offload.ctypes", SimpleNamespace(CDLL=as_on_windows))
    said, watch = fit_and_listen()
    assert not said and watch.before[-1] > 0


@pytest.mark.parametrize("has_other", [True, False])
def test_a_folder_that_can_only_be_read(has_other: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, make = tmp_path / "cache", tempfile.TemporaryFile

    def refuse(dir: Path | None = None) -> Any:
        if dir == folder or not has_other:
            raise PermissionError(13, "Permission denied")
        return make(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    said, watch = fit_and_listen(cache_dir=folder)
    if has_other:
        assert not said and watch.before[-1] > 0
    else:
        assert len(said) == 1 and f"cannot be written to {tmp_path} ([Errno 13]" in said[0]
        assert not any(watch.before)


def folder_of(cache_dir: Path) -> Path | None:
    return open_storage(None, cache_dir, "1MiB", None, None, None, 1, True, offload=True).folder


def test_weights_go_to_the_folder_of_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_of(Path("~/cache")) == tmp_path / "cache"
    # On a network file system, that is another folder, or none.
    for local in (tmp_path / "local", None):
        found = Replacement("nfs4", local)
        monkeypatch.setattr("lightning_freeze.cache.store.store.replacement", lambda root, found=found: found)
        with pytest.warns(UserWarning, match="is on a network file system"):
            assert folder_of(tmp_path / "shared") == local


class BothFrozen(TwoTowers):
    """Two frozen towers, of which one keeps its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.model.text_model.requires_grad_(False).eval()
        self.away: list[set[str]] = []

    def on_train_batch_start(self, *args: Any) -> None:
        towers = cache_of(self.trainer)._towers
        next(t for t in towers if "text" in t.tower.name).offload.problem = "it is for this test"
        self.away.append({t.tower.name for t in towers if t.offload.boundary})


def test_a_tower_whose_weights_stay_is_named_if_there_are_others() -> None:
    module = BothFrozen()
    torch.manual_seed(1)
    rows = torch.utils.data.TensorDataset(torch.randn(4, 3, 8, 8), torch.randint(5, 50, (4, 6)))
    with pytest.warns(UserWarning, match="offload=True") as said:
        make_trainer(make_cache(offload=True), epochs=6).fit(module, torch.utils.data.DataLoader(rows, 4))
    (text,) = (str(w.message) for w in said if "offload" in str(w.message))
    assert re.search(r"\(offload=True\) does nothing for tower '.*text.*': it is for this test", text)
    assert ["vision" in name for name in module.away[-1]] == [True]


def test_a_second_fit_says_again_why_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.cache.offload.file_system", lambda path: "tmpfs")
    module, cache = Plain(bert()), make_cache(offload=True)
    for _ in range(2):
        trainer = make_trainer(LayerFreezing("50%", verbose=False), cache, epochs=2)
        with pytest.warns(UserWarning, match="neither cache_dir nor"):
            trainer.fit(module, data())
