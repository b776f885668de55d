"""A head for encoders that have none: pooling, dropout, one linear layer."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_freeze.arguments import check_arguments, check_at_least, check_share
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.tasks import Task, first_tensor

Pooling = Literal["mean", "cls", "last", "none"]
_SIZE_NAMES = ("hidden_size", "d_model", "n_embd", "dim", "hidden_dim", "embed_dim", "num_features")
_INPUT_NAMES = ("input_ids", "pixel_values", "inputs_embeds")


def find_hidden_size(encoder: nn.Module) -> int:
    """Return the size of an encoder's output vectors, from its config or its attributes.

    Args:
        encoder: The encoder without a head.

    Raises:
        ConfigurationError: Neither has it.
    """
    config = getattr(encoder, "config", None)
    for source in (config, getattr(config, "text_config", None), encoder):
        for name in _SIZE_NAMES:
            value = getattr(source, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        sizes = getattr(source, "hidden_sizes", None)
        if isinstance(sizes, (list, tuple)) and sizes:
            return int(sizes[-1])
    for layer in encoder.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            return int(layer.linear1.in_features)
    raise ConfigurationError(
        f"The hidden size of {type(encoder).__name__} is unknown: it has neither a config nor an attribute named "
        f"{', '.join(_SIZE_NAMES)}. Expected hidden_size=<the size of its output vectors>, for example hidden_size=384."
    )


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model inside a PEFT wrapper; any other module is returned as it is.

    Args:
        module: Any module.
    """
    inner = getattr(module, "get_base_model", None)
    base: nn.Module = inner() if callable(inner) else module
    return base


def call_with(module: nn.Module, inputs: dict[str, Any]) -> Any:
    """Call a module with the inputs that its ``forward`` takes; see :func:`arguments_for`.

    Args:
        module: Any module.
        inputs: Model inputs by name.
    """
    args, kwargs = arguments_for(module, inputs)
    return module(*args, **kwargs)


def arguments_for(module: nn.Module, inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and named arguments for a call of a module.

    A module whose ``forward`` names one of the usual inputs (``input_ids``, ``pixel_values``, ``inputs_embeds``) gets
    the inputs that it names. One that takes only ``**kwargs`` gets all of them. Any other gets the first input as its
    single argument.

    Args:
        module: Any module.
        inputs: Model inputs by name.
    """
    parameters = inspect.signature(unwrapped(module).forward).parameters
    if any(name in parameters for name in _INPUT_NAMES):
        return (), accepted(module, inputs)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return (), inputs
    return (first_tensor(inputs),), {}


def accepted(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs that the ``forward`` of a module names, and ``use_cache`` if it takes ``**kwargs``.

    Models of transformers pass ``use_cache`` on in their ``**kwargs``, to the part that names it.

    Args:
        module: Any module.
        inputs: Model inputs by name.
    """
    parameters = inspect.signature(unwrapped(module).forward).parameters
    takes_more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in inputs.items() if name in parameters or (takes_more and name == "use_cache")}


def pool(hidden: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """Turn one vector per token into one vector per example.

    Args:
        hidden: ``(batch, sequence, hidden)``.
        mask: ``(batch, sequence)``, 1 at tokens and 0 at padding (on either side); None for no padding.
        pooling: ``"mean"`` over the tokens (Reimers and Gurevych, 2019), the first token (``"cls"``) or the
            ``"last"`` one (decoders).

    Returns:
        ``(batch, hidden)``.
    """
    if mask is None or mask.shape != hidden.shape[:2]:
        mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    index = (positions * mask).argmax(1) if pooling == "last" else mask.long().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


class PooledModel(nn.Module):
    """An encoder with a small head: pooling, dropout and a linear layer.

    Args:
        encoder: Returns ``(batch, sequence, hidden)``, ``(batch, hidden)``, ``(batch, hidden, height, width)`` or a
            transformers output with ``last_hidden_state``.
        task: The task that the head is for.
        num_outputs: Outputs of the head.
        pooling: How the vectors of the tokens become one vector for the example; ``"none"`` takes the encoder's
            output as the logits and adds no head.
        hidden_size: Size of the encoder's output vectors; by default from its config or attributes.
        dropout: Dropout before the linear layer.

    Raises:
        ConfigurationError: An argument is wrong, or the hidden size of the encoder is unknown.
    """

    def __init__(
        self,
        encoder: nn.Module,
        task: Task,
        num_outputs: int,
        pooling: Pooling = "mean",
        hidden_size: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        check_arguments(PooledModel, locals())
        super().__init__()
        check_at_least("num_outputs", num_outputs, 1)
        check_at_least("hidden_size", hidden_size, 1)
        check_share("dropout", dropout)
        if task.is_language_model and pooling != "none":
            raise ConfigurationError(
                f"Task {task.name!r} needs a language-model head, and {type(encoder).__name__} has none: expected "
                f"a model of {task.auto_class}, or pooling='none' for a module that returns logits over tokens."
            )
        self.encoder = encoder
        self.pooling = pooling
        self.task = task
        if pooling != "none":
            self.dropout = nn.Dropout(dropout)
            self.classifier = nn.Linear(hidden_size or find_hidden_size(encoder), num_outputs)

    def forward(self, **inputs: Any) -> Tensor:
        """Return logits: ``(batch, outputs)``, or ``(batch, sequence, outputs)`` for token tasks.

        Args:
            **inputs: Model inputs by name; labels are left to the loss.
        """
        inputs.pop("labels", None)
        output = call_with(self.encoder, inputs)
        if self.pooling == "none":
            return _tensor(output, "logits")
        features = self.dropout(self._features(output, inputs))
        # An encoder in 16 bits, quantised ones included, may stand below a head in 32 bits.
        logits: Tensor = self.classifier(features.to(next(self.classifier.parameters()).dtype))
        return logits

    def _features(self, output: Any, inputs: dict[str, Any]) -> Tensor:
        hidden = _tensor(output, "last_hidden_state")
        if hidden.ndim == 4:
            hidden = hidden.mean((2, 3))
        if not self.task.pooled and hidden.ndim != 3:
            raise ConfigurationError(
                f"Task {self.task.name!r} needs one vector per token, but {type(self.encoder).__name__} returned the "
                f"shape {tuple(hidden.shape)}: expected (batch, sequence, hidden)."
            )
        if self.task.pooled and hidden.ndim == 3:
            hidden = pool(hidden, inputs.get("attention_mask"), self.pooling)
        return hidden


def _tensor(output: Any, name: str) -> Tensor:
    if isinstance(output, Tensor):
        return output
    for field in (name, "pooler_output", "logits"):
        value = getattr(output, field, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise ConfigurationError(
        f"The encoder returned {type(output).__name__}: expected a tensor (batch, sequence, hidden) or a transformers "
        f"output with {name}."
    )


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the transformers model inside the wrappers; for a module of another kind the module itself.

    Args:
        model: A model with a head.
    """
    return unwrapped(model.encoder if isinstance(model, PooledModel) else model)
