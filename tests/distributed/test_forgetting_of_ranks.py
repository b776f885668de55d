"""Under DDP, all ranks measure the same forgetting as one process on its own, and rank zero logs it."""

import json

import pytest
from distributed_processes import run_script
from reviews import make_reviews, save_csv


@pytest.mark.slow
def test_all_ranks_measure_what_one_process_measures(tmp_path, tiny_bert_dir):
    rows = save_csv(tmp_path / "rows.csv", make_reviews())
    texts = tmp_path / "general.txt"
    texts.write_text("\n".join(f"the film was {word}" for word in ("good", "bad", "dull", "great", "slow", "long")))
    run_script("forgetting_script.py", tiny_bert_dir, texts, rows, tmp_path)
    zero, one, alone = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0", "1", "alone"))
    assert zero == one
    assert zero["layers"][-1]["l2"] > 0
    for layer, expected in zip(zero["layers"], alone["layers"], strict=True):
        assert layer["l2"] == pytest.approx(expected["l2"], rel=1e-2, abs=1e-6)
    logged = (tmp_path / "logs" / "ddp" / "metrics.csv").read_text().splitlines()
    assert "forgetting/neighbour_agreement" in logged[0]
