"""The benchmark of the cache's own time, on a tiny model."""

import pytest

from benchmarks import cache_overhead
from benchmarks.saved_results import Figure
from lightning_freeze.cache.frozen_prefix import FrozenPrefix


@pytest.mark.filterwarnings("ignore")  # a run this short gets advice on data loading from Lightning
def test_the_time_before_the_pass_is_part_of_the_whole(monkeypatch):
    tiny = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    monkeypatch.setattr(cache_overhead, "SIZES", {"tiny": {**tiny, "vocab_size": 30000}})
    for name in ("_before", "_after"):  # which the benchmark replaces
        monkeypatch.setattr(FrozenPrefix, name, getattr(FrozenPrefix, name))
    table = cache_overhead.own_time_table(rounds=2, steps=cache_overhead.SKIPPED + 2)
    before, whole, step, share = table.rows["tiny"].values()
    assert all(isinstance(figure, Figure) and len(figure.values) == 2 for figure in (before, whole, step, share))
    assert 0 < before.median < whole.median < step.median
    assert "hit rates 100%" in table.notes[0]
