"""The ideal to measure against: a model cut by hand to the layers that train, fed with activations in RAM.

Each function truncates a model and returns it with the function that makes its inputs. None of them uses the package
under test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


class Cut(NamedTuple):
    """A model of the layers that train.

    Attributes:
        model: Takes the arguments that ``prepare`` returns.
        prepare: From the full model's arguments to the cut one's; runs the frozen part.
    """

    model: nn.Module
    prepare: Callable[[Batch], dict[str, Any]]


class Given(nn.Module):
    """Replaces the embeddings: returns its input."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        given: Tensor = args[0] if args else kwargs.get("inputs_embeds", kwargs.get("pixel_values"))
        return given if given is not None else kwargs["inputs_embeds"]


def hidden_states(model: nn.Module, block: nn.Module, batch: Batch) -> Tensor:
    """The hidden states that are the input of a block."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        found.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model.eval()(**batch)
    handle.remove()
    return found[0]


def bert(model: nn.Module, frozen: int) -> Cut:
    """BERT from block ``frozen`` on."""
    block = model.bert.encoder.layer[frozen]
    embeddings, layers = model.bert.embeddings, model.bert.encoder.layer

    def prepare(batch: Batch) -> dict[str, Any]:
        model.bert.embeddings, model.bert.encoder.layer = embeddings, layers
        hidden = hidden_states(model, block, batch)
        cut()
        return {"inputs_embeds": hidden, "attention_mask": batch["attention_mask"], "labels": batch["labels"]}

    def cut() -> None:
        model.bert.embeddings, model.bert.encoder.layer = Given(), layers[frozen:]

    cut()
    return Cut(model, prepare)


def gpt2(model: nn.Module, frozen: int) -> Cut:
    """GPT-2 from block ``frozen`` on."""
    body = model.transformer
    layers, positions, drop = body.h, body.wpe, body.drop

    def prepare(batch: Batch) -> dict[str, Any]:
        body.h, body.wpe, body.drop = layers, positions, drop
        hidden = hidden_states(model, layers[frozen], batch)
        cut()
        rest = {"attention_mask": batch["attention_mask"], "labels": batch["labels"]}
        return {"inputs_embeds": hidden, **rest}

    def cut() -> None:
        body.h, body.wpe, body.drop = layers[frozen:], Nothing(), nn.Identity()

    cut()
    body.wte.requires_grad_(False)  # and with it the language model's head, which is tied to it
    return Cut(model, prepare)


class Nothing(nn.Module):
    """Replaces position embeddings, which the hidden states already include."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros(())


def t5(model: nn.Module, frozen: int) -> Cut:
    """T5's decoder from block ``frozen`` on, with the encoder's output given."""
    encoder, decoder = model.encoder, model.decoder
    blocks, first = decoder.block, decoder.block[0].layer[0].SelfAttention

    def prepare(batch: Batch) -> dict[str, Any]:
        model.encoder, decoder.block = encoder, blocks
        with torch.no_grad():
            encoded = encoder.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        hidden = hidden_states(model, blocks[frozen], batch)
        cut()
        given = {"encoder_outputs": (encoded.last_hidden_state,), "decoder_inputs_embeds": hidden}
        return {**given, "attention_mask": batch["attention_mask"], "labels": batch["labels"]}

    def cut() -> None:
        model.encoder, decoder.block = nn.Identity(), blocks[frozen:]
        # The relative positions are the first block's; they are frozen with it.
        attention = decoder.block[0].layer[0].SelfAttention
        attention.has_relative_attention_bias = True
        attention.relative_attention_bias = first.relative_attention_bias

    model.shared.requires_grad_(False)
    first.relative_attention_bias.requires_grad_(False)
    cut()
    return Cut(model, prepare)


def vit(model: nn.Module, frozen: int) -> Cut:
    """ViT from block ``frozen`` on."""
    blocks = "layers" if hasattr(model.vit, "layers") else "encoder.layer"
    owner = model.vit if blocks == "layers" else model.vit.encoder
    name = blocks.rsplit(".", 1)[-1]
    embeddings, layers = model.vit.embeddings, getattr(owner, name)

    def prepare(batch: Batch) -> dict[str, Any]:
        model.vit.embeddings = embeddings
        setattr(owner, name, layers)
        hidden = hidden_states(model, layers[frozen], batch)
        cut()
        return {"pixel_values": hidden, "labels": batch["labels"]}

    def cut() -> None:
        given = Given()
        given.patch_embeddings = embeddings.patch_embeddings.requires_grad_(False)  # its dtype is asked for
        model.vit.embeddings = given
        setattr(owner, name, layers[frozen:])

    cut()
    return Cut(model, prepare)
