"""Whether the data of a run fits the model: its tokenizer, its longest text, its token ids."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_freeze.module.pretrained.limits import find_limits
from lightning_freeze.module.pretrained.special_tokens import align_special_tokens, check_end_tokens, end_of_turn


def check_data(backbone: nn.Module, data: Any, takes_padding: bool) -> list[dict[str, Any]] | None:
    """Align the special tokens of model and tokenizer, and check the encoded examples.

    Args:
        backbone: The transformers model; any other module has no special tokens.
        data: The data module, or None. The examples are checked where it shows them as a dict of lists (``encoded``)
            and does not check them itself (``checks_input_limits``).
        takes_padding: Whether the model takes the padding token of any tokenizer.

    Returns:
        All encoded examples; None where the data module shows none, or has no tokenizer.

    Raises:
        ConfigurationError: An example does not fit the model.
    """
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is None or not hasattr(tokenizer, "pad_token_id"):
        return None
    # Of conversations the model learns to end each message as the chat template does.
    reads_messages = getattr(getattr(data, "columns", None), "messages", None) is not None
    align_special_tokens(backbone, tokenizer, takes_padding, end_of_turn(tokenizer) if reads_messages else None)
    encoded = getattr(data, "encoded", None)
    if not isinstance(encoded, dict):
        return None
    limits = find_limits(backbone)
    for name, examples in encoded.items():
        if not getattr(data, "checks_input_limits", False):
            limits.check(examples, f"the {name} rows", len(tokenizer) - 1)
        check_end_tokens(backbone, examples, f"the {name} rows")
    return [example for examples in encoded.values() for example in examples]


def has_responses(data: Any) -> bool:
    """Return whether a data module has prompts or conversations that a language model responds to.

    Args:
        data: The data module, or None.
    """
    return bool(getattr(getattr(data, "columns", None), "has_responses", False))
