"""The limits of a model: the number of tokens in a text, and the size of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lightning_freeze.data.reading.table import Table
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.pretrained.limits import find_limits, token_ids
from lightning_freeze.module.pretrained.padding import shortest_batch


@dataclass(frozen=True)
class ModelLimits:
    """What a model can read; None where there is no limit, or none that is known.

    Args:
        positions: The most tokens in one text.
        vocabulary: Token ids must lie below.
        shortest: The fewest tokens in a row of a batch, padding included.
        shortest_training: The same for training batches.
    """

    positions: int | None = None
    vocabulary: int | None = None
    shortest: int = 1
    shortest_training: int = 1

    def prompt_positions(self, module: Any) -> int | None:
        """Return how many tokens a prompt may have, so that there are positions for what the model writes.

        Args:
            module: The module that predicts, with ``generate_kwargs`` if it is a :class:`TransformerModule`.

        Raises:
            ConfigurationError: There is no position left for a prompt.
        """
        new = getattr(module, "generate_kwargs", {}).get("max_new_tokens", 0)
        if self.positions is None or not isinstance(new, int):
            return self.positions
        if new >= self.positions:
            raise ConfigurationError(
                f"model.generate_kwargs asks for max_new_tokens={new} and the model has {self.positions} positions: "
                f"expected at most {self.positions - 1}."
            )
        return self.positions - new

    def check(self, table: Table, examples: Iterable[dict[str, Any]], tokenizer: Any) -> None:
        """Check that the model can read all examples of a table.

        Args:
            table: The rows.
            examples: The encoded rows; ``index`` is the row.
            tokenizer: The tokenizer that made them.

        Raises:
            ConfigurationError: An example is too long or has an unknown token id; the message names the row.
        """
        if self.vocabulary is not None and (tokenizer.pad_token_id or 0) >= self.vocabulary:
            raise ConfigurationError(self._unknown("", tokenizer.pad_token_id, tokenizer))
        for example in examples:
            row = int(example["index"])
            for ids in token_ids(example):
                if self.positions is not None and len(ids) > self.positions:
                    raise ConfigurationError(
                        f"{table.where(row)}: the text has {len(ids)} tokens and the model {self.positions} positions: "
                        f"expected data.max_length of at most {self.positions}."
                    )
                if self.vocabulary is not None and int(ids.max()) >= self.vocabulary:
                    raise ConfigurationError(self._unknown(f"{table.where(row)}: ", int(ids.max()), tokenizer))

    def _unknown(self, where: str, token_id: int, tokenizer: Any) -> str:
        return (
            f"{where}the token {tokenizer.convert_ids_to_tokens(token_id)!r} has the id {token_id}, and the model "
            f"knows ids below {self.vocabulary}: expected the model's own tokenizer (data.tokenizer), or a model "
            f"after model.resize_token_embeddings({max(len(tokenizer), token_id + 1)})."
        )


def model_limits(module: nn.Module | None) -> ModelLimits:
    """Return what the transformers model in a module can read.

    Args:
        module: The module that trains; None gives no limits.
    """
    models = (child for child in module.modules() if isinstance(child, PreTrainedModel)) if module is not None else ()
    model = next(iter(models), None)
    if model is None:
        return ModelLimits()
    limits = find_limits(model)
    return ModelLimits(limits.positions, limits.vocabulary, shortest_batch(model), shortest_batch(model, training=True))
