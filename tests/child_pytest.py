"""Runs pytest in a process of its own, to see what a plugin of the tests does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_pytest(folder: Path, plugin: str, tests: str, *options: str, fails: bool = False) -> tuple[list[str], str]:
    """Run tests that print ``ran <name>``.

    Args:
        folder: An empty folder; the tests become its file ``test_them.py``.
        plugin: The plugin, a module beside this one.
        tests: The code of the tests.
        options: Further arguments.
        fails: Whether the run is meant to fail.

    Returns:
        The names of the tests that ran, in their order, and all that pytest printed.
    """
    (folder / "test_them.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    command = [sys.executable, "-m", "pytest", "-p", plugin, "-p", "no:cacheprovider", "-s", "-rs", "--strict-markers"]
    done = subprocess.run(
        [*command, *options], cwd=folder, env={"PYTHONPATH": str(Path(__file__).parent)}, capture_output=True, text=True
    )
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return [line.split("ran ")[1][0] for line in done.stdout.splitlines() if "ran " in line], done.stdout
