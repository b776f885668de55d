from __future__ import annotations

import pytest
import torch
from plan.observed import Observed, bytes_of
from plan.projects import BATCH, CONFIG, Classifier, fit
from torch import Tensor
from transformers import BertConfig

from lightning_freeze import (
    DiscriminativeLR,
    EpochTrigger,
    FrozenPrefixCache,
    GradualUnfreezing,
    LayerFreezing,
    Phase,
    PhasedFineTuning,
    PlateauTrigger,
    StepTrigger,
    plan_training,
)
from lightning_freeze.errors import ConfigurationError


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("layers", ["embeddings", "embeddings,:2", "75%", "1", "*.bias"])
def test_memory_is_what_a_real_step_keeps(layers: str) -> None:
    torch.manual_seed(0)
    module, observed = Classifier(), Observed()
    plan = plan_training(module, [LayerFreezing(layers)], BATCH)
    fit(module, [LayerFreezing(layers, verbose=False), observed], epochs=1, batches=1)
    memory = plan.phases[0].memory
    assert memory is not None
    assert memory.gradients == observed.gradients > 0
    assert memory.optimizer == observed.state > 0
    assert memory.activations == pytest.approx(observed.activations, rel=0.02)
    assert memory.weights == bytes_of((*module.parameters(), *module.buffers()))


def test_full_fine_tuning_is_the_same_whatever_is_frozen() -> None:
    module = Classifier()
    alone = plan_training(module, [], BATCH)
    frozen = plan_training(module, [LayerFreezing("75%")], BATCH)
    assert frozen.full == alone.full == alone.phases[0].memory
    assert alone.phases[0].time is not None
    assert alone.phases[0].time.freezing == 1
    assert alone.phases[0].time.cached is None


@pytest.mark.slow
def test_phases_are_those_of_the_run() -> None:
    torch.manual_seed(0)
    module, observed = Classifier(), Observed()
    plan = plan_training(module, [GradualUnfreezing()], BATCH, max_epochs=7, batches_per_epoch=2)
    fit(module, [GradualUnfreezing(verbose=False), observed], epochs=7, batches=2)
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    planned = [phase.trainable for phase in plan.phases for _ in range(phase.batches or 0)]
    assert planned == [sum(sizes[name] for name in names) for names in observed.trains]
    assert len(plan.phases) == 5
    assert [phase.selector for phase in plan.phases] == ["head", "2,head", "1:,head", ":,head", "all"]


def test_rates_are_the_highest_of_the_phase_under_the_users_scheduler() -> None:
    module = Classifier()
    callbacks = [GradualUnfreezing(trigger=StepTrigger(2), layers_per_phase=2), DiscriminativeLR(0.5)]
    plan = plan_training(module, callbacks, BATCH, max_epochs=1, batches_per_epoch=6)
    rates = {phase.number: {layer.name: layer.rates for layer in phase.layers} for phase in plan.phases}
    assert rates[1] == {"embeddings": (), "0": (), "1": (), "2": (), "head": (1e-3,)}
    assert rates[2]["head"] == pytest.approx((1e-3 / 3,))
    assert rates[2]["2"] == pytest.approx((1e-3 / 3 / 2,))
    assert rates[3]["embeddings"] == pytest.approx((1e-3 / 5 / 16,))


def test_factors_of_phases_and_no_warm_up() -> None:
    phases = [Phase("head", StepTrigger(1)), Phase("all", lr=0.5, factors={"embeddings": 0.1})]
    plan = plan_training(Classifier(), [PhasedFineTuning(phases, warmup_steps=50)], BATCH, batches_per_epoch=2)
    rates = {layer.name: layer.rates for layer in plan.phases[1].layers}
    assert rates["head"] == pytest.approx((1e-3 / 2 * 0.5,))
    assert rates["embeddings"] == pytest.approx((1e-3 / 2 * 0.05,))


def test_the_module_is_left_as_it_was() -> None:
    module = Classifier()
    module.model.bert.encoder.layer[1].requires_grad_(False)
    module.model.bert.encoder.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    asked = [p.requires_grad for p in module.parameters()]
    modes = [m.training for m in module.modules()]
    gradual = GradualUnfreezing()
    torch.manual_seed(3)
    random = torch.get_rng_state()
    plan = plan_training(module, [gradual, LayerFreezing("0")], BATCH, max_epochs=9)
    assert "leaves 1 frozen in every phase" in plan.notes[0]  # the set-up's own warning
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == asked
    assert [m.training for m in module.modules()] == modes
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert gradual.phase == 0
    with pytest.raises(RuntimeError, match="not attached"):
        _ = module.trainer


