"""What the scripts of the experiments make of the packages' files, and what they say without a package index."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
#: These make what they need themselves.
NOTHING_FETCHED = ("audio", "vision")
SCRIPTS = sorted(
    path
    for path in EXPERIMENTS.glob("*/prepare.py")
    if "sources import" in path.read_text() and path.parent.name not in NOTHING_FETCHED
)


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    module = load(EXPERIMENTS / "sources.py")
    monkeypatch.setitem(sys.modules, "sources", module)
    return module


def test_the_scripts_are_there():
    assert {path.parent.name for path in SCRIPTS} >= {"chatbot", "code_docs", "medical", "multilingual", "social_media"}


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_without_a_package_index_a_script_says_so_and_leaves_nothing_unfinished(script, tmp_path):
    link = script.parent / "data"
    linked = os.readlink(link) if link.is_symlink() else None
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": "/dev/null",
        "HOME": str(tmp_path),
    }
    environment.pop("PIP_FIND_LINKS", None)
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: pip could not fetch" in done.stderr and "pip config list" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "lightning-freeze").glob("*/.*"))
    assert (os.readlink(link) if link.is_symlink() else None) == linked


def test_a_package_with_another_checksum_is_refused(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def download(command, **_):
        (Path(command[command.index("--dest") + 1]) / "a-1.whl").write_text("something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sources.subprocess, "run", download)
    with pytest.raises(sources.PrepareError, match=r"a==1 has SHA-256 \w{64}, expected 00: not using it"):
        sources.fetch(sources.Package("a==1", "00"))


def test_what_is_there_is_kept_and_what_fails_leaves_nothing(sources, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sources, "EXPERIMENTS", tmp_path)
    (tmp_path / "here").mkdir()
    sources.run("here", {"a.txt": lambda target: target.write_text("a")})
    assert (tmp_path / "here" / "data" / "a.txt").read_text() == "a"

    def fail(target: Path) -> None:
        target.write_text("half of it")
        raise sources.PrepareError("no network")

    with pytest.raises(SystemExit, match="error: no network"):
        sources.run("here", {"a.txt": fail_if_called, "b.txt": fail})
    assert [path.name for path in (tmp_path / "lightning-freeze" / "here").iterdir()] == ["a.txt"]
    assert "a.txt: already at" in capsys.readouterr().out


def fail_if_called(target: Path) -> None:
    raise AssertionError(target)


def test_functions_lose_their_docstring_and_keep_its_first_paragraph(sources):
    script = load(EXPERIMENTS / "code_docs" / "prepare.py")
    source = 'def add(a, b):\n    """Return the\n    sum.\n\n    More."""\n    return a + b\n\ndef bare():\n    pass\n'
    assert list(script.functions(source)) == [("def add(a, b):\n    return a + b", "Return the sum.")]


def test_a_debian_package_is_fetched_into_an_empty_folder_and_checked(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = sources.Package("a=1", sources.hashlib.sha256(b"content").hexdigest(), client="apt-get")

    def download(command, cwd, **_):
        assert command == ["apt-get", "download", "a=1"]
        (Path(cwd) / "a_1_amd64.deb").write_bytes(b"content")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sources.subprocess, "run", download)
    assert sources.fetch(package).read_bytes() == b"content"


def test_a_client_that_is_missing_is_named(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sources.PrepareError, match="apt-get is missing: expected it, to fetch a=1"):
        sources.fetch(sources.Package("a=1", "00", client="apt-get"))


def test_an_aligned_sequence_is_translated_without_its_gaps(sources):
    script = load(EXPERIMENTS / "protein" / "prepare.py")
    assert script.translated("CAGGTG...NNNTGG..") == "QVXW"
    assert script.translated("CAGTAAGTG") == ""
