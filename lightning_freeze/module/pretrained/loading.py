"""Hugging Face models with the head of a task."""

from __future__ import annotations

import inspect
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import transformers
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError
from torch import nn

from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.module.pretrained.heads import Head, describe, match_labels, select_outputs, stored_names
from lightning_freeze.module.pretrained.hub import NO_REMOTE_CODE, advice, quiet, resolve
from lightning_freeze.module.pretrained.precision import dtype_argument, take_dtype
from lightning_freeze.module.pretrained.special_tokens import choose_padding_token, ensure_special_tokens, is_usable
from lightning_freeze.module.tasks import Task

_HUB_ARGUMENTS = {
    *("cache_dir", "code_revision", "force_download", "gguf_file", "local_files_only", "proxies", "revision"),
    *("subfolder", "token", "trust_remote_code"),
}
_UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, RuntimeError, KeyError, AssertionError, ImportError, EOFError),
    *(SafetensorError, pickle.UnpicklingError),
)
# What the code of a model runs into when its config or model_kwargs hold something else than it expects.
_UNFIT = (ArithmeticError, AttributeError, IndexError, TypeError)


@dataclass(frozen=True)
class LoadedModel:
    """A model and what was found while loading it.

    Args:
        model: The model in training mode.
        head: Where its head comes from.
        takes_padding: Whether it had no padding token of its own, so that it takes the one of any tokenizer.
    """

    model: nn.Module
    head: Head
    takes_padding: bool


def load(name: str, task: Task | None, pretrained: bool, **config: Any) -> LoadedModel:
    """Load a model with the head of a task, or without a head, in training mode.

    The weights are float32, whatever precision they were saved in, unless ``dtype`` says otherwise. A stored head for
    named classes is matched with ``id2label`` by name. Code that comes with a model is not run unless
    ``trust_remote_code`` is True.

    Args:
        name: A local folder, or a model's name on the Hugging Face hub.
        task: The task whose head is wanted; None for the bare encoder.
        pretrained: Whether to load weights; otherwise the model is built from its config alone.
        **config: Overrides of the config, and further arguments for ``from_pretrained``.

    Raises:
        ConfigurationError: There is no such model, or it has no such head.
    """
    source, where = resolve(name)
    auto = getattr(transformers, task.auto_class if task else "AutoModel")
    dtype = take_dtype(config)
    options = {**NO_REMOTE_CODE, **where, **config}
    on_hub = {key: options[key] for key in _HUB_ARGUMENTS if key in options}
    head, stored = Head(trained=False), None
    try:
        with quiet():
            stored = transformers.AutoConfig.from_pretrained(source, **on_hub)
            tokenizer = cache(partial(_own_tokenizer, source, on_hub))
            chosen = _chosen_padding(stored, options, tokenizer)
            options |= chosen
            if pretrained:
                quantised = "quantization_config" in config or hasattr(stored, "quantization_config")
                options |= dtype_argument(dtype, quantised)
                model, head = _load_weights(name, source, auto, task, stored, options)
            else:
                settings, extra = transformers.AutoConfig.from_pretrained(source, return_unused_kwargs=True, **options)
                extra |= {} if dtype == "auto" else dtype_argument(dtype, quantised=False)
                model = auto.from_config(settings, **{**extra, "trust_remote_code": options["trust_remote_code"]})
            takes_padding = ensure_special_tokens(model, tokenizer) or bool(chosen)
            if chosen and isinstance(table := model.get_input_embeddings(), nn.Embedding):
                table.padding_idx = None  # the chosen token may be a real one, whose embedding is trained
    except Exception as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error) and stored is not None:
            raise ConfigurationError(_unknown_argument(name, error, stored)) from error
        if not isinstance(error, _UNREADABLE) and (not isinstance(error, _UNFIT) or _is_raised_here(error)):
            raise
        raise ConfigurationError(_reason(name, task, error)) from error
    if task is None and getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()  # what a pooled head needs; the decoder would need inputs of its own
    if task is None and "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
        # Nothing uses the pooler then, and DistributedDataParallel refuses parameters without a gradient.
        model.pooler = None
    return LoadedModel(model.train(), head, takes_padding)


