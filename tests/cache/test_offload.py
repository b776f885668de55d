"""Weights of skipped layers leave memory while nothing needs them, and come back by themselves."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Examples, Plain, assert_same, both, loader, make_cache, make_trainer
from encoders import AfterStep, Classifier, Encoder, bert
from lightning.pytorch import Trainer
from offloaded_fits import Watch, away, cache_of, data, fit, prefix
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_freeze import EpochTrigger, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.cache import offload
from lightning_freeze.cache.offload import MappedFile, OffloadError, removable

pytestmark = pytest.mark.usefixtures("tiny_weights_leave")


def other() -> DataLoader:
    return loader(Examples(8, 5, 5, seed=9))


def test_equals_the_uncached_fit_and_the_parameters_stay_the_same_objects() -> None:
    module = Plain(bert())
    before = prefix(module)
    places = [p.data_ptr() for p in before]
    _, watch = fit(None, module)
    plain = Plain(bert())
    torch.manual_seed(11)
    make_trainer(LayerFreezing("50%", verbose=False), epochs=4).fit(plain, data())
    assert_same(plain, module)
    # All of it is away from the middle of the second epoch on, and back at the end.
    size = sum(p.numel() * p.element_size() for p in before)
    assert watch.before[0] == 0 and max(watch.before) == size
    assert all(watch.before[12:])
    assert all(a is b for a, b in zip(prefix(module), before, strict=True))
    assert [p.data_ptr() for p in before] != places
    assert not watch.cache.reasons and away(watch.cache) == 0  # type: ignore[union-attr]


@pytest.mark.slow
def test_validation_and_phases_equal_the_uncached_fit() -> None:
    phases = [Phase("head", EpochTrigger(3)), Phase("2:,head", EpochTrigger(3)), Phase("3,head")]
    schedule = PhasedFineTuning(phases, verbose=False)
    plain, cached, cache = both(
        Plain(bert()), schedule, cache=make_cache(offload=True), data=data, validation=other, epochs=9
    )
    assert_same(plain, cached)
    assert not cache.reasons


def saved(trainer: Trainer, module: Any) -> None:
    state = module.state_dict()
    assert all(torch.equal(state[name], p) for name, p in module.named_parameters())


def run_elsewhere(trainer: Trainer, module: Any) -> None:
    ids = torch.randint(5, 90, (4, 5))
    module.model.bert(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    "act",
    [
        saved,
        lambda trainer, module: module.model.bert.encoder.layer[0].state_dict(),
        lambda trainer, module: module.load_state_dict(copy.deepcopy(bert_state(module))),
        lambda trainer, module: trainer.save_checkpoint("saved.ckpt"),
        run_elsewhere,
    ],
    ids=["state_dict", "state_dict of a block", "load_state_dict", "checkpoint", "a miss"],
)
def test_ways_back(act: Any) -> None:
    _, watch = fit(act)
    assert watch.at_act > 0 and watch.after_act == 0
    assert any(watch.before[-4:])  # and away again


def bert_state(module: Any) -> dict[str, Any]:
    return {f"model.{name}": value for name, value in bert().state_dict().items()} | {
        name: value for name, value in module.state_dict().items() if "classifier" in name
    }


def test_a_change_of_phase_brings_weights_back_before_anything_changes() -> None:
    seen: list[tuple[int, list[str]]] = []

    class Look(PhasedFineTuning):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            before, phase = away(cache_of(trainer)), self.phase
            super().on_train_batch_start(trainer, pl_module, *args)
            if self.phase != phase:
                seen.append((before, [away(cache_of(trainer))]))  # type: ignore[list-item]

    phases = [Phase("2:,head", EpochTrigger(3)), Phase("1:,head")]
    fit(None, None, Look(phases, verbose=False), epochs=5)
    assert seen[0][0] > 0 and seen[0][1] == [0]


def test_an_exception_brings_weights_back() -> None:
    module = Plain(bert())

    def fail(trainer: Trainer, pl_module: Any) -> None:
        raise RuntimeError("stop")

    expected = [p.clone() for p in prefix(module)]
    with pytest.raises(RuntimeError, match="stop"):
        fit(fail, module)
    assert all(torch.equal(a, b) for a, b in zip(prefix(module), expected, strict=True))
    assert not any("forward" in vars(m) for m in module.modules())
    pickle.dumps(module.model)


def break_device(cache: Any) -> int:
    """Make one weight impossible to bring back; returns the bytes of it and of those that come after it."""
    offload = cache._towers[0].offload
    offload._away[3] = (offload._away[3][0], "nowhere")  # stands for an accelerator without room
    return sum(p.numel() * p.element_size() for p, _ in offload._away[:4])


def test_weights_that_cannot_come_back_are_an_error_and_the_next_call_goes_on() -> None:
    seen: list[int] = []

    def act(trainer: Trainer, module: Any) -> None:
        cache = cache_of(trainer)
        left = break_device(cache)
        for _ in range(2):
            with pytest.raises(OffloadError, match=rf"{left} bytes .* cannot be brought back to nowhere: expected as"):
                run_elsewhere(trainer, module)
            seen.append(away(cache) - left)
        cache._towers[0].offload._away[3] = (cache._towers[0].offload._away[3][0], torch.device("cpu"))
        run_elsewhere(trainer, module)

    module = Plain(bert())
    expected = [p.clone() for p in prefix(module)]
    _, watch = fit(act, module)
    assert seen == [0, 0] and watch.at_act > 0 and watch.after_act == 0
    assert any(watch.before[-4:]) and not watch.cache.reasons  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(prefix(module), expected, strict=True))


def test_weights_that_cannot_come_back_in_a_pass_end_the_run_with_that_error() -> None:
    module = Plain(bert())
    expected = [p.clone() for p in prefix(module)]

    def act(trainer: Trainer, pl_module: Any) -> None:
        break_device(cache_of(trainer))
        run_elsewhere(trainer, pl_module)

    with pytest.raises(OffloadError, match=r"offload=True\): \d+ bytes"):
        fit(act, module)
    assert all(torch.equal(a, b) for a, b in zip(prefix(module), expected, strict=True))
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in module.modules())


def test_weights_are_back_before_the_strategy_moves_the_module() -> None:
    class Later(Watch):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            teardown = trainer.strategy.teardown

            def noting() -> None:
                self.after_act = away(self.cache)
                teardown()

            trainer.strategy.teardown = noting  # type: ignore[method-assign]

        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            self.at_act = away(self.cache)

    watch = Later()
    cache = make_cache(offload=True)
    make_trainer(LayerFreezing("50%", verbose=False), cache, watch, epochs=4).fit(Plain(bert()), data())
    assert watch.before[-1] > 0 and (watch.at_act, watch.after_act) == (0, 0)


def test_a_write_to_a_weight_that_is_away_is_noticed() -> None:
    def write(trainer: Trainer, module: Any) -> None:
        with torch.no_grad():
            prefix(module)[-1].add_(0.5)

    at = 14
    plain, cached, _ = both(
        Plain(bert()),
        LayerFreezing("50%", verbose=False),
        AfterStep(at, lambda module: write(None, module)),  # type: ignore[arg-type]
        cache=make_cache(offload=True),
        data=data,
        epochs=4,
    )
    assert_same(plain, cached)


def test_weights_in_use_elsewhere_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tied = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    tied.requires_grad_(False)
    base = tied.transformer
    found = {id(p) for p in removable(tied, [base.wte, base.wpe, base.h[0]], keeps_first=False)}
    assert id(base.wte.weight) not in found  # tied to the head
    assert id(base.wpe.weight) in found and id(base.h[0].mlp.c_fc.weight) in found
    assert not found & {id(p) for p in base.h[1].parameters()}
    # On an accelerator, code asks the first parameter of a module for the device.
    model = bert().requires_grad_(False).bert
    kept = removable(model, [model.embeddings, model.encoder.layer[0]], keeps_first=True)
    assert all(p is not next(model.parameters()) and p is not next(model.encoder.parameters()) for p in kept)
    # Views of one storage stay too.
    pair, flat = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(2)]), torch.randn(32)
    for number, linear in enumerate(pair):
        linear.weight = nn.Parameter(flat[16 * number : 16 * (number + 1)].view(4, 4), requires_grad=False)
    assert removable(nn.Sequential(pair), [pair], keeps_first=False) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_mapped_file_holds_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = [torch.randn(33, 7).to(dtype), torch.randn(5).to(dtype)]
    file = MappedFile(tmp_path, tensors)
    file.drop_pages()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(file.views, tensors, strict=True))
    assert list(tmp_path.iterdir()) == []


def test_says_once_why_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "file_system", lambda path: "tmpfs")
    with pytest.warns(UserWarning, match=r"offload=True\) does nothing: neither cache_dir nor .* is on a disk") as said:
        _, watch = fit()
    assert len([w for w in said if "offload" in str(w.message)]) == 1
    assert not any(watch.before)


class ReadsTable(Classifier):
    """Reads the weight of the embeddings outside of them, through a plain tensor that shares its memory."""

    def __init__(self) -> None:
        super().__init__(Encoder())
        self.table = self.encoder.embeddings.weight.data

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.encoder(input_ids) + self.table.mean(0)


def test_a_weight_whose_memory_another_tensor_uses_stays() -> None:
    phases = [Phase("head", EpochTrigger(3)), Phase("all")]
    module, plain = Plain(ReadsTable()), Plain(ReadsTable())
    _, watch = fit(None, module, PhasedFineTuning(phases, verbose=False), epochs=5)
    torch.manual_seed(11)
    make_trainer(PhasedFineTuning(phases, verbose=False), epochs=5).fit(plain, data())
    assert_same(plain, module)
    size = sum(p.numel() * p.element_size() for p in module.model.encoder.layers.parameters())
    assert max(watch.before) == size, "the others leave"
