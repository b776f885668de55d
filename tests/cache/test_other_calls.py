"""Calls that differ from those in which the prefix was checked: in their modes, options and sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Examples, Plain, collate, freeze, loader, make_cache, make_trainer
from encoders import AfterStep, Block, Classifier, Encoder, bert, check_equal, frozen, same_length
from torch import Tensor, nn


class DropsByCode(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run(nn.functional.dropout(self.embeddings(input_ids), 0.3, self.training))[-1]


class DropsByModule(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run(self.drop(self.embeddings(input_ids)))[-1]


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [(DropsByCode, "draws random numbers"), (DropsByModule, None)],  # the latter is put into eval mode
)
def test_dropout_around_the_blocks_after_a_prediction_of_the_same_samples(
    encoder: Any, reason: str | None, tmp_path: Path
) -> None:
    module = Plain(Classifier(encoder()))
    filled = copy.deepcopy(module).eval()
    freeze(filled.model.encoder.embeddings, *filled.model.encoder.layers[:2])
    before = make_cache(cache_dir=tmp_path)
    make_trainer(before).predict(filled, same_length())
    assert not before.reasons
    cache = make_cache(cache_dir=tmp_path)
    options = {"data": same_length, "validation": same_length, "num_sanity_val_steps": 2}
    check_equal(module, frozen(), cache=cache, reason=reason, **options)


def test_dropout_around_the_blocks_after_a_validation_by_the_same_callback() -> None:
    losses = []
    for extra in ([], [make_cache()]):
        module = Plain(Classifier(DropsByCode()))
        freeze(module.model.encoder.embeddings, *module.model.encoder.layers[:2])
        trainer = make_trainer(frozen(), *extra, num_sanity_val_steps=2)
        trainer.validate(module, same_length(), verbose=False)
        torch.manual_seed(3)
        with pytest.warns(UserWarning, match="draws random numbers") if extra else nullcontext():
            trainer.fit(module, same_length(), same_length())
        losses.append(module.losses)
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=0)


class Bart(Plain):
    def __init__(self) -> None:
        torch.manual_seed(0)
        sizes = {"d_model": 32, "encoder_layers": 4, "decoder_layers": 1, "vocab_size": 100, "pad_token_id": 0}
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48}
        super().__init__(tf.BartModel(tf.BartConfig(**sizes, **heads, dropout=0.3, max_position_embeddings=64)).encoder)
        self.head = nn.Linear(32, 2)

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.head(self.encode(batch)[:, 0]), batch["labels"])
        self.losses.append(loss.detach().clone())
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated.append(self.encode(batch).clone())


def test_bart_encoder_that_was_validated_first() -> None:
    options = {"data": same_length, "validation": same_length, "num_sanity_val_steps": 2}
    check_equal(Bart(), frozen("embeddings,:2"), reason="draws random numbers", **options)


class Weighs(Block):
    """Returns a weight beside the hidden states if asked to."""

    def forward(self, x: Tensor, need: bool = False) -> Any:
        y = super().forward(x)
        return (y, y.mean()) if need else y


class Asks(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, need: bool = False) -> Tensor:
        x = self.embeddings(input_ids)
        for layer in self.layers:
            x = layer(x, need)
            x = x[0] if need else x
        return x


class AsksInValidation(Plain):
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated.append(self.model.encoder(batch["input_ids"], need=True).clone())


@pytest.mark.parametrize("sanity", [0, 2])
def test_blocks_that_return_something_else_in_validation(sanity: int) -> None:
    module = AsksInValidation(Classifier(Asks(*(Weighs() for _ in range(4)))))
    options = {"data": same_length, "validation": same_length, "num_sanity_val_steps": sanity}
    check_equal(module, frozen(), reason="return something else|with other options", **options)


class TakesPositions(Encoder):
    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.run(self.embeddings(input_ids) + positions)[-1]


class GivesPositions(Classifier):
    """Hands its encoder a table of positions, which is no sample's own."""

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        table = torch.arange(input_ids.shape[1]).float()[:, None] * torch.linspace(-1, 1, 32)
        return self.encoder(input_ids, table)


class NewSampleEachTime:
    """One batch of as many samples as these have tokens; the last one is new each time."""

    def __init__(self) -> None:
        self.epochs = 0

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.epochs += 1
        known, new = Examples(12, 5, 5), Examples(1, 5, 5, seed=100 + self.epochs)
        yield collate([*(known[i] for i in range(4)), new[0]])


def test_argument_that_happens_to_be_as_long_as_the_batch() -> None:
    module = Plain(GivesPositions(TakesPositions()))
    data = lambda: loader(Examples(12, 5, 5), 3)  # noqa: E731
    cache = check_equal(module, frozen(), data=data, validation=NewSampleEachTime, epochs=5)
    assert cache.hit_rate > 0.5


