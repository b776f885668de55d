"""Changes of weights, modules or settings of the frozen layers in the middle of a fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from cached_fits import Examples, Plain, assert_same, both, freeze, loader, make_cache, make_trainer
from encoders import SIZES, AfterStep, Classifier, EachEpoch, Encoder, bert, check_equal, frozen
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_freeze.cache.identity import fingerprint


def twelve_steps() -> DataLoader:
    return loader(Examples(24))


def scale(module: nn.Module, factor: float = 1.5) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)


def add(module: Any, block: nn.Module) -> None:
    module.trainer.optimizers[0].add_param_group({"params": list(block.parameters())})


def weights_in_place(module: Any) -> None:
    scale(module.model.bert.embeddings.word_embeddings, 3.0)


def replace_block(module: Any, number: int, trains: bool) -> None:
    layers = module.model.bert.encoder.layer
    layers[number] = copy.deepcopy(layers[number]).requires_grad_(trains)
    scale(layers[number], 1.3)
    if trains:
        add(module, layers[number])


def replace_linear(module: Any, trains: bool) -> None:
    output = module.model.bert.encoder.layer[0].output
    torch.manual_seed(5)
    output.dense = nn.Linear(48, 32).requires_grad_(trains)
    if trains:
        add(module, output.dense)


def replace_parameter(module: Any) -> None:
    dense = module.model.bert.encoder.layer[0].output.dense
    dense.weight = nn.Parameter(dense.weight.detach() * 1.5, requires_grad=False)


@pytest.mark.fast_cases(7)
@pytest.mark.parametrize("by_callback", [True, False], ids=["callback", "own freezing"])
@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(weights_in_place, id="weights in place"),
        pytest.param(lambda m: replace_block(m, 0, False), id="frozen block 0"),
        pytest.param(lambda m: replace_block(m, 1, False), id="frozen block 1"),
        pytest.param(lambda m: replace_block(m, 0, True), id="trainable block 0"),
        pytest.param(lambda m: replace_block(m, 1, True), id="trainable block 1"),
        pytest.param(lambda m: replace_linear(m, False), id="frozen Linear"),
        pytest.param(lambda m: replace_linear(m, True), id="trainable Linear"),
        pytest.param(replace_parameter, id="frozen Parameter"),
    ],
)
def test_frozen_layers_changed_between_two_steps(change: Callable[[Any], None], step: int, by_callback: bool) -> None:
    module = Plain(bert())
    freeze(module.model.bert.embeddings, *module.model.bert.encoder.layer[:2])
    callbacks = [frozen()] if by_callback else []
    check_equal(module, *callbacks, AfterStep(step, change), data=twelve_steps)


@pytest.mark.parametrize("model", [bert, lambda: Classifier(Encoder())], ids=["nested entries", "single entry"])
def test_entry_stays_where_a_block_is_replaced(model: Callable[[], Any]) -> None:
    def replace(module: Any) -> None:
        encoder = module.model.bert.encoder.layer if model is bert else module.model.encoder.layers
        encoder[0] = copy.deepcopy(encoder[0])

    cache = check_equal(Plain(model()), frozen(), AfterStep(4, replace), data=twelve_steps)
    (tower,) = cache._towers
    assert tower.tower.entry_name == ("model.bert" if model is bert else "model.encoder")
    assert cache.hit_rate > 0.4


class Scaled(Encoder):
    scale = 1.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run(self.embeddings(input_ids) * self.scale)[-1]


def change_scale(module: Any) -> None:
    module.model.encoder.scale = 2.0


@pytest.mark.parametrize(
    "when",
    [
        AfterStep(4, change_scale),
        EachEpoch(lambda module, epoch: setattr(module.model.encoder, "scale", 1.0 + (epoch >= 2))),
    ],
    ids=["after step 4", "by epoch"],
)
def test_attribute_of_the_encoder(when: Any) -> None:
    cache = check_equal(Plain(Classifier(Scaled())), frozen(), when, epochs=4)
    assert cache.hit_rate > 0


class Multilingual(Plain):
    def on_train_epoch_start(self) -> None:
        self.model.set_default_language("en_XX" if self.current_epoch < 2 else "de_DE")


def rarely_reads_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a slow machine or with a large model: between two epochs only some elements of each weight are read."""
    monkeypatch.setattr(fingerprint, "_FREE_SECONDS", -math.inf)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("reads", ["every epoch", "rarely"])
