"""Modules that do something unusual give the same results with and without the cache."""

from __future__ import annotations

import traceback
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from cached_fits import Examples, MemoryStore, Plain, both, freeze, loader, make_cache, make_trainer
from encoders import AfterStep, Block, Classifier, Encoder, Whole, bert, check_equal, frozen, same_length
from torch import Tensor

from lightning_freeze.cache.checks import side_effects
from lightning_freeze.cache.store.disk import DiskTier


class Hands(Block):
    """Hands its mask on."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return super().forward(x), mask


class CallsOtherwise(Encoder):
    """Gives the mask by position while it trains, and by name otherwise."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embeddings(input_ids)
        for layer in self.layers:
            x = (layer(x, attention_mask) if self.training else layer(x, mask=attention_mask))[0]
        return x


def test_argument_by_position_and_by_name() -> None:
    module = Plain(Classifier(CallsOtherwise(*(Hands() for _ in range(4)))))
    check_equal(module, frozen(), data=same_length, validation=same_length, reason="called with other options")


class Guarded(Encoder):
    """Looks closely where a certain token is."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.run(self.embeddings(input_ids))
        if bool((input_ids == 88).any()) and not bool(torch.isfinite(states[1]).all()):
            raise FloatingPointError("hidden states are not finite")
        return states[-1]


def test_code_that_raises_on_nan_in_a_later_batch_is_told_of_the_cache() -> None:
    examples = Examples(12, 5, 5, vocabulary=80)
    examples.rows[9][0] = 88
    with pytest.raises(FloatingPointError) as raised:
        both(Plain(Classifier(Guarded())), frozen(), data=lambda: loader(examples))
    assert "FrozenPrefixCache" in "".join(traceback.format_exception(raised.value))


class Gain(Enum):
    ONE = 1.0
    TWO = 2.0


@dataclass
class Options:
    gain: Any


def value_of(gain: Any) -> Any:
    if isinstance(gain, Enum):
        return gain.value
    if isinstance(gain, Options):
        return gain.gain
    if isinstance(gain, dict):
        return gain["scale"]
    if isinstance(gain, list):
        return gain[0]
    return float(gain) if isinstance(gain, (np.ndarray, np.floating)) else gain


class Gained(Block):
    def __init__(self, gain: Any) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * value_of(self.gain)


def put(layer: Any, value: Any) -> None:
    layer.gain = value


def write(layer: Any) -> None:
    layer.gain[...] = 2.0


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("make", "change"),
    [
        pytest.param(lambda: Gain.ONE, lambda x: put(x, Gain.TWO), id="enum"),
        pytest.param(lambda: np.float64(1.0), lambda x: put(x, np.float64(2.0)), id="numpy number"),
        pytest.param(lambda: np.ones(()), write, id="numpy array"),
        pytest.param(lambda: [torch.ones(())], lambda x: put(x, [torch.tensor(2.0)]), id="tensor in a list"),
        pytest.param(lambda: Options(torch.ones(())), lambda x: x.gain.gain.fill_(2.0), id="tensor in a dataclass"),
        pytest.param(
            lambda: {"scale": 1.0, "table": torch.ones(())}, lambda x: x.gain.update(scale=2.0), id="beside a tensor"
        ),
        pytest.param(lambda: OrderedDict(scale=1.0), lambda x: x.gain.update(scale=2.0), id="OrderedDict"),
        pytest.param(lambda: torch.ones(()), lambda x: x.gain.data.fill_(2.0), id="tensor through .data"),
    ],
)
def test_settings_of_other_kinds(make: Callable[[], Any], change: Callable[[Any], Any]) -> None:
    module = Plain(Classifier(Encoder(*(Gained(make()) for _ in range(4)))))
    data = lambda: loader(Examples(24, 5, 5))  # noqa: E731

    def change_all(module: Any) -> None:
        for layer in module.model.encoder.layers:
            change(layer)

    # After the last step of an epoch, so that `.data` too should be noticed when the next one begins.
    check_equal(module, frozen(), AfterStep(12, change_all), data=data, epochs=4)


class Averages(Encoder):
    """Subtracts a running mean, kept in a list of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.means = [torch.zeros(32)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.run(self.embeddings(input_ids))[-1]
        if self.training:
            self.means[0].mul_(0.9).add_(hidden.detach().mean((0, 1)), alpha=0.1)
        return hidden - self.means[0]


class Noisy(Encoder):
    """Adds noise from a generator of its own, above all blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.run(self.embeddings(input_ids))[-1]
        if self.training:
            hidden = hidden + 0.1 * torch.from_numpy(self.rng.normal(size=tuple(hidden.shape))).float()
        return hidden


@pytest.mark.parametrize("kind", [Averages, Noisy])
def test_traces_of_the_check(kind: type[Encoder]) -> None:
    check_equal(Plain(Classifier(kind())), frozen(), data=same_length, reason="it has a state of its own")


class Measures(Block):
    def __init__(self) -> None:
        super().__init__()
        self.level: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.keep(float(y.detach().abs().mean()))
        return y

    def keep(self, level: float) -> None:
        self.level = level

    def read(self) -> float:
        return float(self.level)


class MeasuresInDict(Measures):
    def __init__(self) -> None:
        super().__init__()
        self.level = {}

    def keep(self, level: float) -> None:
        self.level["mean"] = level

    def read(self) -> float:
        return float(self.level["mean"])


class ByLevel(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run(self.embeddings(input_ids))[-1] * self.layers[0].read()


@pytest.mark.parametrize("kind", [Measures, MeasuresInDict])
def test_number_that_a_frozen_block_leaves(kind: type[Measures]) -> None:
    module = Plain(Classifier(ByLevel(*(kind() for _ in range(4)))))
    check_equal(module, frozen(), data=same_length, reason="keep what they compute in an attribute")


class Scales(Block):
    """Sets a number that is the same for all samples, and has an array."""

    def __init__(self) -> None:
        super().__init__()
        self.window = np.hanning(16)

    def forward(self, x: Tensor) -> Tensor:
        self.scale = x.shape[-1] ** -0.5
        return super().forward(x) * self.scale


@pytest.mark.parametrize("size", [1, 4])
def test_number_that_is_assigned_again_in_each_pass(size: int) -> None:
    module = Plain(Classifier(Encoder(*(Scales() for _ in range(4)))))
    assert check_equal(module, frozen(), data=lambda: loader(Examples(12, 5, 5), size)).hit_rate > 0.5


class KeepsOutput(tf.BertModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.last = super().forward(*args, **kwargs)
        return self.last


def test_output_that_the_module_keeps_stays_whole() -> None:
    model = bert()
    model.bert = KeepsOutput(model.config)
    check_equal(Plain(model), frozen(), data=same_length)


class Steps(Encoder):
    """Counts its steps in a tensor, beside one that is too large to be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.zeros(32)
        self.steps = torch.zeros(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.steps += 1
        return super().forward(input_ids, attention_mask)  # type: ignore[no-any-return]


def test_small_tensor_beside_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_effects, "_MOST_BYTES", 100)
    module = Plain(Classifier(Steps()))
    plain, cached, _ = both(module, frozen(), data=same_length)
    assert plain.model.encoder.steps == cached.model.encoder.steps == 9


class Optional(Block):
    def __init__(self, gain: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("gain", gain)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.gain is None else y * self.gain


def take_last(module: Any) -> None:
    module.model.encoder.layers[1].gain = None


def give_first(module: Any) -> None:
    module.model.encoder.layers[0].gain = torch.tensor(2.0)


@pytest.mark.parametrize(("gain", "change"), [(torch.tensor(2.0), take_last), (None, give_first)])
def test_buffer_that_comes_or_goes(gain: Tensor | None, change: Callable[[Any], None]) -> None:
    module = Plain(Classifier(Encoder(*(Optional(gain) for _ in range(4)))))
    data = lambda: loader(Examples(24, 5, 5))  # noqa: E731
    check_equal(module, frozen(), AfterStep(8, change), data=data, epochs=4)


def test_error_while_a_dry_run_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(tensor: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(side_effects, "_copy", fails)
    module = Whole()
    module.layers[3].table = torch.zeros(3)
    freeze(module.embeddings, *module.layers[:2])
    with pytest.warns(UserWarning, match="out of memory"):
        make_trainer(make_cache(), epochs=1).fit(module, same_length())
    assert "log" not in vars(module)
    assert "log_dict" not in vars(module)


class Notes(Whole):
    """Keeps something of each step."""

    def __init__(self, lr: float = 0.1, keeps: Any = None, note: Callable[[Any, Tensor], None] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters("lr")
        self.losses: list[Tensor] = []
        self.validated: list[Tensor] = []
        self.kept = keeps
        self.note = note

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach().clone())
        if self.note is not None:
            self.note(self.kept, loss.detach())
        return loss


def in_dicts(kept: Any, loss: Tensor) -> None:
    kept.append({"loss": loss})


def in_pairs(kept: Any, loss: Tensor) -> None:
    kept.append((loss, 4))


def in_numbers(kept: Any, loss: Tensor) -> None:
    kept.append(float(loss))


@pytest.mark.parametrize(
    ("kept", "note"), [([], in_dicts), ([], in_pairs), (deque(maxlen=50), in_numbers)], ids=["dicts", "pairs", "deque"]
)
def test_outputs_of_steps_are_no_settings(kept: Any, note: Callable[[Any, Tensor], None]) -> None:
    data = lambda: loader(Examples(24, 5, 5))  # noqa: E731
    cache = check_equal(Notes(keeps=kept, note=note), frozen(), data=data, epochs=4)
    assert cache.hit_rate > 0.4


def in_a_history(kept: Any, loss: Tensor) -> None:
    kept["loss"].append(float(loss))


def emptied_now_and_then(kept: Any, loss: Tensor) -> None:
    kept.append(float(loss))
    if len(kept) > 3:
        kept.clear()


def with_names(kept: Any, loss: Tensor) -> None:
    kept[f"step {len(kept)}"] = float(loss)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("kept", "note"),
    [
        ([], in_numbers),
        ([0.5], in_numbers),
        ({"loss": []}, in_a_history),
        ({"loss": [0.5]}, in_a_history),
        ([], emptied_now_and_then),
        ({}, with_names),
    ],
    ids=["list", "list that is not empty", "history", "history that is not empty", "emptied", "dict"],
)
def test_what_only_records_is_no_setting(kept: Any, note: Callable[[Any, Tensor], None]) -> None:
    data = lambda: loader(Examples(24, 5, 5))  # noqa: E731
    cache = check_equal(Notes(keeps=kept, note=note), frozen(), data=data, epochs=4)
    assert cache.hit_rate > 0.4


def set_the_first(kept: Any, loss: Tensor) -> None:
    kept[0] += 1.0


def replace_all(kept: Any, loss: Tensor) -> None:
    kept[:] = [float(loss), *range(len(kept))]


@pytest.mark.parametrize("note", [set_the_first, replace_all])
def test_setting_that_changes_in_each_step_is_named(note: Callable[[Any, Tensor], None]) -> None:
    data = lambda: loader(Examples(24, 5, 5))  # noqa: E731
    reason = r"^its frozen layers change from one step to the next \(kept does\)$"
    check_equal(Notes(keeps=[0.0], note=note), frozen(), data=data, epochs=4, reason=reason)


class GainFromList(Whole):
    """Reads a list of numbers that grows once."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.validated: list[Tensor] = []
        self.gains = [1.0, 2.0]

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embeddings(input_ids) * self.gains[0]
        for layer in self.layers:
            hidden = layer(hidden)
        return self.classifier(hidden[:, 0])  # type: ignore[no-any-return]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach().clone())
        return loss


def test_list_of_settings_is_read() -> None:
    def change(module: Any) -> None:
        module.gains[0] = 3.0

    data = lambda: loader(Examples(24, 5, 5))  # noqa: E731
    check_equal(GainFromList(), frozen(), AfterStep(8, change), data=data, epochs=4)


def test_a_sweep_of_learning_rates_shares_what_is_stored() -> None:
    store = MemoryStore()
    for lr in (0.1, 0.01):
        both(Notes(lr), frozen(), cache=make_cache(store), data=same_length)
    assert len({namespace for namespace, _ in store.entries}) == 1


class ListsWhatTrains(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.late = [*self.layers[3].parameters()]


def test_list_of_weights_that_train() -> None:
    data = lambda: loader(Examples(24, 5, 5))  # noqa: E731
    cache = check_equal(Plain(Classifier(ListsWhatTrains())), frozen(), data=data, epochs=4)
    assert cache.hit_rate > 0.4


class Traced(Encoder):
    """Keeps a record of its calls, of which nothing comes."""

    def __init__(self) -> None:
        super().__init__()
        self.nested: dict[str, list[int]] = {"calls": []}
        self.counts: Counter[str] = Counter()
        self.array = np.zeros(1)
        self.pair = (torch.zeros(()),)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.nested["calls"].append(len(input_ids))
        self.counts["calls"] += 1
        self.array += 1
        self.pair[0].add_(1)
        return super().forward(input_ids, attention_mask)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["nested", "counts", "array", "pair"])
def test_traces_of_a_check(name: str) -> None:
    plain, cached, _ = both(Plain(Classifier(Traced())), frozen(), data=same_length)
    one, other = (getattr(m.model.encoder, name) for m in (plain, cached))
    assert repr(one) == repr(other)


class Maybe(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * self.gain if hasattr(self, "gain") else y


def register(module: Any) -> None:
    module.model.encoder.layers[0].register_buffer("gain", torch.tensor(2.0))


def test_buffer_that_is_registered_in_the_middle_of_an_epoch() -> None:
    module = Plain(Classifier(Encoder(*(Maybe() for _ in range(4)))))
    check_equal(module, frozen(), AfterStep(8, register), data=lambda: loader(Examples(24, 5, 5)), epochs=4)


def test_a_folder_that_cannot_be_looked_into_has_no_notes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = DiskTier(tmp_path, None)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.stat", fails)
    tier.note(bytes(16), 100)
    assert tier.noted(bytes(15) + b"1") == 0


def test_a_parametrized_weight_in_inference_mode() -> None:
    class Convolved(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(32, 32, 3, padding=1), dim=2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            states = self.convolution(self.embeddings(input_ids).transpose(1, 2)).transpose(1, 2)
            return self.run(states)[-1]

    cache = make_cache()
    trainer = make_trainer(frozen(), cache)
    module = Plain(Classifier(Convolved()))
    trainer.fit(module, same_length())
    trainer.test(module, same_length(), verbose=False)
    assert not cache.reasons
    assert cache.hit_rate == 1.0
