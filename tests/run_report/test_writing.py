from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from lightning_freeze.run_report.writing import path_in, write_atomically


def test_a_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "page.html"
    write_atomically(str(path), "one \ud800")
    assert path.read_text() == "one ?"

    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="no space"):
        write_atomically(str(path), "two")
    assert path.read_text() == "one ?"
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]


def test_a_remote_folder() -> None:
    path = path_in("memory://runs/one", "page.html")
    assert path == "memory://runs/one/page.html"
    write_atomically(path, "text")
    assert fsspec.filesystem("memory").cat("/runs/one/page.html") == b"text"
