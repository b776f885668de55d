"""Random models, freezing schedules, batches and stores in double precision, with and without the cache."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Examples, MemoryStore, Plain, both, collate, make_cache
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning, StepTrigger

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 100, "pad_token_id": 0}
MODELS = [
    lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZES)),
    lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**SIZES)),
    lambda: tf.GPT2ForSequenceClassification(tf.GPT2Config(**GPT2)),
    lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0)),
]


class Forgetful(MemoryStore):
    """Keeps only so many entries."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def put(self, namespace: bytes, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
        left = max(0, self.room - len(self.entries))
        super().put(namespace, keys[:left], tensors[:left])


def plan(choose: random.Random) -> Any:
    kind = choose.randrange(4)
    if kind == 0:
        return LayerFreezing(choose.choice(["25%", "50%", "75%", "embeddings,:4"]), verbose=False)
    if kind == 1:
        return GradualUnfreezing(EpochTrigger(1), layers_per_phase=choose.randint(1, 2), verbose=False)
    trains = choose.sample(["head", "3,head", "2:,head", "1:,head", "all"], 3)
    until = EpochTrigger(2) if kind == 2 else StepTrigger(choose.randint(3, 6))
    return PhasedFineTuning([*(Phase(t, until) for t in trains[:2]), Phase(trains[2])], verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_equals_uncached(seed: int) -> None:
    choose = random.Random(seed)
    torch.manual_seed(seed)
    module = Plain(choose.choice(MODELS)())
    data = Examples(choose.choice([12, 17]), least=3, most=choose.choice([3, 12]), seed=seed)
    size, shuffle, side = choose.choice([1, 4, 5]), choose.random() < 0.7, choose.choice(["left", "right"])

    def join(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = collate(rows)
        if side == "left":
            for number, row in enumerate(rows):
                for name in ("input_ids", "attention_mask"):
                    batch[name][number] = batch[name][number].roll(-len(row["input_ids"]))
        return batch

    def loader() -> DataLoader:
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(data, size, shuffle=shuffle, collate_fn=join, generator=generator)

    room = choose.choice([10, 10_000])
    plain, cached, cache = both(
        module,
        plan(choose),
        cache=make_cache(Forgetful(room)),
        data=loader,
        validation=loader if choose.random() < 0.5 else None,
        epochs=7,
        precision="64-true",
        accumulate_grad_batches=choose.choice([1, 2]),
    )
    assert not cache.reasons
    torch.testing.assert_close(cached.losses, plain.losses, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(cached.validated, plain.validated, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(dict(cached.state_dict()), dict(plain.state_dict()), rtol=1e-9, atol=1e-11)