class AndOneEmptyBatch:
    def __init__(self) -> None:
        self.epochs = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.epochs += 1
        yield from same_length()
        if self.epochs > 1:
            yield {name: value[:0] for name, value in collate([Examples(12, 5, 5)[0]]).items()}


class SkipsEmpty(Plain):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        hidden = self.model.encoder(batch["input_ids"])
        if not len(hidden):
            return None
        loss = nn.functional.cross_entropy(self.model.classifier(hidden[:, 0]), batch["labels"])
        self.losses.append(loss.detach().clone())
        return loss


def test_empty_batch() -> None:
    cache = check_equal(SkipsEmpty(Classifier(Encoder())), frozen(), data=AndOneEmptyBatch, epochs=4)
    assert cache.hit_rate > 0.5


@dataclass
class Options:
    gain: float = 1.0


class Gains(Block):
    """Multiplies by something that is no parameter."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.options = Options()
        self.kind = kind
        if kind == "buffer":
            self.register_buffer("gain", torch.ones(()))
        elif kind == "tensor":
            self.gain = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.options.gain if self.kind == "options" else self.gain)


def put_another(module: Any) -> None:
    for layer in module.model.encoder.layers:
        layer.gain = torch.tensor(2.0)


def write_into_it(module: Any) -> None:
    for layer in module.model.encoder.layers:
        layer.gain.fill_(2.0)


def change_the_options(module: Any) -> None:
    for layer in module.model.encoder.layers:
        layer.options.gain = 2.0


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("buffer", put_another),
        ("buffer", write_into_it),
        ("tensor", put_another),
        ("tensor", write_into_it),
        ("options", change_the_options),
    ],
)
@pytest.mark.parametrize("step", [8, 12], ids=["in an epoch", "between epochs"])
def test_settings_that_are_no_plain_attributes(kind: str, change: Callable[[Any], None], step: int) -> None:
    module = Plain(Classifier(Encoder(*(Gains(kind) for _ in range(4)))))
    data = lambda: loader(Examples(24, 5, 5))  # noqa: E731
    cache = check_equal(module, frozen(), AfterStep(step, change), data=data, epochs=4)
    assert cache.hit_rate > 0.3


class Toggles(Plain):
    """Freezes the whole encoder in every second pass."""

    def __init__(self) -> None:
        super().__init__(bert())
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            loss = self.model(**batch).loss
            self.losses.append(loss.detach().clone())
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        encoder = [p for p in self.model.bert.parameters() if p.requires_grad]
        return [torch.optim.SGD(encoder, lr=0.01), torch.optim.SGD(self.model.classifier.parameters(), lr=0.01)]


@pytest.mark.slow
def test_a_prefix_that_is_new_in_every_second_pass_is_given_up() -> None:
    data = lambda: loader(Examples(24, 5, 5))  # noqa: E731
    check_equal(Toggles(), frozen(), data=data, epochs=6, reason=r"to the next \(the number of frozen blocks does\)")


class CallsFunctionally(Plain):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        trains = {name: p * 1.0 for name, p in self.model.named_parameters() if p.requires_grad}
        loss: Tensor = torch.func.functional_call(self.model, trains, kwargs=dict(batch)).loss
        self.losses.append(loss.detach().clone())
        return loss


def test_parameters_that_are_replaced_in_every_pass() -> None:
    module = CallsFunctionally(bert())
    check_equal(module, frozen(), data=same_length, epochs=5, reason="replaced again and again")


class ReadsPaddingDetached(Plain):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = self.model.encoder(batch["input_ids"], attention_mask=batch["attention_mask"])
        target = hidden.detach().mean(1)
        loss = nn.functional.cross_entropy(self.model.classifier(hidden[:, 0]), batch["labels"])
        loss = loss + (hidden[:, 0] - target).pow(2).mean()
        self.losses.append(loss.detach().clone())
        return loss


def test_padding_that_is_read_without_a_gradient_where_it_is_kept() -> None:
    cache = make_cache(trim_padding=False)
    data = lambda: loader(Examples(24))  # noqa: E731
    check_equal(ReadsPaddingDetached(Classifier(Encoder())), frozen(), data=data, cache=cache, epochs=4)
    assert cache.hit_rate > 0.5


class Overflows(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embeddings(input_ids)
        return self.run(torch.where((input_ids == 88)[..., None], x.abs() * 1e5 + 7e4, x))[-1]


class Normalizes(Classifier):
    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return nn.functional.normalize(self.encoder(input_ids), dim=-1)


def test_hidden_states_beyond_float16_are_computed_again() -> None:
    examples = Examples(12, 5, 5)
    examples.rows[9][0] = 88
    module, cache = Plain(Normalizes(Overflows())), make_cache(dtype="float16")
    make_trainer(frozen(), cache, epochs=4).fit(module, loader(examples))
    assert not cache.reasons
    assert 0.5 < cache.hit_rate < 0.75
    assert all(torch.isfinite(loss) for loss in module.losses)
