"""Weights that cannot leave stay where they are, and the run goes on."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cached_fits import Plain
from encoders import bert
from offloaded_fits import away, fit, prefix
from torch import Tensor, nn

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
