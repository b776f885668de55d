"""For every model a fit with the cache equals the fit without it: the cache is used, or it gives a reason."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from cached_fits import Plain, assert_same, make_cache, make_trainer
from layer_models import CASES as EASY
from layer_models_hard import HARD
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_freeze import LayerFreezing
from lightning_freeze.cache.identity.values import tensors_in

MODELS = {**EASY, **HARD}

#: Models of which the cache skips nothing, and the reason that it gives.
REFUSED = {
    "bert-no-block": "no blocks that could be skipped",
    "albert": "layer '0' runs 12 times",
    "universal-transformer": "layer '0' runs 6 times",
    "parallel-lists": "no single module that takes and returns hidden states",
    "pvt": "no single module that takes and returns hidden states",
    # Their containers drop out and drop layers at random as long as anything in them trains.
    **dict.fromkeys(("bart", "pegasus", "led", "xlm", "flaubert"), "draws random numbers"),
    **dict.fromkeys(("wav2vec2", "wav2vec2-final-norm", "hubert"), "dropped at random"),
}
#: Models that must be cached.
USED = {
    "bert", "bert-classifier", "bert-mlm-tied", "roberta-classifier", "distilbert", "electra", "deberta-v3", "gpt2",
    "gpt2-lm-tied", "gpt2-classifier", "llama", "mixtral", "opt", "bloom", "t5", "whisper", "vit", "swin", "clip",
    "convnext", "resnet", "nn.TransformerEncoder", "nn.Transformer", "mlp",
}  # fmt: skip
#: What to freeze where it is not the embeddings and the first block.
FROZEN = {
    "clip": "embeddings,vision.embeddings,vision.0,text.embeddings,text.0",
    "mlp": "0",
    "registered-out-of-order": "0",
    "nn.TransformerEncoder": "0",
    "nn.Transformer": "encoder.0",
}
# Nothing would be left to train.
CASES = [name for name in MODELS if name != "nn.TransformerEncoder-one-block"]


class Everything(Plain):
    """Its loss reads everything that the model returns."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        output = self.model(**batch) if isinstance(batch, dict) else self.model(*batch)
        found = [t for t in tensors_in(output) if t.is_floating_point()]
        loss = torch.stack([(t.nan_to_num(0, 0, 0) ** 2).mean() for t in found]).sum()
        self.losses.append(loss.detach().clone())
        return loss


def fit(module: nn.Module, layers: str, batches: Any, cached: bool) -> tuple[Everything, Any, list[str]]:
    copied = Everything(copy.deepcopy(module), lr=1e-3)
    cache = make_cache()
    trainer = make_trainer(LayerFreezing(layers, verbose=False), *([cache] if cached else []), epochs=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seed_everything(3, verbose=False)
        trainer.fit(copied, DataLoader(batches, batch_size=None))
    return copied, cache, [str(w.message) for w in caught if "FrozenPrefixCache" in str(w.message)]


@pytest.mark.fast_cases(9)
@pytest.mark.parametrize("name", CASES)
def test_equals_uncached(name: str) -> None:
    case = MODELS[name]
    torch.manual_seed(0)
    module = case.build()
    batches = [case.inputs() for _ in range(3)]
    layers = FROZEN.get(name) or "embeddings," + next(iter(case.blocks), "embeddings")
    plain, _, _ = fit(module, layers, batches, False)
    cached, cache, said = fit(module, layers, batches, True)
    assert_same(plain, cached)
    if name in REFUSED:
        assert len(said) == 1 and REFUSED[name] in said[0]
    elif name in USED or not said:
        assert not said
        assert cache.hit_rate > 0.6
    else:
        assert len(said) == 1
