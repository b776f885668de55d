"""When the weights of a prefix are read again, and how rarely if that takes long."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import Tensor

from lightning_freeze.cache.identity import fingerprint
from lightning_freeze.cache.identity.cached_towers import CachedTower, find_towers
from lightning_freeze.cache.identity.fingerprint import Fingerprint
from lightning_freeze.layers import LayerStack


def tower() -> CachedTower:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    return find_towers(LayerStack(tf.BertModel(tf.BertConfig(vocab_size=40, **sizes))))[0][0]


def an_element_between_the_samples(found: CachedTower) -> Tensor:
    """Changing it through ``data`` leaves no trace but the value itself."""
    weight: Tensor = found.blocks[0].attention.self.query.weight  # type: ignore[union-attr, assignment]
    assert weight.numel() >= 4 * fingerprint._SAMPLES
    return weight.data.view(-1)[1]


class Clock:
    """Goes on by a given time at each look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def perf_counter(self) -> float:
        self.now += self.step
        return self.now


def test_every_element_counts_in_a_thorough_look() -> None:
    found = tower()
    prints = Fingerprint(found)
    before = prints.of(1, "")
    an_element_between_the_samples(found).add_(1)
    prints.recheck(thorough=True, boundary=1)
    assert prints.of(1, "") != before


@pytest.mark.parametrize("sampled", [False, True])
def test_a_long_look_is_taken_rarely(monkeypatch: pytest.MonkeyPatch, sampled: bool) -> None:
    clock = Clock(1.0)  # so reading takes a second
    monkeypatch.setattr(fingerprint, "time", clock)
    found = tower()
    prints = Fingerprint(found)
    prints.recheck(thorough=True, boundary=1)
    before = prints.of(1, "")
    if sampled:
        found.blocks[0].attention.self.query.weight.data[0, 0] += 1  # type: ignore[union-attr, index]
    else:
        an_element_between_the_samples(found).add_(1)
    clock.now += 50
    prints.recheck(thorough=True, boundary=1)
    assert (prints.of(1, "") != before) == sampled
    clock.now += 100
    prints.recheck(thorough=True, boundary=1)
    assert prints.of(1, "") != before
