"""Code blocks of the README and of docs/: Python runs, configs and command lines are read by the command line."""

from __future__ import annotations

import argparse
import doctest
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_project
from code_blocks import CodeBlock, blocks_of, commands_of

from lightning_freeze.cli import advise, compare, plan
from lightning_freeze.cli.command_line import main
from lightning_freeze.cli.parsing.config_files import load_yaml
from lightning_freeze.comparison.settings import read_settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {page: list(blocks_of(page)) for page in PAGES}
PYTHON = [page for page, blocks in BLOCKS.items() if any(block.language == "python" for block in blocks)]
#: The examples of these pages take several seconds.
SLOW = ("advise.md", "plan.md", "report.md", "warnings.md")
YAML = [(page, block) for page, blocks in BLOCKS.items() for block in blocks if block.language == "yaml"]
SHELL = [
    (page, block, command)
    for page, blocks in BLOCKS.items()
    for block in blocks
    if block.language in ("bash", "console", "sh")
    for command in commands_of(block)
]


def label(value: Any) -> str | None:
    if isinstance(value, Path):
        return str(value.relative_to(ROOT))
    return f"line {value.line}" if isinstance(value, CodeBlock) else None


class Parsed(Exception):
    """An argument parser has accepted its arguments."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which a page is tried: what a block writes, it writes here."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    shutil.copy(ROOT / "experiments" / "reviews" / "base.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: Path, block: CodeBlock, names: dict[str, Any]) -> None:
    """Run a Python block, or the examples of an interactive session, as part of its page."""
    where = f"{page.relative_to(ROOT)}, line {block.line}"
    if ">>>" not in block.text:
        # Line numbers of a traceback are those of the page.
        code = compile("\n" * block.line + block.text, str(page), "exec")
        if block.not_run is None:
            exec(code, names)
        return
    # An example without an output shows no output: only those with one are compared.
    test = doctest.DocTestParser().get_doctest(block.text, names, where, str(page), block.line)
    for example in test.examples:
        if example.want:
            value = eval(example.source, names)
            assert f"{value!r}\n" == example.want, where
        else:
            exec(example.source, names)


def reads_config(*args: str) -> None:
    """Check that the command line accepts options and configs, without building or running anything."""
    with pytest.raises(SystemExit) as exit_:
        main([*args, "--print_config"])
    assert not exit_.value.code


def test_blocks_were_found() -> None:
    assert len(PYTHON) > 8
    assert len(YAML) > 5
    assert len(SHELL) > 5


@pytest.mark.fast_cases(11, "README.md")
@pytest.mark.filterwarnings("default:::lightning_freeze")
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page.name in SLOW else page for page in PYTHON], ids=label
)
def test_python_blocks_run(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS[page]:
        if block.language == "python":
            # Each block has a fresh module, and what the blocks before it on the page have defined.
            names |= tiny_project.names()
            run(page, block, names)


@pytest.mark.fast_cases(11)
@pytest.mark.parametrize(("page", "block"), YAML, ids=label)
def test_yaml_blocks_are_read_by_the_command_line(page: Path, block: CodeBlock, folder: Path) -> None:
    (folder / "config.yaml").write_text(block.text)
    if "\nplans:" in f"\n{block.text}":
        read_settings(load_yaml(block.text), "config.yaml")
        return
    reads_config("fit", "--config=config.yaml")


@pytest.mark.fast_cases(9)
@pytest.mark.parametrize(("page", "block", "command"), SHELL, ids=label)
def test_commands_are_read_by_the_command_line(
    page: Path, block: CodeBlock, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A page that calls for config.yaml shows it before.
    for shown in BLOCKS[page]:
        if shown.language == "yaml" and shown.line < block.line:
            (folder / "config.yaml").write_text(shown.text)
    subcommand, *args = shlex.split(command.removeprefix("lightning-freeze "))
    if subcommand == "compare":
        (config,) = compare._parser().parse_args(args).config
        assert Path(config).is_file()
        return
    own = {"plan": plan._parser, "advise": advise._parser}.get(subcommand)
    if own is not None:
        _, args = own().parse_known_args(args)
        subcommand = "fit"
    if subcommand == "cache" and args[0] == "fill":
        subcommand, args = "fit", args[1:]
    if subcommand in ("layers", "cache", "merge-checkpoint"):
        parse = argparse.ArgumentParser.parse_args

        def parse_only(self: argparse.ArgumentParser, *given: Any) -> None:
            parse(self, *given)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        with pytest.raises(Parsed):
            main([subcommand, *args])
    else:
        reads_config(subcommand, *args)
