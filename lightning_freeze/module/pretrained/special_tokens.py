"""The special tokens that a model and its tokenizer must agree on, so that a text's logits do not depend on its batch.

A decoder's head reads the last token that is not padding, and it finds that token by its id. If the model's
``pad_token_id`` is not the id that the batch is padded with, the head reads a padding position, and what it finds there
depends on the longest text of the batch. Here a model without a usable padding token takes that of its tokenizer, and
the padding of every batch is set to the model's own id, whatever it was padded with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.pretrained.limits import vocabulary_size


def padding_token_id(tokenizer: Any) -> int | None:
    """Return the id that texts of a tokenizer are padded with: its padding token, else its end token.

    Args:
        tokenizer: Any tokenizer of transformers.
    """
    token: int | None = tokenizer.pad_token_id
    return tokenizer.eos_token_id if token is None else token


def is_usable(token: Any, rows: int) -> bool:
    """Whether a model has an embedding for a token.

    Args:
        token: The id, or None.
        rows: The number of token ids that the model has embeddings for.
    """
    return isinstance(token, int) and 0 <= token < rows


def text_config(model: nn.Module) -> Any:
    """Return the config that holds a model's special tokens; None for a module that is not from transformers.

    Args:
        model: Any module.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict") or not callable(getattr(model, "get_input_embeddings", None)):
        return None
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def choose_padding_token(config: Any, rows: int, tokenizer: Any) -> int | None:
    """Return a padding token for a model that has none: its tokenizer's, else its end token.

    Args:
        config: The model's config.
        rows: The number of token ids that the model has embeddings for.
        tokenizer: The tokenizer that the model comes with, or None.
    """
    candidates = [None if tokenizer is None else padding_token_id(tokenizer), *_ends(config)]
    return next((token for token in candidates if is_usable(token, rows)), None)


def ensure_special_tokens(model: nn.Module, tokenizer: Callable[[], Any]) -> bool:
    """Give a model a padding token if it has none, or one that it has no embedding for.

    A head that reads the end token of a text (BART, T5) compares with one id: where the config has several, it gets
    the tokenizer's, else the first.

    Args:
        model: A transformers model; anything else is left alone.
        tokenizer: Returns the tokenizer that the model comes with, or None. It is called only if it is needed.

    Returns:
        Whether the model had no usable padding token of its own, so that the one of another tokenizer fits as well.
    """
    config, rows = text_config(model), vocabulary_size(model)
    if config is None or rows is None:
        return False
    if reads_end_token(model) and isinstance(config.eos_token_id, list):
        end = getattr(tokenizer(), "eos_token_id", None)
        config.eos_token_id = end if end in config.eos_token_id else config.eos_token_id[0]
    had_none = not is_usable(getattr(config, "pad_token_id", None), rows)
    if had_none:
        config.pad_token_id = choose_padding_token(config, rows, tokenizer())
    _keep_padding_apart(model, config)
    return had_none


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the special token with which the chat template of a tokenizer ends a message of the assistant.

    It need not be the end token of the tokenizer: base models with ChatML have ``<|endoftext|>`` and ``<|im_end|>``.

    Args:
        tokenizer: Any tokenizer of transformers.

    Returns:
        The id; None without a chat template, or where a message ends without a special token.
    """
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False)).rstrip()
    except Exception:  # templates are programs: without one, or with one that refuses these messages, nothing is known
        return None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[-1] if ids and ids[-1] in tokenizer.all_special_ids else None


def align_special_tokens(model: nn.Module, tokenizer: Any, replace_padding: bool, end: int | None = None) -> None:
    """Make a model know the special tokens of the tokenizer that feeds it.

    As the Trainer of transformers does: the model generates until the tokenizer's end token too, and a head that reads
    the end token (BART, T5) looks for the tokenizer's.

    Args:
        model: A transformers model; anything else is left alone.
        tokenizer: The tokenizer of the data.
        replace_padding: Whether the model takes the tokenizer's padding token.
        end: Another token at which the model stops.
    """
    config, rows = text_config(model), vocabulary_size(model)
    if config is None or rows is None:
        return
    padding, own_end = padding_token_id(tokenizer), tokenizer.eos_token_id
    if replace_padding and is_usable(padding, rows):
        config.pad_token_id = padding
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        if generation.pad_token_id is None:
            generation.pad_token_id = config.pad_token_id
        for token in (own_end, end):
            generation.eos_token_id = _with(generation.eos_token_id, token, rows)
    elif reads_end_token(model) and is_usable(own_end, rows):
        config.eos_token_id = own_end
    _keep_padding_apart(model, config)


def prepare_inputs(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a batch as the model expects it: padded with its own token, on the side that its head reads.

    Args:
        model: The transformers model that the inputs are for; for anything else they are returned as they are.
        inputs: Model inputs by name, ``input_ids`` and ``attention_mask`` ``(batch, sequence)``.
    """
    config = text_config(model)
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if config is None or not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.shape != mask.shape:
        return inputs
    prepared = dict(inputs)
    if config.pad_token_id is not None:
        prepared["input_ids"] = ids.masked_fill(mask == 0, config.pad_token_id)
    if getattr(config, "type_vocab_size", None) == 1:
        prepared.pop("token_type_ids", None)  # A tokenizer that numbers two segments, and a model that knows one.
    if reads_last_position(model):
        order = torch.argsort(mask.long(), dim=1, stable=True)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            if isinstance(value := prepared.get(name), Tensor):
                prepared[name] = value.gather(1, order)
    return prepared


