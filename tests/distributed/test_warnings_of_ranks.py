"""Under DDP, rank zero alone shows a warning and keeps it for a report."""

import json

import pytest
from distributed_processes import run_script


@pytest.mark.slow
def test_rank_zero_alone_warns(tmp_path):
    run_script("warnings_script.py", tmp_path)
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(zero["shown"]) == 1
    assert zero["kept"] == zero["shown"]
    assert one == {"shown": [], "kept": []}
