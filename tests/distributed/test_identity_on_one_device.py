"""Hidden states that a sharded module has stored are those of the module on one device, if it computes the same."""

import pytest
import torch
from distributed_processes import load, run_script
from one_device_script import OTHER, SAME

from lightning_freeze.cache.store import folder


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    out = tmp_path_factory.mktemp("fits")
    run_script("one_device_script.py", out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_one_device_reads_what_whole_weights_have_computed(fits, name):
    plain, found = load(fits, "alone", 0), load(fits, f"{name} alone", 0)
    assert len(folder.namespaces(fits / name)) == 1
    assert found["decisions"][0].startswith("check two samples, then skip"), found["decisions"]
    assert found["losses"] and len(found["losses"]) == len(plain["losses"])
    assert all(map(torch.equal, found["losses"], plain["losses"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER)
def test_one_device_does_not_read_what_another_precision_has_computed(fits, name):
    assert len(folder.namespaces(fits / name)) == 2
    assert load(fits, f"{name} alone", 0)["decisions"][0].startswith("run and compare: these frozen layers")