@pytest.mark.slow
def test_a_run_after_a_plan_is_the_run_without() -> None:
    results = []
    for planned in (False, True):
        torch.manual_seed(0)
        module, callbacks = Classifier(), [GradualUnfreezing(verbose=False), DiscriminativeLR(0.5, verbose=False)]
        if planned:
            plan_training(module, callbacks, BATCH, max_epochs=3)
        torch.manual_seed(1)
        fit(module, callbacks, epochs=5, batches=2)
        results.append(module.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.slow
def test_a_model_on_the_meta_device_costs_what_a_real_one_does() -> None:
    callbacks = [GradualUnfreezing(), DiscriminativeLR(0.9)]
    real = plan_training(Classifier(), callbacks, BATCH, max_epochs=9)
    meta = plan_training(Classifier(meta=True), callbacks, BATCH, max_epochs=9)
    assert meta.to_dict() == real.to_dict()


@pytest.mark.slow
def test_a_model_larger_than_memory() -> None:
    config = BertConfig(hidden_size=8192, num_hidden_layers=24, num_attention_heads=64, intermediate_size=32768)
    module = Classifier(meta=True, config=config)
    plan = plan_training(module, [LayerFreezing("50%")], BATCH, memory="80GiB")
    assert plan.parameters > 19e9
    peak = plan.peak()
    assert peak is not None
    assert peak.total > 80 * 2**30
    assert plan.fitting is not None
    assert plan.fitting.layers.startswith("embeddings,:")
    assert plan.fitting.memory.total <= 80 * 2**30
    again = plan_training(module, [LayerFreezing(plan.fitting.layers)], BATCH)
    assert again.peak() == plan.fitting.memory


@pytest.mark.slow
def test_memory_that_is_enough_or_never_enough() -> None:
    module = Classifier()
    enough = plan_training(module, [], BATCH, memory="1GiB")
    assert enough.fitting is not None
    assert enough.fitting.layers == ""
    assert "It fits in 1.0 GiB." in str(enough)
    never = plan_training(module, [], BATCH, memory="1KiB")
    assert never.fitting is None
    assert "Phase 1 does not fit" in str(never)


def test_the_cache_skips_the_frozen_prefix() -> None:
    plan = plan_training(Classifier(), [LayerFreezing("embeddings,:2"), FrozenPrefixCache()], BATCH, max_epochs=4)
    time = plan.phases[0].time
    assert time is not None
    assert time.cached is not None
    assert 0 < time.cached < time.freezing < 1
    assert plan.uses_cache
    assert plan.cache_bytes == 4 * 12 * 32 * 4  # samples, tokens, hidden size, bytes
    total, cached = plan.total_time(), plan.total_time(cached=True)
    assert total == time.freezing
    assert cached == pytest.approx((time.freezing + 3 * time.cached) / 4)


@pytest.mark.slow
def test_each_boundary_takes_space_of_its_own() -> None:
    plan = plan_training(Classifier(), [GradualUnfreezing()], BATCH, max_epochs=7, batches_per_epoch=2)
    assert plan.cache_bytes == 3 * 2 * (4 * 12 * 32 * 4)  # boundaries behind 3, 2 and 1 blocks; batches


@pytest.mark.slow
def test_nothing_is_skipped_below_trainable_embeddings() -> None:
    time = plan_training(Classifier(), [LayerFreezing(":2")], BATCH).phases[0].time
    assert time is not None
    assert time.cached is None


def test_a_plateau_is_open_ended() -> None:
    phases = [Phase("head", PlateauTrigger("val_loss", patience=1) | EpochTrigger(8)), Phase("all")]
    plan = plan_training(Classifier(), [PhasedFineTuning(phases)], BATCH, max_epochs=10, batches_per_epoch=2)
    assert [(p.first_batch, p.last_batch, p.begins_open, p.ends_open) for p in plan.phases] == [
        (0, 6, False, True),
        (6, 20, True, False),
    ]
    assert ">= 6" in str(plan)


def test_accumulated_batches_and_max_steps() -> None:
    phases = [Phase("head", StepTrigger(2)), Phase("all")]
    options = {"max_steps": 5, "accumulate_grad_batches": 2, "batches_per_epoch": 4}
    plan = plan_training(Classifier(), PhasedFineTuning(phases), BATCH, **options)  # type: ignore[arg-type]
    assert [(p.first_batch, p.last_batch) for p in plan.phases] == [(0, 4), (4, 10)]


class ReadsValues(Classifier):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        if loss.item() > 1e9:
            raise AssertionError
        return loss


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(("module", "reason"), [(ReadsValues(), "without values"), (Manual(), "Manual optimization")])
def test_what_cannot_be_known_is_said(module: Classifier, reason: str) -> None:
    plan = plan_training(module, [LayerFreezing("75%")], BATCH)
    assert reason in plan.notes[0]
    assert plan.phases[0].memory is plan.phases[0].time is plan.peak() is plan.total_time() is None
    assert plan.phases[0].selector == "2,head"
    assert reason in str(plan)


def test_a_wrong_set_up_is_refused_as_in_a_fit() -> None:
    with pytest.raises(ConfigurationError, match="names no layer"):
        plan_training(Classifier(), [LayerFreezing("hed")], BATCH)
    with pytest.raises(ConfigurationError, match="both schedule"):
        plan_training(Classifier(), [GradualUnfreezing(), GradualUnfreezing(start="2:,head")], BATCH)
    with pytest.raises(ConfigurationError, match="a batch or a datamodule"):
        plan_training(Classifier(), [])


def test_layers_of_the_plan_hold_all_parameters() -> None:
    plan = plan_training(Classifier(), [], BATCH)
    assert plan.parameters == sum(p.numel() for p in Classifier(config=CONFIG).parameters())
    assert {layer.status for layer in plan.phases[0].layers} == {"trains"}


@pytest.mark.slow
def test_module_keeps_its_trainer() -> None:
    module = Classifier()
    with pytest.raises(RuntimeError):
        _ = module.trainer  # it has none yet
    plan_training(module, LayerFreezing("embeddings"), BATCH)
    with pytest.raises(RuntimeError):
        _ = module.trainer
    trainer = fit(module, [], epochs=1, batches=1)
    plan_training(module, LayerFreezing("embeddings"), BATCH)
    assert module.trainer is trainer
