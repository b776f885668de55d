"""The script that fetches the data: what it converts, keeps, refuses, and says when there is no network."""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "reviews" / "prepare.py"
RATINGS = "1_1\t-0.9\tno picture.\r\n1_2\t0.0\tit is a player.\r\n2_1\t2.6\twow, great!\r\n"


@pytest.fixture
def prepare() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_label_is_the_sign_of_the_rating_and_review_the_number_before_the_underscore(prepare):
    assert prepare.to_csv(RATINGS) == (
        'text,label,review\nno picture.,negative,1\nit is a player.,negative,1\n"wow, great!",positive,2\n'
    )


@pytest.mark.parametrize(("home", "expected"), [("/big/disk", "/big/disk"), ("relative", "~/.cache"), ("", "~/.cache")])
def test_cache_folder_follows_the_xdg_specification(prepare, monkeypatch, home, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert prepare.cache_folder() == Path(expected).expanduser() / "lightning-freeze" / "reviews"


def test_a_damaged_file_is_noticed_and_a_good_one_kept(prepare, tmp_path, capsys):
    file = tmp_path / "reviews.csv"
    assert not prepare.is_intact(file, "00")
    file.write_text("half of it")
    assert prepare.is_intact(file, prepare.sha256_of(file))
    assert not prepare.is_intact(file, "00")
    assert str(file) in capsys.readouterr().out


def test_a_package_with_another_checksum_is_refused(prepare, tmp_path):
    file = tmp_path / "package.whl"
    file.write_text("something else")
    with pytest.raises(prepare.PrepareError, match=r"a==1 has SHA-256 \w{64}, expected 00"):
        prepare.verify(file, "00", "a==1")


def run_offline(cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "XDG_CACHE_HOME": str(cache),
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": "/dev/null",
        "HOME": str(cache),
    }
    return subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True)


def test_without_a_package_index_it_says_so_and_leaves_nothing_behind(tmp_path):
    run = run_offline(tmp_path)
    assert run.returncode == 1
    assert "could not fetch vaderSentiment==3.3.2" in run.stderr
    assert "pip config list" in run.stderr
    assert "Traceback" not in run.stderr
    assert list((tmp_path / "lightning-freeze" / "reviews").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "lightning-freeze").write_text("a file where the folder should be")
    run = run_offline(tmp_path)
    assert run.returncode == 1
    assert "cannot write the data" in run.stderr
    assert "XDG_CACHE_HOME" in run.stderr
    assert "Traceback" not in run.stderr


def test_link_replaces_an_old_link_but_never_a_folder(prepare, tmp_path, monkeypatch):
    link, cache, old = tmp_path / "data", tmp_path / "cache", tmp_path / "old"
    cache.mkdir()
    # `runpy` gives a copy of the namespace; the functions look names up in their own globals.
    monkeypatch.setitem(prepare.link_to.__globals__, "LINK", link)
    link.symlink_to(old)
    prepare.link_to(cache)
    prepare.link_to(cache)
    assert link.resolve() == cache.resolve()
    link.unlink()
    link.mkdir()
    (link / "mine.csv").write_text("mine")
    with pytest.raises(prepare.PrepareError, match="is not a link"):
        prepare.link_to(cache)
    assert (link / "mine.csv").read_text() == "mine"
