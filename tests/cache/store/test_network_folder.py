"""A ``cache_dir`` on a network file system: entries are kept on a local disk, or in memory."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from cached_fits import Plain, assert_same, loader, make_cache, make_trainer
from encoders import bert, frozen

from lightning_freeze.cache.store import network_folder, store
from lightning_freeze.cache.store.folder import MARKER
from lightning_freeze.cache.store.network_folder import file_system, replacement
from lightning_freeze.cli.cache import main

KEY, SPACE = b"k" * 16, b"n" * 16


class Machine:
    """Tells the package of mounts of its own making."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = path
        self._file = path / "mounts"
        self._lines = ["rootfs / ext4 rw 0 0"]
        monkeypatch.setattr(network_folder, "_MOUNTS", self._file)
        (path / "tmp").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(path / "tmp"))
        store._warn_of_network.cache_clear()
        self._write()

    def mount(self, name: str, kind: str) -> Path:
        place = self.root / name
        place.mkdir(exist_ok=True)
        text = str(place).replace(" ", "\\040")
        self._lines.append(f"server:/export {text} {kind} rw,relatime 0 0")
        self._write()
        return place

    def _write(self) -> None:
        self._file.write_text("\n".join(self._lines) + "\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "9p", "afs", "glusterfs", "fuse.sshfs",
     "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.juicefs", "fuse.mount-s3", "fuse", "dvs",
     "ocfs2", "gfs2", "wekafs"],
)  # fmt: skip
def test_network_file_systems(machine: Machine, kind: str) -> None:
    found = replacement(machine.mount("shared", kind) / "not" / "there yet")
    assert found is not None and found.file_system == kind
    assert found.folder is not None and found.folder.is_relative_to(machine.root / "tmp")


@pytest.mark.parametrize(
    "kind",
    [
        "ext4",
        "xfs",
        "btrfs",
        "zfs",
        "overlay",
        "tmpfs",
        "apfs",
        "fuseblk",
        "f2fs",
        "fuse.fuse-overlayfs",
        "fuse.gocryptfs",
    ],
)
def test_local_file_systems(machine: Machine, kind: str) -> None:
    assert replacement(machine.mount("disk", kind) / "cache") is None


def test_the_deepest_and_latest_mount_counts(machine: Machine) -> None:
    outer = machine.mount("outer", "nfs4")
    inner = machine.mount("outer/local disk", "xfs")
    assert file_system(inner / "cache") == "xfs" and file_system(outer / "local") == "nfs4"
    machine.mount("auto", "autofs")
    assert file_system(machine.mount("auto", "nfs")) == "nfs"
    assert file_system(machine.root / "outer-is-no-folder-of-this") == "ext4"


def test_a_link_to_a_network_folder(machine: Machine) -> None:
    (machine.root / "link").symlink_to(machine.mount("shared", "nfs"))
    assert replacement(machine.root / "link" / "cache") == replacement(machine.root / "shared" / "cache") is not None


def test_unknown_where_there_is_no_table_of_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_folder, "_MOUNTS", tmp_path / "none")
    assert file_system(tmp_path) is None and replacement(tmp_path) is None


@pytest.mark.parametrize("kind", ["nfs4", "tmpfs"])
def test_memory_where_no_local_disk_is_known(machine: Machine, kind: str) -> None:
    machine.mount("tmp", kind)
    shared = machine.mount("shared", "nfs4") / "cache"
    with pytest.warns(UserWarning, match=r"network file system \(nfs4\).*kept in memory instead.*local disk"):
        opened = store.open_store(shared)
    opened.put(SPACE, [KEY], [torch.ones(3)])
    opened.flush()
    assert torch.equal(opened.get(SPACE, [KEY])[0], torch.ones(3))  # type: ignore[arg-type]
    assert not shared.exists() and not list((machine.root / "tmp").iterdir())


def test_a_local_folder_that_others_can_write_to_is_not_used(machine: Machine) -> None:
    planted = machine.root / "tmp" / f"lightning-freeze-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    found = replacement(machine.mount("shared", "nfs4"))
    assert found is not None and found.folder is None


def test_a_link_in_place_of_the_local_folder_is_not_used(machine: Machine) -> None:
    (machine.root / "victim").mkdir()
    (machine.root / "tmp" / f"lightning-freeze-{os.getuid()}").symlink_to(machine.root / "victim")
    found = replacement(machine.mount("shared", "nfs4"))
    assert found is not None and found.folder is None and not list((machine.root / "victim").iterdir())


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"])
def test_only_the_first_rank_of_a_node_warns(machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.open_store(machine.mount("shared", "nfs4") / "cache").close()


def test_runs_on_a_network_folder(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs equal one without a cache, the second is warm, one warning is shown, and the command finds the cache."""
    shared = machine.mount("shared", "nfs4") / "cache"
    fitted = []
    rates = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for cache in (None, make_cache(cache_dir=shared), make_cache(cache_dir=shared)):
            module = Plain(bert())
            torch.manual_seed(1)
            make_trainer(frozen(), *([cache] if cache else []), epochs=2).fit(module, loader())
            fitted.append(module)
            rates.append(cache.hit_rate if cache else 0.0)
    assert_same(fitted[0], fitted[1])
    assert_same(fitted[0], fitted[2])
    assert rates[2] > rates[1] > 0
    assert len([w for w in caught if "network file system" in str(w.message)]) == 1
    assert not shared.exists()
    (own,) = (machine.root / "tmp").glob("lightning-freeze-*/*")
    assert (own / MARKER).is_file() and own.parent.stat().st_mode & 0o077 == 0
    main(["verify", str(shared)])
    assert f"{own}: 12 entries are sound, 0 are damaged" in capsys.readouterr().out
