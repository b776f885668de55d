"""``FrozenPrefixCache.explain()`` in real fits: what happened in the latest pass of each tower, and why."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Examples, Plain, freeze, loader, make_cache, make_trainer
from encoders import AfterStep, Encoder, bert, frozen
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from lightning_freeze import EpochTrigger, FrozenPrefixCache, GradualUnfreezing, Phase, PhasedFineTuning


class Explained(Callback):
    """Collects what the cache explains after each batch, as text, for the tower of one name."""

    def __init__(self, cache: FrozenPrefixCache, tower: str = "") -> None:
        self.cache, self.tower = cache, tower
        self.training: list[str] = []
        self.validation: list[str] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.training.append(str(self.cache.explain()[self.tower]))

    def on_validation_batch_end(self, *args: Any) -> None:
        self.validation.append(str(self.cache.explain()[self.tower]))


def even() -> Any:
    """Three batches of four samples without padding."""
    return loader(Examples(12, 5, 5))


def fit(module: LightningModule, *callbacks: Callback, cache: FrozenPrefixCache, **options: Any) -> Explained:
    explained = Explained(cache)
    validation = options.pop("validation", None)
    trainer = make_trainer(*callbacks, cache, explained, **options)
    trainer.fit(module, options.get("data", even()), validation)
    return explained


def outcomes(texts: list[str]) -> list[str]:
    return [text.partition(":")[0] for text in texts]


def test_nothing_before_a_run() -> None:
    assert make_cache().explain() == {}


def test_cold_fit() -> None:
    cache = make_cache()
    explained = fit(Plain(bert()), frozen(), cache=cache, epochs=3)
    assert outcomes(explained.training) == [
        *("run and compare", "run and store", "run and store"),
        *("run and compare", "skip", "skip"),
        *("skip", "skip", "skip"),
    ]
    assert explained.training[0] == "run and compare: these frozen layers have not been checked yet"
    assert explained.training[1] == "run and store: none of the 4 samples was found"
    assert explained.training[3].startswith("run and compare: 4 of 4 samples were found")
    assert explained.training[4] == "skip: all 4 samples were found"


def test_it_stays_after_the_fit() -> None:
    cache = make_cache()
    fit(Plain(bert()), frozen(), cache=cache)
    (decision,) = cache.explain().values()
    assert decision.outcome == "skip" and decision.reason == "all 4 samples were found"
    assert str(decision) == "skip: all 4 samples were found"
    assert pickle.loads(pickle.dumps(cache)).explain() == {}


def test_warm_fit(tmp_path: Any) -> None:
    fit(Plain(bert()), frozen(), cache=make_cache(cache_dir=tmp_path), epochs=1)
    explained = fit(Plain(bert()), frozen(), cache=make_cache(cache_dir=tmp_path), epochs=1)
    assert outcomes(explained.training) == ["check two samples, then skip", "skip", "skip"]


def test_warm_fit_whose_check_on_two_samples_fails(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(Plain(bert()), frozen(), cache=make_cache(cache_dir=tmp_path), epochs=1)
    monkeypatch.setattr("lightning_freeze.cache.checks.few_samples.FewSamples.check", lambda *args: None)
    explained = fit(Plain(bert()), frozen(), cache=make_cache(cache_dir=tmp_path), epochs=1)
    assert explained.training[0] == "run and compare: these frozen layers have not been checked yet"


def test_some_samples_are_missing() -> None:
    cache = make_cache(verify=0)
    explained = Explained(cache)
    trainer = make_trainer(frozen(), cache, explained, epochs=1)
    rows = Examples(12, 5, 5).rows
    repeated = Examples(12, 5, 5)
    repeated.rows = [*rows[:4], *rows[2:6], *rows[:4]]
    trainer.fit(Plain(bert()), loader(repeated))
    assert explained.training[1] == "skip: 2 of 4 samples were found, and the others are computed alone"
    assert explained.training[2] == "skip: all 4 samples were found"


def test_validation() -> None:
    cache = make_cache()
    explained = fit(Plain(bert()), frozen(), cache=cache, epochs=2, validation=even())
    # The training has stored the same samples.
    assert set(outcomes(explained.validation[3:])) == {"skip"}
    assert str(cache.explain()[""]).startswith("skip: ")


def test_prediction_after_the_fit() -> None:
    cache, module = make_cache(), Plain(bert())
    trainer = make_trainer(frozen(), cache)
    trainer.fit(module, even())
    trainer.predict(module, loader(Examples(8, 5, 5, seed=8)))
    assert str(cache.explain()[""]) == "run and store: none of the 4 samples was found"


def test_nothing_is_frozen() -> None:
    cache = make_cache()
    explained = fit(Plain(bert()), cache=cache, epochs=1)
    assert set(explained.training) == {"leave alone: its first block, or something before it, trains"}


def test_gradual_unfreezing() -> None:
    cache = make_cache()
    explained = fit(Plain(bert()), GradualUnfreezing(EpochTrigger(1), verbose=False), cache=cache, epochs=6)
    # One block unfreezes in each epoch; the first phase has filled the boundaries of all others.
    for epoch in (1, 2, 3):
        assert outcomes(explained.training[3 * epoch :])[1:3] == ["skip", "skip"]
    assert explained.training[-1] == "leave alone: its first block, or something before it, trains"


def test_boundary_that_moves_up() -> None:
    cache = make_cache()
    phases = [Phase("2:,head", EpochTrigger(2)), Phase("head")]
    explained = fit(Plain(bert()), PhasedFineTuning(phases, verbose=False), cache=cache, epochs=4)
    assert outcomes(explained.training[6:9]) == ["run and compare", *["skip from a lower boundary"] * 2]
    expected = (
        "skip from a lower boundary: none of the 4 samples was found at this boundary, all were found at a lower one"
    )
    assert explained.training[7] == expected


def test_lower_boundary_without_the_samples() -> None:
    class NewSamples(Callback):
        """Shows the second phase other samples than the first."""

        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                trainer.train_dataloader.dataset.rows = Examples(12, 5, 5, seed=9).rows  # type: ignore[union-attr]

    cache = make_cache()
    phases = [Phase("2:,head", EpochTrigger(2)), Phase("head")]
    schedule = PhasedFineTuning(phases, verbose=False)
    explained = fit(Plain(bert()), schedule, NewSamples(), cache=cache, epochs=3)
    assert explained.training[7] == "run and store: none of the 4 samples was found"


def test_switched_off() -> None:
    module, cache = Plain(bert(hidden_dropout_prob=0.1)), make_cache()
    freeze(module.model.bert.embeddings, *module.model.bert.encoder.layer[:2])
    module.model.bert.encoder.layer[0].train()
    with pytest.warns(UserWarning, match="switched off"):
        trainer = make_trainer(cache)
        trainer.fit(module.train(), even())
    assert cache.explain() == {"": ("switch off", cache.reasons[""])}
    assert str(cache.explain()[""]).startswith("switch off: ")


def test_request_that_switches_off() -> None:
    module, cache = Plain(bert()), make_cache()
    module.model.config.output_hidden_states = True
    with pytest.warns(UserWarning, match="switched off"):
        explained = fit(module, frozen(), cache=cache, epochs=1)
    assert explained.training[-1] == f"switch off: {cache.reasons['']}"


def test_replaced_modules() -> None:
    def replace(module: Any) -> None:
        layers = module.model.bert.encoder.layer
        layers[0] = copy.deepcopy(layers[0])

    explained = fit(Plain(bert()), frozen(), AfterStep(4, replace), cache=make_cache(), epochs=3)
    assert outcomes(explained.training)[3:6] == ["run and compare", "leave alone", "check two samples, then skip"]
    assert explained.training[4].startswith("leave alone: modules or parameters were replaced")
    assert explained.training[-1] == "skip: all 4 samples were found"


def test_step_that_does_not_call_the_entry() -> None:
    class GoesPast(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Encoder()
            freeze(self.encoder)

        def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return self.encoder.run(self.encoder.embeddings(batch["input_ids"]))[-1]

    cache = make_cache()
    with pytest.warns(UserWarning, match="is not what the step calls"):
        make_trainer(cache).predict(GoesPast(), even())
    assert str(cache.explain()[""]) == f"switch off: {cache.reasons['']}"


def test_model_without_blocks() -> None:
    cache = make_cache()
    with pytest.warns(UserWarning, match="does nothing for Plain: it has no blocks that could be skipped"):
        make_trainer(cache, epochs=1).fit(Plain(bert(num_hidden_layers=0)), even())
    assert {name: str(decision) for name, decision in cache.explain().items()} == {
        "": "leave alone: it has no blocks that could be skipped"
    }


def test_sharded_strategy() -> None:
    cache = make_cache()
    trainer = make_trainer(cache)
    trainer.strategy.__class__ = type("FSDPStrategy", (FSDPStrategy,), {})
    with pytest.warns(UserWarning, match="does nothing under"):
        cache.on_fit_start(trainer, Plain(bert()))
    assert str(cache.explain()[""]) == "leave alone: where weights are sharded, all ranks must run the same layers"


class TwoTowers(LightningModule):
    """CLIP on images and texts; one tower is frozen, the other trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision, text = {**sizes, "image_size": 8, "patch_size": 4}, {**sizes, "vocab_size": 50}
        self.model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        self.model.vision_model.requires_grad_(False).eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pixels, ids = batch
        return self.model(input_ids=ids, pixel_values=pixels, return_loss=True).loss  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)


def test_each_tower_has_its_own_explanation() -> None:
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(4, 3, 8, 8), torch.randint(5, 50, (4, 6)))
    cache = make_cache()
    make_trainer(cache, epochs=3).fit(TwoTowers(), torch.utils.data.DataLoader(data, 4))
    explained = {name: str(decision) for name, decision in cache.explain().items()}
    assert len(explained) == 2
    assert sorted(explained.values()) == [
        "leave alone: its first block, or something before it, trains",
        "skip: all 4 samples were found",
    ]
    assert explained[next(name for name in explained if "vision" in name)] == "skip: all 4 samples were found"


def test_verbose_output_is_the_same_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Plain(bert()), frozen(), cache=make_cache(verbose=True))
    lines = [line for line in capsys.readouterr().out.splitlines() if "cache" in line]
    assert len(lines) == 2  # the expected gain, and the summary
