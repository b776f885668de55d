"""What a model can take as input: how many positions, which token ids, which segment ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_freeze.errors import ConfigurationError

# Names of learned tables of absolute positions. Relative positions and rotations have no end.
_POSITION_TABLE = re.compile(r"(^|[._])(wpe|pos(ition)?s?_emb\w*|embed_pos\w*)$")

# Tables of sinusoids that are tensors: GPT-J and CodeGen, CTRL.
_FIXED_TABLES = ("embed_positions", "pos_encoding")

# Models that have no table and still take no more positions than their config says: the ALiBi of MPT is built for so
# many, and Reformer compares.
_LIMITS_BY_CONFIG = {"mpt": "max_seq_len", "reformer": "max_position_embeddings"}


@dataclass(frozen=True)
class InputLimits:
    """The sizes of a model's embedding tables; an index beyond one of them ends a run in the middle of a batch.

    ``TransformerModule.input_limits`` returns it. None stands for no limit or an unknown one: relative positions (T5,
    XLNet, DeBERTa), rotary positions (Llama, Qwen2) and ALiBi (BLOOM) have no table that a long text could exceed.

    Args:
        positions: The longest sequence in tokens, special tokens included, for input and target texts alike. The
            offset that some models put before their positions is taken off: 512 for RoBERTa, whose config says 514.
        vocabulary: The number of token ids: ids run from 0 to one less.
        token_types: The number of segment ids (``token_type_ids``).
    """

    positions: int | None = None
    vocabulary: int | None = None
    token_types: int | None = None

    def check(self, examples: Sequence[Mapping[str, Any]], name: str, longest_id: int | None = None) -> None:
        """Check that a model can take encoded examples.

        Args:
            examples: Examples with ``input_ids`` as 1-d tensors, and target tokens as ``labels``, if any.
            name: What they are, for the message.
            longest_id: The highest id that the tokenizer has; the ids are looked at only if it is beyond the
                vocabulary, or unknown.

        Raises:
            ConfigurationError: An example is longer than the positions, or has an id beyond the vocabulary.
        """
        if self.positions is not None:
            lengths = [max(map(len, token_ids(example))) for example in examples]
            longest = max(lengths, default=0)
            if longest > self.positions:
                raise ConfigurationError(
                    f"Row {lengths.index(longest)} of {name} has {longest} tokens, but the model has "
                    f"{self.positions} positions: expected data.max_length of at most {self.positions}."
                )
        if self.vocabulary is not None and (longest_id is None or longest_id >= self.vocabulary):
            for row, example in enumerate(examples):
                highest = max((int(ids.max()) for ids in token_ids(example) if len(ids)), default=0)
                if highest >= self.vocabulary:
                    raise ConfigurationError(
                        f"Row {row} of {name} has the token id {highest}, but the model has embeddings for the ids 0 "
                        f"to {self.vocabulary - 1}: expected the tokenizer that the model was trained with, or a model "
                        "saved after model.resize_token_embeddings(len(tokenizer))."
                    )


def token_ids(example: Mapping[str, Any]) -> list[Tensor]:
    """Return what a model looks up in its tables: the tokens of a text, and those of its target where it has one.

    Args:
        example: An example with ``input_ids`` as a 1-d tensor, and ``labels``, if any.
    """
    labels = example.get("labels")
    has_targets = isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()
    return [example["input_ids"], *([labels] if has_targets else [])]


def find_limits(model: nn.Module) -> InputLimits:
    """Read the limits off a model's embedding tables.

    Args:
        model: Any module; one that is not from transformers has no known vocabulary.
    """
    positions, token_types = [], []
    for name, module in model.named_modules():
        positions += [len(table) for key in _FIXED_TABLES if isinstance(table := getattr(module, key, None), Tensor)]
        # Embedding tables, of torch or quantised (I-BERT); the sinusoids of M2M100 have no weight and grow as needed.
        if not hasattr(module, "padding_idx") or not isinstance(getattr(module, "weight", None), Tensor):
            continue
        if _POSITION_TABLE.search(name):
            positions.append(len(module.weight) - _offset(module))
            indices = getattr(model.get_submodule(name.rpartition(".")[0]), "position_ids", None)
            positions += [indices.shape[-1]] if isinstance(indices, Tensor) else []
        elif name.rpartition(".")[2] == "token_type_embeddings":
            token_types.append(len(module.weight))
    config = getattr(model, "config", None)
    if (limit := _LIMITS_BY_CONFIG.get(getattr(config, "model_type", ""))) is not None:
        positions.append(getattr(config, limit))
    return InputLimits(min(positions, default=None), vocabulary_size(model), min(token_types, default=None))


def vocabulary_size(model: nn.Module) -> int | None:
    """Return the number of token ids that a transformers model has embeddings for; None for other modules.

    Args:
        model: Any module.
    """
    if not callable(getattr(model, "get_input_embeddings", None)):
        return None
    try:
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        return None
    if isinstance(table, nn.Embedding):
        return table.num_embeddings
    weight = getattr(table, "weight", None)  # wrapped or quantised tables
    return len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 and hasattr(table, "padding_idx") else None


def _offset(table: nn.Module) -> int:
    offset = getattr(table, "offset", None)  # BART and OPT
    if isinstance(offset, int):
        return offset
    padding = getattr(table, "padding_idx", None)
    return padding + 1 if isinstance(padding, int) else 0  # RoBERTa and related models