def test_language_of_the_model(reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reads == "rarely":
        rarely_reads_weights(monkeypatch)
    torch.manual_seed(0)
    languages = {"languages": ("en_XX", "de_DE"), "default_language": "en_XX", "pad_token_id": 0}
    model = tf.XmodForSequenceClassification(tf.XmodConfig(**SIZES, **languages))
    for layer in model.roberta.encoder.layer:
        for adapter in layer.output.adapter_modules.values():
            nn.init.normal_(adapter.dense2.weight, std=0.5)
    cache = check_equal(Multilingual(model), frozen(), epochs=4)
    assert cache.hit_rate > 0


@pytest.mark.slow
def test_config_changed_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rarely_reads_weights(monkeypatch)

    def change(module: Any) -> None:
        module.model.config.default_language = "de_DE"

    torch.manual_seed(0)
    languages = {"languages": ("en_XX", "de_DE"), "default_language": "en_XX", "pad_token_id": 0}
    module = Plain(tf.XmodForSequenceClassification(tf.XmodConfig(**SIZES, **languages)))
    for layer in module.model.roberta.encoder.layer:
        for adapter in layer.output.adapter_modules.values():
            nn.init.normal_(adapter.dense2.weight, std=0.5)
    cache = check_equal(module, frozen(), AfterStep(4, change), epochs=4)
    assert cache.hit_rate > 0


def test_config_of_a_part_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry reads a setting of a config inside its config, whose scale changes in mid-run."""
    rarely_reads_weights(monkeypatch)

    class Composite(tf.PretrainedConfig):
        pass

    class Reading(Encoder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.run(self.embeddings(input_ids) * self.config.text_config.scale)[-1]

    def change(module: Any) -> None:
        module.model.encoder.config.text_config.scale = 2.0

    encoder = Reading()
    encoder.config = Composite(text_config=tf.PretrainedConfig(scale=1.0))
    cache = check_equal(Plain(Classifier(encoder)), frozen(), AfterStep(4, change), epochs=4)
    assert cache.hit_rate > 0


def test_config_replaced_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second replacement and a later change of the third config count like the first one, also within an epoch."""
    rarely_reads_weights(monkeypatch)

    class Reading(Encoder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.run(self.embeddings(input_ids) * self.config.scale)[-1]

    def replace(scale: float) -> Callable[[Any], None]:
        return lambda module: setattr(module.model.encoder, "config", tf.PretrainedConfig(scale=scale))

    def change(module: Any) -> None:
        module.model.encoder.config.scale = 1.0

    encoder = Reading()
    encoder.config = tf.PretrainedConfig(scale=1.0)
    changes = [AfterStep(14, replace(2.0)), AfterStep(26, replace(3.0)), AfterStep(38, change)]
    cache = check_equal(Plain(Classifier(encoder)), frozen(), *changes, epochs=5, data=twelve_steps)
    assert cache.hit_rate > 0


class Adapted(Plain):
    """Switches the adapter of its frozen blocks."""

    def on_train_epoch_start(self) -> None:
        self.model.base_model.set_adapter("first" if self.current_epoch < 2 else "second")
        self.hold()

    def hold(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(any(part in name for part in ("layer.2", "layer.3", "classifier")))

    def on_train_batch_start(self, *args: Any) -> None:
        self.model.eval()


@pytest.mark.slow
def test_adapter_of_frozen_blocks() -> None:
    config = peft.LoraConfig(target_modules=["query", "value"], init_lora_weights=False, task_type="SEQ_CLS")
    model = peft.get_peft_model(bert(), config, adapter_name="first")
    model.add_adapter("second", config)
    module = Adapted(model)
    module.hold()
    cache = check_equal(module, epochs=4)
    assert cache.hit_rate > 0


class Positioned(Encoder):
    """Has a parameter and a buffer of its own, beside those of its parts."""

    def __init__(self, position: float = 1.0) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.ones(1, 1, 32))
        self.register_buffer("position", torch.full((32,), position))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embeddings(input_ids)
        return self.run(torch.cat([self.cls.expand(len(x), -1, -1), x], 1) * self.position)[-1]


class Gains(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.ones(4))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embeddings(input_ids)
        for number, layer in enumerate(self.layers):
            x = layer(x) * self.gains[number]
        return x


def test_buffer_of_the_entry_in_the_middle_of_a_run() -> None:
    poke = AfterStep(4, lambda module: module.model.encoder.position.mul_(1.5))
    assert check_equal(Plain(Classifier(Positioned())), frozen(), poke).hit_rate > 0


def test_parameter_of_the_entry_in_the_middle_of_a_run() -> None:
    module = Plain(Classifier(Gains()))
    freeze(module.model.encoder.embeddings, *module.model.encoder.layers[:2])
    module.model.encoder.gains.requires_grad_(False)

    def poke(module: Any) -> None:
        with torch.no_grad():
            module.model.encoder.gains.mul_(1.5)

    assert check_equal(module, AfterStep(4, poke)).hit_rate > 0


def test_buffer_of_the_entry_in_a_later_run(tmp_path: Path) -> None:
    rates = []
    for position in (1.0, 1.5, 1.5):
        cache = make_cache(cache_dir=tmp_path)
        check_equal(Plain(Classifier(Positioned(position))), frozen(), cache=cache)
        rates.append(cache.hit_rate)
    assert rates[0] == rates[1] < rates[2]


class Negates(Plain):
    """Changes what the encoder returned in place, from epoch 2 on, before the decoder takes it."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        kept = {"attention_mask": batch["attention_mask"]}
        hidden = self.model.encoder(input_ids=batch["input_ids"], **kept).last_hidden_state
        if self.current_epoch >= 2:
            hidden.mul_(-1.5)
        loss: Tensor = self.model(encoder_outputs=(hidden,), labels=batch["input_ids"], **kept).loss
        self.losses.append(loss.detach().clone())
        return loss

    def on_train_batch_start(self, *args: Any) -> None:
        self.model.eval()


def test_output_of_an_encoder_changed_in_place() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4}
    tokens = {"vocab_size": 100, "decoder_start_token_id": 0, "pad_token_id": 0}
    model = tf.T5ForConditionalGeneration(tf.T5Config(dropout_rate=0.0, **sizes, **tokens))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("decoder.block.2") or "lm_head" in name)
    assert check_equal(Negates(model), epochs=4).hit_rate > 0.5


class Momentum(Plain):
    """A student that learns from an average of itself."""

    def __init__(self, how: str) -> None:
        super().__init__(bert(tf.BertModel))
        self.teacher = copy.deepcopy(self.model)
        freeze(self.teacher)
        scale(self.teacher, 1.05)
        self.how = how

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            target = self.teacher(**inputs)[0][:, 0]
        loss = (self.model(**inputs)[0][:, 0] - target).pow(2).mean()
        self.losses.append(loss.detach().clone())
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        for mine, other in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            if self.how == "assigned":
                mine.data = mine.data * 0.9 + other.data * 0.1
            elif self.how == "data":
                mine.data.mul_(0.9).add_(other.data * 0.1)
            else:
                with torch.no_grad():
                    mine.lerp_(other, 0.1)


class Repeated(Examples):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index % 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("in place", r"change from one step to the next \(teacher\.\S+ does\)"),
        ("assigned", r"change from one step to the next \(teacher\.\S+ does\)"),
        ("data", "what was stored differs from what its frozen layers compute"),
    ],
)
def test_momentum_teacher_is_left_alone(how: str, reason: str) -> None:
    cache = check_equal(Momentum(how), data=lambda: loader(Repeated()), epochs=2, reason=reason)
    assert list(cache.reasons) == ["teacher"]
    assert cache.hit_rate == 0


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("blocks", [3, 4, 5, 8])
def test_callback_that_fitted_another_model_tests_this_one(blocks: int) -> None:
    cache = make_cache()
    plain, cached, _ = both(Plain(bert(num_hidden_layers=6)), frozen("embeddings,:4"), cache=cache, epochs=1)
    assert_same(plain, cached)
    module = Plain(bert(num_hidden_layers=blocks))
    again = copy.deepcopy(module)
    make_trainer().test(module, loader(), verbose=False)
    make_trainer(cache).test(again, loader(), verbose=False)
    torch.testing.assert_close(again.validated, module.validated, rtol=0.0, atol=0.0)