def reads_last_position(model: nn.Module) -> bool:
    """Whether a model's head reads the last position, padding or not, so that batches must be padded on the left.

    XLNet's does: its class token stands at the end of a text.

    Args:
        model: Any module.
    """
    return hasattr(model, "sequence_summary") and getattr(text_config(model), "summary_type", None) == "last"


def reads_end_token(model: nn.Module) -> bool:
    """Whether a model's head reads the end token of a text: that of BART and T5 as classifiers.

    Args:
        model: Any module.
    """
    return hasattr(model, "classification_head") and getattr(text_config(model), "is_encoder_decoder", False)


def check_end_tokens(model: nn.Module, examples: Sequence[Mapping[str, Any]], name: str) -> None:
    """Check examples for a head that reads the end token of a text (BART and T5 as classifiers).

    Such a head needs the same number of end tokens in all texts of a batch.

    Args:
        model: A transformers model; one with another head is left alone.
        examples: Examples with ``input_ids`` as 1-d tensors.
        name: What they are, for the message.

    Raises:
        ConfigurationError: An example has no end token, or another number of them.
    """
    if not reads_end_token(model):
        return
    end, usual = text_config(model).eos_token_id, None
    for row, example in enumerate(examples):
        count = int((example["input_ids"] == end).sum())
        usual = count if usual is None else usual
        if count == 0 or count != usual:
            raise ConfigurationError(
                f"Row {row} of {name} has {count} end tokens (id {end}), the first row has {usual}: "
                f"{type(model).__name__} reads a text at its end token, and needs the same number of them in all "
                "texts, at least one. Check that no text contains the end token itself, and that the tokenizer adds it."
            )


def _keep_padding_apart(model: nn.Module, config: Any) -> None:
    """Pad with a token other than the end token, if the head would mistake padding for the end of a text."""
    if reads_end_token(model) and config.pad_token_id in (None, config.eos_token_id):
        config.pad_token_id = 1 if config.eos_token_id == 0 else 0  # any other token: padding is masked


def _with(ends: Any, end: int | None, rows: int) -> Any:
    known = _listed(ends)
    if not is_usable(end, rows) or end in known:
        return ends
    return [*known, end] if known else end


def _ends(config: Any) -> list[Any]:
    return _listed(getattr(config, "eos_token_id", None))


def _listed(tokens: Any) -> list[Any]:
    return [] if tokens is None else tokens if isinstance(tokens, list) else [tokens]
