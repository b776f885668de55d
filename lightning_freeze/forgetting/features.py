"""Runs a model over texts and keeps one vector for each layer and text, and the loss of a language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel

from lightning_freeze.data.batching import Collator
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.module.pooling import call_with, pool
from lightning_freeze.module.tasks import IGNORE_INDEX
from lightning_freeze.module.transformer import TransformerModule


@dataclass(frozen=True)
class Features:
    """What a model makes of some texts.

    Args:
        layers: For each layer, from the input up, the mean over the tokens of each text, ``(texts, hidden)``, on the
            CPU. ``embeddings`` is what the first block reads.
        loss: Mean loss of the tokens of a causal language model; ``None`` for encoders.
    """

    layers: dict[str, Tensor]
    loss: float | None = None


def extract(module: nn.Module, examples: Sequence[dict[str, Tensor]], pad_token_id: int, batch_size: int) -> Features:
    """Run a module over texts, in evaluation mode and without gradients; it is left as it was.

    Args:
        module: A :class:`TransformerModule`, or any module that holds a model of transformers.
        examples: Encoded texts.
        pad_token_id: Fills the padding.
        batch_size: Texts in one forward pass.

    Raises:
        ConfigurationError: The module holds no such model, or no block of it returns one vector for each token.
    """
    model = text_model(module)
    collate = Collator(pad_token_id)
    recorder = _Recorder(module)
    device = next(module.parameters()).device
    reads_next = predicts_next_token(model)
    total, count = 0.0, 0
    with _evaluating(module), recorder.recording():
        for start in range(0, len(examples), batch_size):
            batch = {name: value.to(device) for name, value in collate(examples[start : start + batch_size]).items()}
            recorder.mask = batch["attention_mask"]
            output = call_with(model, batch if not reads_next else {**batch, "use_cache": False})
            recorder.end_batch()
            if reads_next:
                batch_loss, tokens = _token_loss(output.logits, batch)
                total, count = total + batch_loss, count + tokens
    if not recorder.layers:
        raise ConfigurationError(
            f"Forgetting: no block of {type(model).__name__} returns (batch, sequence, hidden) for a text."
        )
    layers = {name: torch.cat(parts) for name, parts in recorder.layers.items()}
    return Features(layers, total / count if count else None)


def text_model(module: nn.Module) -> nn.Module:
    """Return the part of a module that reads texts; the encoder of a model that has a decoder too.

    Args:
        module: A :class:`TransformerModule`, or any module that holds a model of transformers.

    Raises:
        ConfigurationError: It holds none.
    """
    found = (child for child in module.modules() if isinstance(child, PreTrainedModel))
    model: Any = next(found, module.model if isinstance(module, TransformerModule) else None)
    if model is None:
        raise ConfigurationError(
            f"Forgetting: {type(module).__name__} holds no model of transformers: expected one, or a TransformerModule."
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        encoder: nn.Module = model.get_encoder()
        return encoder
    return model  # type: ignore[no-any-return]


def predicts_next_token(model: nn.Module) -> bool:
    """Whether a model is a causal language model.

    Args:
        model: Any module.
    """
    return isinstance(model, PreTrainedModel) and model.can_generate() and not model.config.is_encoder_decoder


class _Recorder:
    """Keeps the hidden states of the blocks of a module, averaged over the tokens of each text."""

    def __init__(self, module: nn.Module) -> None:
        self.mask = torch.empty(0)
        self.layers: dict[str, list[Tensor]] = {}
        self._batch: dict[str, Tensor] = {}
        modules = dict(module.named_modules())
        blocks = [(block.name, modules.get(block.prefixes[0])) for block in LayerStack(module).blocks]
        self._blocks = [(name, block) for name, block in blocks if block is not None]

    @contextmanager
    def recording(self) -> Iterator[None]:
        with ExitStack() as stack:
            # Skipped layers return NaN. FrozenPrefixCache skips none while a hook on all modules observes the pass.
            stack.callback(register_module_forward_hook(_observe).remove)
            for number, (name, block) in enumerate(self._blocks):
                if number == 0:
                    stack.callback(block.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                stack.callback(block.register_forward_hook(self._after(name)).remove)
            yield

    def end_batch(self) -> None:
        for name, features in self._batch.items():
            self.layers.setdefault(name, []).append(features)
        self._batch = {}

    def _before(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A block that is run several times in a pass (ALBERT) reads the embeddings the first time.
        if "embeddings" not in self._batch:
            self._keep("embeddings", args[0] if args else kwargs.get("hidden_states"))

    def _after(self, name: str) -> Any:
        def keep(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._keep(name, output[0] if isinstance(output, (tuple, list)) else output)

        return keep

    def _keep(self, name: str, hidden: Any) -> None:
        if isinstance(hidden, Tensor) and hidden.ndim == 3 and hidden.shape[:2] == self.mask.shape:
            self._batch[name] = pool(hidden.detach().float(), self.mask, "mean").cpu()


def _observe(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    pass


def _token_loss(logits: Tensor, batch: dict[str, Tensor]) -> tuple[float, int]:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), reduction="sum")
    return float(losses), int((labels != IGNORE_INDEX).sum())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    device = next(module.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():
                part.training = mode
