"""The toys of the callbacks' tests serve here too."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's finders keep a checkpoint in the working directory for a while."""
    monkeypatch.chdir(tmp_path)
