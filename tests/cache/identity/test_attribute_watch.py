"""Every change of a setting is noticed, however it was made, without Python code for each attribute."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from lightning_freeze.cache.identity.cached_towers import ModuleStructure
from lightning_freeze.cache.identity.module_settings import ModuleSettings


def double(x: float) -> float:
    return 2 * x


def treble(x: float) -> float:
    return 3 * x


class Scaled(nn.Module):
    """A module with settings of many kinds."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.scale: Any = 1
        self.rate = 0.1
        self.layers = [0, [number]]
        self.options: Any = {"a": {"b": 1}}
        self.shape = (2, 3)
        self.mixed = (1, [2])
        self.temperature = torch.ones(2)
        self.act = lambda x: double(x)
        self.plus = lambda x: x + 1
        self.minus = lambda x, by=1: x - by
        self.times = scaled_by(1)
        self.record = SimpleNamespace(alpha=1)


def modules(count: int = 2) -> list[nn.Module]:
    return [m for number in range(count) for m in Scaled(number).modules()]


def scaled_by(factor: float) -> Callable[[float], float]:
    return lambda x: factor * x


def rename(module: Any) -> None:
    value = vars(module).pop("scale")
    module.ratio = value


def change_code(module: Any) -> None:
    module.act.__code__ = (lambda x: treble(x)).__code__


def swap(module: Any) -> None:
    module.__dict__ = {**vars(module), "scale": 5}


