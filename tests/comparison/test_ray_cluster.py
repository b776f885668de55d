"""Comparisons on a real Ray cluster of this machine, one of whose nodes is lost in mid-run."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from projects_to_compare import environment, run, start

pytest.importorskip("ray")
pytest.importorskip("scipy")
pytestmark = pytest.mark.slow

SLOW_START = """
import time
import uuid
from pathlib import Path

from lightning.pytorch import Callback


class SlowStart(Callback):
    def on_fit_start(self, trainer, pl_module):
        Path(f"attempt-{uuid.uuid4()}").touch()
        time.sleep(10)
"""


@pytest.fixture
def cluster(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, and two worker nodes with one each."""
    from ray.cluster_utils import Cluster

    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{environment()['PYTHONPATH']}:{project}")
    small = {"object_store_memory": 80 * 1024 * 1024}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    found.workers = [found.add_node(num_cpus=1, **small) for _ in range(2)]
    found.wait_for_nodes()
    yield found
    found.shutdown()


def table() -> list[dict[str, str]]:
    with Path("runs/compare/fits.csv").open(newline="") as file:
        return [{name: row[name] for name in ("plan", "seed", "test_loss", "error")} for row in csv.DictReader(file)]


def test_a_node_is_killed_in_mid_run_and_its_fit_runs_again(cluster: Any, project: Path) -> None:
    Path("slow_start.py").write_text(SLOW_START)
    Path("base.yaml").write_text(
        Path("base.yaml").read_text().replace("accelerator: cpu", "accelerator: cpu, callbacks: [slow_start.SlowStart]")
    )
    process = start("--config=compare.yaml", "--engine=ray", f"--address={cluster.address}")
    until = time.monotonic() + 300
    while len(list(project.glob("attempt-*"))) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    assert process.poll() is None, process.stdout.read() if process.stdout else ""
    assert len(list(project.glob("attempt-*"))) == 2  # one fit on each node
    cluster.remove_node(cluster.workers[0], allow_graceful=False)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "4 of 4" in output and "has failed" not in output
    assert len(list(project.glob("attempt-*"))) == 5  # the fit of the lost node has run twice
    on_ray = table()
    assert len(on_ray) == 4
    assert run("--config=compare.yaml", "--directory=local").returncode == 0
    Path("runs/compare").rename("on_ray")
    Path("runs/compare").symlink_to(project / "local")
    assert table() == on_ray


def test_fits_that_fail_and_resources_that_no_node_has(cluster: Any, project: Path) -> None:
    text = Path("compare.yaml").read_text()
    Path("compare.yaml").write_text(text + "resources: {num_cpus: 1, num_gpus: 1}\n")
    done = run("--config=compare.yaml", "--engine=ray", f"--address={cluster.address}")
    assert done.returncode == 2
    assert "resources.num_gpus is 1: expected at most 0, because no machine of the cluster has more." in done.stderr
    text += "  wrong: {trainer.callbacks+: [{class_path: LayerFreezing, init_args: {layers: heda}}]}\n"
    Path("compare.yaml").write_text(text)
    done = run("--config=compare.yaml", "--engine=ray", f"--address={cluster.address}")
    assert done.returncode == 1, done.stderr
    assert "wrong, seeds 0, 1 have failed" in done.stdout and "heda" in done.stdout
    assert [row["plan"] for row in table() if row["error"]] == ["wrong", "wrong"]


def test_no_cluster_answers(project: Path) -> None:
    done = run("--config=compare.yaml", "--engine=ray", "--address=auto")
    assert done.returncode == 2
    assert "no Ray cluster answers there" in done.stderr
