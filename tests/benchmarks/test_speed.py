"""A comparison looks for the tools that it needs before it measures anything, and shows what it has measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import speed
from benchmarks.speed import missing_tools
from benchmarks.speedtest.subjects import QUICK


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "find_spec", lambda package: None)


@pytest.mark.parametrize("arguments", [["bert-75", "--without", "full fine-tuning"], ["--publish"]], ids=" ".join)
@pytest.mark.usefixtures("without_packages")
def test_a_missing_tool_is_named_before_anything_is_measured(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured")

    for name in ("times", "publish"):
        monkeypatch.setattr(speed, name, measured)
    monkeypatch.setattr(speed, "quiet", lambda threads: None)  # it is for the whole process
    monkeypatch.setattr(sys, "argv", ["speed.py", "--quick", *arguments])
    with pytest.raises(SystemExit):
        speed.main()
    said = capsys.readouterr().err
    assert "not installed: finetuning-scheduler. pip install" in said
    assert ("--without 'full fine-tuning' finetuning-scheduler" in said) == ("--publish" not in arguments)


@pytest.mark.parametrize(
    "arguments", [["bert-75"], ["--rounds", "2"], ["--memory"], ["--without", "full fine-tuning"], ["--threads", "9"]]
)
def test_a_publication_decides_about_everything_itself(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", "--publish", "--quick", *arguments])
    with pytest.raises(SystemExit):
        speed.main()
    assert "--publish decides about models, rounds and contenders" in capsys.readouterr().err


def test_data_that_are_missing_are_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(speed, "REVIEWS", tmp_path / "data")
    monkeypatch.setattr(speed, "find_spec", lambda package: package)
    monkeypatch.setattr(speed, "quiet", lambda threads: None)
    monkeypatch.setattr(sys, "argv", ["speed.py", "--publish"])
    with pytest.raises(SystemExit):
        speed.main()
    assert "python experiments/reviews/prepare.py" in capsys.readouterr().err


@pytest.mark.usefixtures("without_packages")
def test_only_what_is_compared_must_be_installed() -> None:
    static, gradual = QUICK["bert-75"](), QUICK["gradual"]()
    assert missing_tools([gradual]) == []
    assert missing_tools([gradual, static]) == ["finetuning-scheduler"]
    assert missing_tools([static], without=["finetuning-scheduler"]) == []


def test_the_first_step_is_shown_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([[3.0, 1.0, 1.0], [5.0, 2.0, 4.0], [4.0, 3.0, 3.0]])
    monkeypatch.setattr(speed, "contenders_of", lambda *_: {"full fine-tuning": lambda *_: lambda: next(rounds)})
    options = speed.option_parser().parse_args(["bert-75", "--quick", "--rounds", "3"])
    row = speed.times(QUICK["bert-75"](), options).rows["full fine-tuning"]
    assert str(row["a step, s"]) == "3.00 (1.00-4.00)"
    assert str(row["the first step, s"]) == "4.00 (3.00-5.00)"