CHANGES: dict[str, Callable[[Any], Any]] = {
    "set": lambda m: setattr(m, "scale", 2),
    "set past the module": lambda m: vars(m).update(scale=2),
    "set on object": lambda m: object.__setattr__(m, "scale", 2),
    "equal but another type": lambda m: setattr(m, "scale", True),
    "equal but a float": lambda m: setattr(m, "scale", 1.0),
    "deleted": lambda m: delattr(m, "rate"),
    "added": lambda m: setattr(m, "gate", 0.0),
    "renamed": rename,
    "the whole dict": swap,
    "in a list": lambda m: m.layers[1].append(3),
    "in a dict": lambda m: m.options["a"].update(b=2),
    "in a tuple": lambda m: m.mixed[1].append(3),
    "another tuple": lambda m: setattr(m, "shape", (2, 4)),
    "of a record": lambda m: setattr(m.record, "alpha", 2),
    "in a tensor": lambda m: m.temperature.mul_(2),
    "another tensor": lambda m: setattr(m, "temperature", torch.zeros(2)),
    "another function": lambda m: setattr(m, "act", treble),
    "the code of a function": change_code,
    "a constant in a lambda": lambda m: setattr(m.plus, "__code__", (lambda x: x + 2).__code__),
    "a default of a lambda": lambda m: setattr(m.minus, "__defaults__", (2,)),
    "a value that a function encloses": lambda m: setattr(m, "times", scaled_by(2)),
    "another kind of value": lambda m: setattr(m, "scale", [1]),
    "a list becomes a number": lambda m: setattr(m, "layers", 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("which", [0, 2])
def test_every_change_of_an_attribute_is_noticed(change: Callable[[Any], Any], which: int) -> None:
    found = modules()
    settings = ModuleSettings(found)
    before = settings.digest()
    assert settings.digest() == before
    change(found[which])
    after = settings.digest()
    assert after != before
    assert settings.digest() == after
    assert ModuleSettings(found).digest() == after, "a hash depends on the values alone"


def test_an_attribute_that_changes_back_is_the_same_setting_again() -> None:
    found = modules()
    settings = ModuleSettings(found)
    before = settings.digest()
    for value in (2, 3):
        found[0].scale = value  # type: ignore[assignment]
        assert settings.digest() != before
    found[0].scale = 1  # type: ignore[assignment]
    assert settings.digest() == before


def bert() -> tf.BertModel:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2}
    return tf.BertModel(tf.BertConfig(vocab_size=40, **sizes))


CONFIGS: dict[str, Callable[[Any], Any]] = {
    "set": lambda config: setattr(config, "layer_norm_eps", 1e-3),
    "set past the config": lambda config: vars(config).update(layer_norm_eps=1e-3),
    "in a list": lambda config: config.pattern.append(3),
    "of a part": lambda config: setattr(config.part, "hidden_size", 16),
    "another part": lambda config: setattr(config, "part", tf.BertConfig(hidden_size=16, num_attention_heads=2)),
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_change_of_a_config_is_noticed(change: Callable[[Any], Any]) -> None:
    model = bert()
    model.config.pattern, model.config.part = [1, 2], tf.BertConfig(hidden_size=8, num_attention_heads=2)
    settings = ModuleSettings(list(model.modules()))
    before = settings.digest()
    change(model.config)
    after = settings.digest()
    assert after != before
    assert settings.digest() == after


def test_another_config_is_noticed_and_then_watched() -> None:
    model = bert()
    settings = ModuleSettings(list(model.modules()))
    seen = [settings.digest()]
    other = tf.BertConfig.from_dict({**model.config.to_dict(), "layer_norm_eps": 1e-3})
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = other
    seen.append(settings.digest())
    other.layer_norm_eps = 1e-4
    seen.append(settings.digest())
    assert len(set(seen)) == 3


@pytest.mark.parametrize("is_part", [False, True])
def test_a_config_that_is_replaced_again_and_again_is_noticed_each_time(is_part: bool) -> None:
    model = bert()
    model.config.part = tf.BertConfig(hidden_size=8, num_attention_heads=2)
    settings = ModuleSettings(list(model.modules()))
    seen = [settings.digest()]
    for number in range(3):
        new = tf.BertConfig(hidden_size=8, num_attention_heads=2, layer_norm_eps=10.0 ** -(3 + number))
        if is_part:
            model.config.part = new
        else:
            for module in model.modules():
                if hasattr(module, "config"):
                    module.config = new
        seen.append(settings.digest())
        new.layer_norm_eps /= 2
        seen.append(settings.digest())
        assert settings.digest() == seen[-1]
        assert ModuleSettings(list(model.modules())).digest() == seen[-1]
    assert len(set(seen)) == 7


@pytest.mark.parametrize("is_part", [False, True])
def test_a_config_in_the_place_of_something_else_is_noticed_and_then_watched(is_part: bool) -> None:
    model = bert()
    owner: Any = model.config if is_part else model.encoder
    name = "part" if is_part else "config"
    setattr(owner, name, object())
    settings = ModuleSettings(list(model.modules()))
    seen = [settings.digest()]
    new = tf.BertConfig(hidden_size=16, num_attention_heads=2)
    setattr(owner, name, new)
    seen.append(settings.digest())
    new.layer_norm_eps = 1e-3
    seen.append(settings.digest())
    assert len(set(seen)) == 3


def test_a_config_that_equals_that_of_another_module_is_watched_too() -> None:
    model = bert()
    model.pooler.config = object()  # type: ignore[assignment]
    settings = ModuleSettings(list(model.modules()))
    before = settings.digest()
    model.pooler.config = tf.BertConfig.from_dict(model.config.to_dict())  # type: ignore[assignment]
    settings.digest()
    model.pooler.config.layer_norm_eps = 1e-3
    assert settings.digest() != before


def test_what_is_kept_in_an_attribute_is_not_kept_alive() -> None:
    found = modules()
    found[0].loss = (torch.ones(2, requires_grad=True) * 2).sum()  # type: ignore[assignment]
    settings = ModuleSettings(found)
    settings.digest()
    kept = weakref.ref(found[0].loss)
    del found[0].loss
    gc.collect()
    assert kept() is None


def calls(run: Callable[[], Any]) -> int:
    """Return how many calls of functions, in Python and in C, something makes."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("kind", ["settings", "structure"])
def test_work_of_a_step_does_not_grow_with_the_number_of_modules(kind: str) -> None:
    found = {}
    for layers in (2, 12):
        sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": layers}
        model = tf.BertModel(tf.BertConfig(vocab_size=40, **sizes))
        look = ModuleSettings(list(model.modules())).digest if kind == "settings" else ModuleStructure(model).is_same
        look()
        found[layers] = calls(look)
    # `dict.values` is called for each module from C, which a profile of this kind does not count.
    assert found[12] == found[2]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.encoder.layer[0].attention.self, "query", nn.Linear(8, 8)),
        lambda m: setattr(m.encoder.layer[1].output.dense, "weight", nn.Parameter(torch.zeros(8, 8))),
        lambda m: m.encoder.layer.append(nn.Linear(8, 8)),
        lambda m: m.register_parameter("extra", nn.Parameter(torch.zeros(1))),
        lambda m: vars(m.encoder.layer[0])["_modules"].pop("attention"),
        lambda m: setattr(m.pooler, "_modules", {}),
    ],
)
def test_replaced_modules_and_parameters_are_noticed(change: Callable[[Any], Any]) -> None:
    model = bert()
    structure = ModuleStructure(model)
    assert structure.is_same()
    change(model)
    assert not structure.is_same()


@pytest.mark.parametrize("kind", ["module", "parameter"])
def test_what_moves_to_the_next_owner_is_noticed(kind: str) -> None:
    root = nn.Module()
    if kind == "module":
        root.first, root.second = nn.ModuleList([nn.ReLU(), nn.Tanh()]), nn.ModuleList()
    else:
        root.first, root.second = nn.ParameterList([torch.zeros(1), torch.ones(1)]), nn.ParameterList()
    structure = ModuleStructure(root)
    name = f"_{kind}s"
    vars(root.second)[name]["0"] = vars(root.first)[name].pop("1")
    assert not structure.is_same()


def test_what_a_pass_changes_is_no_setting_of_a_part_of_the_modules_either() -> None:
    found = modules()
    whole, part = ModuleSettings(found), ModuleSettings(found[:2])
    whole.digest()
    before = part.digest()
    found[0].rate = found[2].rate = 0.2  # type: ignore[assignment]
    whole.end_real_pass()
    part.ignore_as(whole)
    after = part.digest()
    found[0].rate = 0.3  # type: ignore[assignment]
    assert part.digest() == after != before
    found[0].scale = 2  # type: ignore[assignment]
    assert part.digest() != after


def test_what_sharding_adds_to_a_module_is_no_setting() -> None:
    found = modules()
    before = ModuleSettings(found).digest()
    for number, module in enumerate(found):
        # A key of torch, which has another name in each process.
        vars(module)[f"__composable_api_state_key_{number}"] = OrderedDict({double: object(), "fully_shard": 1})
        module._is_fsdp_managed_module = module._fsdp_use_orig_params = True  # type: ignore[assignment]
    assert ModuleSettings(found).digest() == before
