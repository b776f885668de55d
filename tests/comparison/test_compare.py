"""The command `compare` on tiny models: what it writes, going on after a kill, changed plans, and fits that fail."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest
from projects_to_compare import run, start

from lightning_freeze import compare
from lightning_freeze.comparison import comparing
from lightning_freeze.errors import ConfigurationError

for library in ("scipy", "matplotlib", "jinja2"):
    pytest.importorskip(library)

FITS = Path("runs/compare/fits")
SLOW = "import time\nfrom lightning.pytorch import Callback\n\n\nclass Slow(Callback):\n"


def results() -> dict[str, int]:
    """When the file of each fit was written."""
    return {str(file.relative_to(FITS)): file.stat().st_mtime_ns for file in FITS.glob("*/seed_?.json")}


def fits() -> list[dict[str, str]]:
    with Path("runs/compare/fits.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


@pytest.mark.slow
def test_all_fits_run_once_and_share_one_cache(project: Path) -> None:
    done = run("--config", "compare.yaml", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 fits to run, results in runs/compare" in done.stdout
    assert "full has the lowest mean test_loss" in done.stdout or "head_only has the lowest" in done.stdout
    assert "Up to 2 fits ran at a time" in done.stdout
    assert [(row["seed"], row["plan"]) for row in fits()] == [
        ("0", "full"),
        ("0", "head_only"),
        ("1", "full"),
        ("1", "head_only"),
    ]
    rows = {(row["plan"], row["seed"]): row for row in fits()}
    assert int(rows["head_only", "0"]["trainable_parameters"]) < 500 < int(rows["full", "0"]["trainable_parameters"])
    assert rows["full", "0"]["test_loss"] != rows["full", "1"]["test_loss"]
    assert rows["full", "0"]["cache_hit_rate"] == "" != rows["head_only", "0"]["cache_hit_rate"]
    assert any((project / "runs/compare/cache").iterdir())
    assert "<svg" in Path("runs/compare/comparison.html").read_text()
    assert not list(project.rglob("*.ckpt")) and not list(project.rglob("*.task.json"))

    # Again: nothing is left to do.
    before = results()
    again = run("--config", "compare.yaml")
    assert again.returncode == 0, again.stderr
    assert "4 of 4 fits were done before" in again.stdout and "to run" not in again.stdout
    assert results() == before

    # Of a changed plan the fits run again, and only these. A new seed is added to all.
    edit("compare.yaml", "lr: 0.01", "lr: 0.02")
    edit("compare.yaml", "seeds: 2", "seeds: 3")
    changed = run("--config", "compare.yaml")
    assert changed.returncode == 0, changed.stderr
    message = "plan 'head_only' has changed since its 2 fits (model.optimizer.init_args.lr: 0.01 -> 0.02), run again"
    assert message in changed.stdout and "4 of 6 fits to run" in changed.stdout
    after = results()
    assert {name for name, when in before.items() if after[name] != when} == {
        "head_only/seed_0.json",
        "head_only/seed_1.json",
    }
    assert set(after) - set(before) == {"full/seed_2.json", "head_only/seed_2.json"}


@pytest.mark.slow
def test_killed_in_mid_run_it_goes_on_and_loses_only_the_running_fit(project: Path) -> None:
    Path("slow.py").write_text(f"{SLOW}    def on_fit_start(self, *_):\n        time.sleep(4)\n")
    edit("base.yaml", "accelerator: cpu", "accelerator: cpu, callbacks: [slow.Slow]")
    process = start("--config=compare.yaml")
    until = time.monotonic() + 300
    while not (FITS / "head_only/seed_0/config.yaml").exists() and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = results()
    assert list(before) == ["full/seed_0.json"]
    time.sleep(8)  # more than the rest of the running fit takes
    assert results() == before, "the process of the running fit ends with the comparison"
    # What a kill in the middle of a write would leave in place of the file.
    (FITS / "full").joinpath(".seed_1.json.77.tmp").write_text('{"key": "')
    done = run("--config=compare.yaml")
    assert done.returncode == 0, done.stderr
    assert "1 of 4 fits were done before" in done.stdout and "3 of 4 fits to run" in done.stdout
    assert results()["full/seed_0.json"] == before["full/seed_0.json"]
    assert len(results()) == 4


@pytest.mark.slow
def test_interrupted_it_ends_its_fits_and_goes_on_when_called_again(project: Path) -> None:
    Path("slow.py").write_text(
        f"import os, pathlib\n{SLOW}    def on_fit_start(self, *_):\n"
        "        pathlib.Path(f'{os.getpid()}.pid').touch()\n        time.sleep(300)\n"
    )
    edit("base.yaml", "accelerator: cpu", "accelerator: cpu, callbacks: [slow.Slow]")
    edit("compare.yaml", "seeds: 2", "seeds: 1")
    process = start("--config=compare.yaml", "--workers=2")
    until = time.monotonic() + 300
    while len(list(project.glob("*.pid"))) < 2 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # to this process alone, as a notebook does
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert said.endswith(
        "error: interrupted. The same command goes on where it was; fits that were running start again.\n"
    )
    assert "Traceback" not in said
    for file in project.glob("*.pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.stem), 0)
    assert results() == {} and not list(project.rglob("*.task.json"))
    Path("slow.py").write_text(f"{SLOW}    pass\n")
    done = run("--config=compare.yaml")
    assert done.returncode == 0, done.stderr
    assert len(results()) == 2


@pytest.mark.slow
def test_fits_that_fail_are_reported_and_tried_again(project: Path) -> None:
    Path("crash.py").write_text(
        "import os\nfrom lightning.pytorch import Callback\n\n\nclass Crash(Callback):\n"
        "    def on_train_start(self, *_):\n        os.kill(os.getpid(), 9)\n\n\n"
        "class Bug(Callback):\n    def on_train_start(self, *_):\n        self.missing\n"
    )
    edit("compare.yaml", "seeds: 2", "seeds: 1")
    with Path("compare.yaml").open("a") as file:
        file.write("  crashes: {trainer.callbacks+: [crash.Crash]}\n  has_bug: {trainer.callbacks+: [crash.Bug]}\n")
        file.write("  diverges: {model.optimizer: {class_path: torch.optim.SGD, init_args: {lr: 1.0e+30}}}\n")
    done = run("--config=compare.yaml", "--workers=2")
    assert done.returncode == 1, done.stderr
    errors = {row["plan"]: row["error"] for row in fits()}
    assert errors["full"] == errors["head_only"] == ""
    assert errors["crashes"] == "its process was ended by SIGKILL."
    assert "AttributeError" in errors["has_bug"]
    assert "The run has diverged" in errors["diverges"]
    assert "Traceback" in (FITS / "has_bug/seed_0.log").read_text()
    assert "Note: crashes, seed 0 has failed: its process was ended by SIGKILL." in done.stdout
    assert "failed" in Path("runs/compare/comparison.html").read_text()
    Path("crash.py").write_text(f"{SLOW}    pass\n\n\nCrash = Bug = Slow\n")
    again = run("--config=compare.yaml")
    assert again.returncode == 1  # the plan that diverges still does
    assert "2 of 5 fits were done before" in again.stdout and "crashes, seed 0: test_loss" in again.stdout


@pytest.mark.slow
def test_python_a_forgetting_metric_and_checkpoints(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("norms.py").write_text(
        "class Norm:\n    higher_is_better = False\n\n    def __init__(self, scale):\n        self.scale = scale\n\n"
        "    def __call__(self, module, datamodule):\n"
        "        return self.scale * float(sum(p.detach().pow(2).sum() for p in module.parameters()))\n"
    )
    freezing = {"class_path": "LayerFreezing", "init_args": {"layers": "embeddings"}}
    config = {
        "base": "base.yaml",
        "seeds": [4],
        "plans": {"full": {}, "frozen": {"trainer.callbacks+": [freezing]}},
        "forgetting": {"class_path": "norms.Norm", "init_args": {"scale": 2.0}},
        "keep_checkpoints": True,
    }
    found = compare(config, directory="here", verbose=False)
    assert capsys.readouterr().out == ""
    assert found.metric == "test_accuracy" and found.seeds == (4,)
    assert all(plan.forgetting for plan in found.plans) and "forgetting" in str(found)
    assert any("With one seed" in note for note in found.notes)
    assert len(list(Path("here").rglob("*.ckpt"))) == 2
    saved = json.loads(Path("here/comparison.json").read_text())
    assert saved["plans"][0]["forgetting"] == found.plans[0].forgetting


@pytest.mark.slow
def test_a_wrong_comparison_file_is_an_error_before_any_fit(project: Path) -> None:
    edit("compare.yaml", "class_path: LayerFreezing", "class_path: LayerFreezin")
    with pytest.raises(ConfigurationError, match=r"plan 'head_only': .*Did you mean 'LayerFreezing'"):
        compare("compare.yaml")
    assert not FITS.exists()


@pytest.mark.slow
def test_code_of_the_project_that_fails_keeps_its_traceback(project: Path) -> None:
    Path("metric.py").write_text("class Metric:\n    def __init__(self):\n        self.missing\n")
    with Path("compare.yaml").open("a") as file:
        file.write("forgetting: {class_path: metric.Metric}\n")
    with pytest.raises(RuntimeError, match=r"metric.py., line 3(.|\n)*AttributeError: 'Metric' object"):
        compare("compare.yaml")


@pytest.mark.slow
def test_wrong_arguments(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"workers is 0: expected a whole number, 1 or more"):
        compare("compare.yaml", workers=0)
    with pytest.raises(ConfigurationError, match=r"engine is 'rai'.* Did you mean 'ray'"):
        compare("compare.yaml", engine="rai")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"address is 'auto': expected engine='ray' with it"):
        compare("compare.yaml", address="auto")
    with pytest.raises(ConfigurationError, match=r"workers is 2: expected 1 with engine='ray'"):
        compare("compare.yaml", workers=2, engine="ray")
    with pytest.raises(ConfigurationError, match=r"does not exist: .* Did you mean 'compare.yaml'"):
        compare("compar.yaml")
    with pytest.raises(ConfigurationError, match="the settings are not plain data"):
        compare({"plans": {"a": object(), "b": None}})
    monkeypatch.setattr(comparing, "_LIBRARIES", ("scipy", "no_such_library"))
    with pytest.raises(ConfigurationError, match=r"needs no_such_library: pip install 'lightning-freeze\[compare\]'"):
        compare("compare.yaml")


@pytest.mark.slow
def test_one_comparison_at_a_time_in_a_directory(project: Path) -> None:
    with comparing._locked(Path("here")), pytest.raises(ConfigurationError, match="another comparison is running"):
        compare("compare.yaml", directory="here")
    Path("file").touch()
    with pytest.raises(ConfigurationError, match="directory is 'file', which cannot be used"):
        compare("compare.yaml", directory="file")


@pytest.mark.slow
def test_the_command_names_a_wrong_option(project: Path) -> None:
    done = run("--config=compare.yaml", "--worker=2")
    assert (done.returncode, done.stderr) == (2, "error: There is no option --worker. Did you mean '--workers'?\n")
    done = run("--config=base.yaml", "--config=compare.yaml")
    assert (done.returncode, done.stderr) == (2, "error: --config is given 2 times: expected one comparison file.\n")
    assert os.listdir(".") and not Path("runs").exists()
