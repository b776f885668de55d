"""A config names a class of the user's project, in the folder where the command runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_freeze

PROJECT = "from lightning_freeze import TextDataModule\n\n\nclass Mine(TextDataModule):\n    pass\n"
ROWS = "text,label\n" + "".join(f"it is {word} {i},{word}\n" for i in range(10) for word in ("good", "bad"))


@pytest.fixture
def project(tmp_path, tiny_bert_dir) -> list[str]:
    """A project with a data module; the options of a fit that uses it."""
    (tmp_path / "my_project.py").write_text(PROJECT)
    (tmp_path / "data.csv").write_text(ROWS)
    return [f"--model.encoder={tiny_bert_dir}", "--data=my_project.Mine", "--data.data=data.csv"]


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
