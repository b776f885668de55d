"""The rooms of the package: their imports, their docstrings, and the number of files in them."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_freeze"
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    done.stdout = re.sub(r"\x1b\[\d+m", "", done.stdout)  # some versions colour what no terminal reads
    return done


def test_each_room_imports_only_rooms_below_it_and_no_files_import_each_other_in_a_circle() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("room", "line", "broken"),
    [
        (
            "layers/modes.py",
            "from lightning_freeze.session import holds",
            "Each room imports only rooms below it BROKEN",
        ),
        (
            "schedule/triggers.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lightning_freeze.schedule import phases",
            "No files import each other in a circle BROKEN",
        ),
    ],
)
def test_the_check_notices_an_import_upwards_and_a_circle_for_types_only(
    room: str, line: str, broken: str, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for source in PACKAGE.rglob("*.py"):
        copied = tmp_path / source.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(source.read_text())
    wrong = tmp_path / "lightning_freeze" / room
    wrong.write_text(f"{wrong.read_text()}\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert broken in done.stdout


def test_the_top_level_holds_rooms() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "errors.py", "py.typed"}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(PACKAGE)))
def test_a_room_says_what_it_is_for_what_it_may_import_and_where_to_begin(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    assert "\n\n" in text, "a first line and more"
    assert "import" in text.lower()
    assert "begin reading" in text.lower()


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(PACKAGE)))
def test_no_room_is_crowded(room: Path) -> None:
    assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= 13


def test_the_picture_of_the_rooms_is_that_of_the_lint_step() -> None:
    rooms = drawing()
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert rooms.page_with(page, rooms.diagram()) == page, "run: python docs/rooms.py --write"
