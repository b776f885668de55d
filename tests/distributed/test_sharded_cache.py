"""A sharded module trains with the cache as without it, bit for bit, and all ranks run the same layers."""

import pytest
import torch
from distributed_processes import are_identical, load, run_script
from sharded_cache_script import CASES, REFUSED, RESUMED

from lightning_freeze.cache.store import folder


def outcomes(run):
    return [decision.partition(":")[0] for decision in run["decisions"]]


def assert_same_losses(run, losses):
    assert run["losses"] and len(run["losses"]) == len(losses)
    assert all(map(torch.equal, run["losses"], losses))


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    out = tmp_path_factory.mktemp("fits")
    run_script("sharded_cache_script.py", out, *CASES, *REFUSED)
    return out


@pytest.mark.slow
def test_cached_equals_uncached(fits):
    for name in CASES:
        ranks = {kind: [load(fits, f"{name} {kind}", rank) for rank in (0, 1)] for kind in ("without", "with", "again")}
        for kind in ("with", "again"):
            for rank, run in enumerate(ranks[kind]):
                plain = ranks["without"][rank]
                assert are_identical(run["weights"], plain["weights"]), (name, kind)
                assert_same_losses(run, plain["losses"])
                assert run["hits"] > 0 and not run["warnings"], (name, kind)
            assert outcomes(ranks[kind][0]) == outcomes(ranks[kind][1]), (name, kind)
        # Ranks that see other samples have read what they have stored themselves, in one folder.
        assert outcomes(ranks["again"][0]).count("skip") > outcomes(ranks["with"][0]).count("skip"), name

    static = load(fits, "static with", 0)
    assert outcomes(static) == ["run and compare", *["run and store"] * 3, *["skip"] * 12]
    # Both ranks ran the batch of which one of them lacked a sample.
    misses = [load(fits, "one rank misses with", rank)["decisions"][5] for rank in (0, 1)]
    assert misses[0].startswith("run and") and "another rank" in misses[0]
    assert misses[1].startswith("run and") and "another rank" not in misses[1]
    # Each rank has samples of its own, ranks of a tensor parallel group have the same; identities are those of all.
    for name, samples in {"static": 27 + 14, "tensor parallel": 14 + 14}.items():
        (namespace,) = folder.namespaces(fits / name / "cache")
        assert namespace.info["blocks"] == 2, name
        assert entries(fits / name / "cache", namespace) <= samples, name


def entries(root, namespace):
    import lmdb

    with lmdb.open(str(root / namespace.name), readonly=True, lock=False) as found:
        return found.stat()["entries"]


@pytest.mark.slow
def test_exceptions_and_resumes(fits):
    for name in RESUMED:
        for rank in (0, 1):
            plain = load(fits, f"{name} without", rank)
            failed, resumed = (load(fits, f"{name} {kind}", rank) for kind in ("failed", "resumed"))
            # Both ranks leave a run in whose middle the user's code fails.
            assert_same_losses(failed, plain["losses"][: len(failed["losses"])])
            assert_same_losses(resumed, plain["losses"][-len(resumed["losses"]) :])
            assert are_identical(resumed["weights"], plain["weights"]), name
            assert resumed["hits"] > 0 and not resumed["warnings"], name


@pytest.mark.slow
def test_sharded_hidden_states_switch_all_ranks_off(fits):
    reasons = {"sequence parallel": "sharded along the sequence", "distributed tensors": "DTensor"}
    for name in REFUSED:
        plain, first, second = (
            load(fits, f"{name} {kind}", rank) for kind, rank in (("without", 0), ("with", 0), ("with", 1))
        )
        assert are_identical(first["weights"], plain["weights"]), name
        assert_same_losses(first, plain["losses"])
        assert outcomes(first) == outcomes(second) == ["run and compare", *["switch off"] * 15], name
        assert len(first["warnings"]) == 1 and reasons[name] in first["warnings"][0], name
        assert second["warnings"] == [] and second["decisions"][-1] == first["decisions"][-1], name
