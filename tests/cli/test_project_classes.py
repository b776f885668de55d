"""A config names a class of the user's project, in the folder where the command runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_freeze
from lightning_freeze.cli import command_line

PROJECT = "from lightning_freeze import TextDataModule\n\n\nclass Mine(TextDataModule):\n    pass\n"
ROWS = "text,label\n" + "".join(f"it is {word} {i},{word}\n" for i in range(10) for word in ("good", "bad"))


@pytest.fixture
def project(tmp_path, tiny_bert_dir) -> list[str]:
    """A project with a data module; the options of a fit that uses it."""
    (tmp_path / "my_project.py").write_text(PROJECT)
    (tmp_path / "data.csv").write_text(ROWS)
    return [f"--model.encoder={tiny_bert_dir}", "--data=my_project.Mine", "--data.data=data.csv"]


@pytest.mark.slow
def test_the_command_finds_classes_in_the_current_folder(project, tmp_path):
    # As the installed command does: the folder of the script is on the path, the current folder is not.
    script = tmp_path / "bin" / "command.py"
    script.parent.mkdir()
    script.write_text("from lightning_freeze.cli.command_line import main\nmain()\n")
    root = str(Path(lightning_freeze.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, str(script), "fit", *project, "--trainer.fast_dev_run=true", "--report=false"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


BROKEN = {
    "a library that is missing": (
        "import no_such_library\n",
        "ModuleNotFoundError: No module named 'no_such_library' (",
    ),
    "an error": ("\nraise ValueError('not here')\n", "ValueError: not here ("),
    "an error without a text": ("assert False\n", "AssertionError ("),
    "a syntax error": ("class Mine(:\n", "SyntaxError: invalid syntax (broken.py, line 1)"),
}


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("given", ["--trainer.callbacks+=broken.Mine", "--config=run.yaml"])
@pytest.mark.parametrize("code, reason", BROKEN.values(), ids=BROKEN)
def test_a_module_that_cannot_be_imported_is_named_with_the_reason(code, reason, given, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.py").write_text(code)
    (tmp_path / "run.yaml").write_text("trainer:\n  callbacks:\n    - class_path: broken.Mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(SystemExit) as end:
        command_line.main(["fit", given])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"trainer.callbacks: 'broken.Mine' cannot be imported. {reason}" in error
    assert reason.startswith("Syntax") or f"broken.py, line {code.count(chr(10))})" in error


def test_a_damaged_library_is_named_without_a_line_that_is_not_of_the_user(tmp_path, monkeypatch, capsys):
    (tmp_path / "damaged.so").write_bytes(b"x")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(SystemExit):
        command_line.main(["fit", "--trainer.callbacks+=damaged.Mine"])
    error = capsys.readouterr().err
    assert "'damaged.Mine' cannot be imported. ImportError: " in error
    assert "importlib" not in error and "known_classes" not in error