def _load_weights(
    name: str, source: str, auto: Any, task: Task | None, stored: Any, options: dict[str, Any]
) -> tuple[Any, Head]:
    """Load the weights; a stored head keeps the meaning of its outputs, or is initialised again."""
    labels = list(options["id2label"].values()) if "id2label" in options else None
    names = stored_names(stored) if labels is not None else []
    rows = None if labels is None or not names else match_labels(names, labels)
    has_head = task is not None and any(task.head_suffix in it for it in getattr(stored, "architectures", None) or [])
    if labels is not None and rows is not None and len(names) != len(labels) and has_head:
        whole = {key: value for key, value in options.items() if key not in ("num_labels", "id2label", "label2id")}
        model, new_head = _from_pretrained(name, source, auto, whole)
        if not new_head:
            select_outputs(model, rows, labels)
            return model, Head(None not in rows, describe(repr(name), names, labels, rows))
    # A stored head for other classes does not fit, so it is initialised again, as if it were not stored.
    model, new_head = _from_pretrained(name, source, auto, options)
    if task is None or new_head:
        note = describe(repr(name), names, labels, None) if has_head and labels and len(names) != len(labels) else None
        return model, Head(False, note)
    if labels is None or len(names) != len(labels):
        return model, Head(trained=True)
    if rows is not None:
        select_outputs(model, rows, labels)
    return model, Head(rows is None or None not in rows, describe(repr(name), names, labels, rows))


def _from_pretrained(name: str, source: str, auto: Any, options: dict[str, Any]) -> tuple[Any, bool]:
    """Return a model, and whether any weight of its head was not loaded."""
    model, info = auto.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    _check_encoder_weights(name, model, info)
    absent = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    return model, any(not _in_encoder(model, key) for key in absent if "pooler" not in key)


def _in_encoder(model: Any, key: str) -> bool:
    return key.startswith(model.base_model_prefix + ".") or model.base_model is model


def _check_encoder_weights(name: str, model: Any, info: dict[str, Any]) -> None:
    """Distinguish a new head, which is as it should be, from an encoder that lacks weights."""

    def in_encoder(key: str) -> bool:
        return "pooler" not in key and _in_encoder(model, key)

    misfits = sorted(key for key, *_ in info["mismatched_keys"] if in_encoder(key))
    if misfits:
        raise ValueError(f"{len(misfits)} tensors of the encoder have another shape, for example {misfits[0]!r}.")
    missing = sorted(filter(in_encoder, info["missing_keys"]))
    if missing:
        rank_zero_warn(
            f"{len(missing)} tensors of the encoder are not in the weights of {name!r} and start at random values, for "
            f"example {missing[0]!r}. Check that the weights belong to this architecture."
        )


def _chosen_padding(stored: Any, options: dict[str, Any], tokenizer: Callable[[], Any]) -> dict[str, Any]:
    """Choose a padding token before the model is built: some embedding tables (RoBERTa) cannot be built without."""
    rows = options.get("vocab_size", getattr(stored, "vocab_size", None))
    if not isinstance(rows, int) or is_usable(options.get("pad_token_id", getattr(stored, "pad_token_id", None)), rows):
        return {}
    return {"pad_token_id": choose_padding_token(stored, rows, tokenizer())}


def _own_tokenizer(source: str, on_hub: dict[str, Any]) -> Any:
    """Return the tokenizer that a model comes with; None if it has none, or none that can be loaded."""
    try:
        return transformers.AutoTokenizer.from_pretrained(source, **on_hub)
    except Exception:  # the model can be loaded without its tokenizer, so any error is ignored
        return None


def _is_raised_here(error: Exception) -> bool:
    """Whether an error comes from this package, and not from code that reads the files of a model."""
    frame = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == __name__.partition(".")[0]


def _reason(name: str, task: Task | None, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if task is not None and "Unrecognized configuration class" in first:
        return (
            f"The encoder {name!r} has no head for the task {task.name!r} ({task.auto_class}): expected another task, "
            f"or pooling='mean', 'cls' or 'last' for a small head of our own."
        )
    if "custom code" in first:
        return (
            f"The encoder {name!r} comes with code of its own, which is not run unasked: read it, and if you trust it, "
            "give model_kwargs={'trust_remote_code': True}."
        )
    return f"The encoder {name!r} could not be loaded: {first} {advice(name)}"


def _unknown_argument(name: str, error: TypeError, stored: Any) -> str:
    argument = str(error).rpartition("argument ")[2].strip("'")
    return (
        f"model_kwargs: {argument!r} is neither an argument of from_pretrained nor in the config of {name!r}."
        f"{suggest(argument, stored.to_dict())}"
    )
