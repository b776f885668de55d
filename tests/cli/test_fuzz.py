"""A few of the inputs of `make fuzz`, which tries a thousand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz_command_line.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*")
def test_no_traceback_and_no_silent_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])
    spec = importlib.util.spec_from_file_location("fuzz_command_line", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    findings = script.fuzz(seed=1, lines=40, calls=300)
    assert findings.cases == 340 and findings.found == []
