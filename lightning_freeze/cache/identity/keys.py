"""Content keys: one hash for each sample in the arguments of a forward call."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_freeze.cache.identity.unsupported import Unsupported
from lightning_freeze.errors import ConfigurationError

#: Arguments with one entry for each token, whose entries for padding are left out.
TOKENWISE = frozenset({"input_ids", "inputs_embeds", "token_type_ids", "position_ids", "attention_mask"})
#: Arguments that select what the call returns, and do not change the hidden states.
REPORTING = frozenset({"return_dict", "use_cache", "output_attentions", "output_hidden_states", "num_items_in_batch"})
#: Returns the keys of the samples that a tensor was computed from, ``None`` if they are not known.
KeysOf = Callable[[Tensor], Sequence[bytes] | None]


def new_hash() -> Any:
    """Return an empty 128-bit xxHash.

    Raises:
        ConfigurationError: If xxhash is not installed.
    """
    try:
        import xxhash
    except ImportError as error:
        raise ConfigurationError(
            "FrozenPrefixCache needs xxhash, which is not installed: expected `pip install xxhash`."
        ) from error
    return xxhash.xxh3_128()


@dataclass
class Call:
    """The arguments of one forward call, divided by sample.

    Attributes:
        args: Positional arguments as they were passed.
        kwargs: Named arguments as they were passed.
        tensors: Every tensor among the arguments, by path.
        constants: Every other argument that may change what is computed, by path.
        size: Number of samples.
        length: Number of positions of the token-wise arguments, 0 without a mask that marks padding.
        spans: For each sample the first position that is not padding, and the one after the last.
        signature: Names of the positional parameters of the module's ``forward``.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: dict[str, Tensor]
    constants: dict[str, Any]
    size: int
    length: int
    spans: list[tuple[int, int]]
    signature: Sequence[str]

    @property
    def has_padding(self) -> bool:
        """Whether any position of any sample is padding."""
        return any(stop - start < self.length for start, stop in self.spans)

    def keys(self, trims_padding: bool, keys_of: KeysOf) -> list[bytes]:
        """Return the 16-byte key of each sample.

        Args:
            trims_padding: Whether padding is left out; a sample without padding has the same key either way.
            keys_of: Gives the keys of the samples that a tensor was computed from, if they are known, which saves
                reading the tensor.
        """
        common = new_hash()
        for name, value in sorted(self.constants.items()):
            common.update(f"{name}={type(value).__name__}:{value!r};".encode())
        columns: list[tuple[bytes, np.ndarray | Sequence[bytes], int]] = []
        for name, tensor in sorted(self.tensors.items()):
            known = keys_of(tensor)
            if known is not None and len(known) == self.size:
                columns.append((f"{name}<-".encode(), known, 0))
            elif self.is_per_sample(tensor):
                each = math.prod(tensor.shape[2:]) * tensor.element_size() if tensor.dim() > 1 else 0
                tokenwise = self.length and name in TOKENWISE and tensor.dim() > 1 and tensor.shape[1] == self.length
                title = f"{name}:{tensor.dtype}:{tuple(tensor.shape[2 if tokenwise else 1 :])};".encode()
                columns.append((title, bytes_of(tensor), each if tokenwise else 0))
            else:
                common.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
                common.update(bytes_of(tensor.reshape(1, -1)))
        keys = []
        for row in range(self.size):
            start, stop = self.spans[row] if self.spans else (0, 0)
            entry = common.copy()
            keeps_padding = not trims_padding and bool(self.spans) and stop - start < self.length
            if self.spans:
                entry.update(b"@%d+%d" % (start, stop - start))
            if keeps_padding:
                entry.update(b"padded to %d" % self.length)
            for title, column, each in columns:
                entry.update(title)
                value = column[row]
                entry.update(value[start * each : stop * each] if each and not keeps_padding else value)
            keys.append(entry.digest())
        return keys

    @property
    def per_sample(self) -> frozenset[str]:
        """The arguments that have an entry for each sample."""
        return frozenset(name for name, tensor in self.tensors.items() if self.is_per_sample(tensor))

    def has_same_layout(self, per_sample: frozenset[str]) -> bool:
        """Whether the same arguments as before have one entry for each sample.

        They do not where two sizes happen to be equal, for instance as many samples as positions.

        Args:
            per_sample: The arguments that had one entry for each sample before.
        """
        own = self.per_sample
        return self.size == 1 or all((name in own) == (name in per_sample) for name in self.tensors)

    def is_per_sample(self, tensor: Tensor) -> bool:
        """Whether the first dimension of an argument counts the samples."""
        if tensor.dim() == 0 or tensor.shape[0] != self.size:
            return False
        first = next(iter(self.tensors.values()))
        # With as many positions as samples, a vector of this length may belong to either.
        return tensor.dim() > 1 or first.dim() < 2 or first.shape[1] != self.size

    def select(self, rows: Sequence[int], stop: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the arguments of the same call for some of the samples.

        Args:
            rows: Which samples.
            stop: Leave out the positions from here on; ``None`` keeps all.

        Returns:
            Positional and named arguments, or ``None`` if they cannot be divided by sample or position.
        """
        index = torch.as_tensor(rows)

        def take(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                if self.is_per_sample(value):
                    value = value.index_select(0, index.to(value.device))
                elif (stop is not None and self.length in value.shape) or value.shape[:1] == (self.size,):
                    raise _NotDivisible  # indexed by position, or perhaps by sample
                if stop is None or self.length not in value.shape[1:]:
                    return value
                if name in TOKENWISE and value.shape[1] == self.length:
                    return value[:, :stop]
                raise _NotDivisible
            if isinstance(value, Mapping):
                parts = {key: take(f"{name}.{key}", part) for key, part in value.items()}
                return type(value)(**parts) if hasattr(value, "to_tuple") else type(value)(parts)  # type: ignore[call-arg]
            if isinstance(value, (list, tuple)):
                items = [take(f"{name}.{i}", part) for i, part in enumerate(value)]
                return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
            return value

        names = [*self.signature, *(str(i) for i in range(len(self.signature), len(self.args)))]
        try:
            args = tuple(take(name, value) for name, value in zip(names, self.args, strict=False))
            return args, {name: take(name, value) for name, value in self.kwargs.items()}
        except _NotDivisible:
            return None

    def subset(self, rows: Sequence[int]) -> Call | None:
        """Return the same call for some of the samples, ``None`` if it cannot be divided.

        Args:
            rows: Which samples.
        """
        cut = self.select(rows)
        if cut is None:
            return None
        tensors = {name: t[list(rows)] if self.is_per_sample(t) else t for name, t in self.tensors.items()}
        spans = [self.spans[row] for row in rows] if self.spans else []
        return replace(self, args=cut[0], kwargs=cut[1], tensors=tensors, size=len(rows), spans=spans)

    def with_other_padding(self) -> Call:
        """Return the same call with each sample's first entry in its padding, which is still marked as padding."""
        positions, spans = torch.arange(self.length), torch.tensor(self.spans)
        real = (spans[:, :1] <= positions) & (positions < spans[:, 1:])

        def refill(name: str, value: Any) -> Any:
            if name not in TOKENWISE - {"attention_mask"} or value is None or value.shape[:2] != real.shape:
                return value
            first = value[torch.arange(self.size), spans[:, 0]].unsqueeze(1)
            return value.where(real.view(*real.shape, *[1] * (value.dim() - 2)).to(value.device), first)

        names = [*self.signature, *[""] * len(self.args)]
        kwargs = {name: refill(name, value) for name, value in self.kwargs.items()}
        return replace(self, args=tuple(map(refill, names, self.args)), kwargs=kwargs)


class _NotDivisible(Exception):
    """An argument cannot be divided by sample or position."""


class CallReader:
    """Reads the arguments of calls of one module.

    Args:
        module: The module whose ``forward`` is called.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = inspect.signature(module.forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.names = [p.name for p in parameters if p.kind in kinds]

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments of a call by name; extra positional arguments are named by their position."""
        return {**{(self.names[i] if i < len(self.names) else str(i)): v for i, v in enumerate(args)}, **kwargs}

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Read the arguments of one call.

        Raises:
            Unsupported: If there is no tensor among the arguments, or something that cannot be hashed.
        """
        tensors: dict[str, Tensor] = {}
        constants: dict[str, Any] = {}
        for path, value in _walk(self.named(args, kwargs)):
            if isinstance(value, Tensor):
                tensors[path] = value
            elif path.rpartition(".")[2] not in REPORTING:
                constants[path] = value
        first = next((t for t in tensors.values() if t.dim() > 0), None)
        if first is None:
            raise Unsupported("its inputs hold no tensor with a batch dimension")
        size = first.shape[0]
        length, spans = _padding(tensors.get("attention_mask"), tensors, size)
        return Call(args, kwargs, tensors, constants, size, length, spans, self.names)


def _walk(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if value is None:
            continue
        if isinstance(value, (Tensor, bool, int, float, str, bytes, torch.dtype, torch.device)):
            yield path, value
        elif isinstance(value, Mapping):
            yield from _walk({str(k): v for k, v in value.items()}, f"{path}.")
        elif isinstance(value, (list, tuple)):
            yield from _walk({str(i): v for i, v in enumerate(value)}, f"{path}.")
        elif path.rpartition(".")[2] not in REPORTING:
            raise Unsupported(f"its input {path!r} is a {type(value).__name__}, which has no content to key it by")


def _padding(mask: Tensor | None, tensors: Mapping[str, Tensor], size: int) -> tuple[int, list[tuple[int, int]]]:
    tokens = next((tensors[n] for n in ("input_ids", "inputs_embeds") if n in tensors), None)
    if mask is None or mask.dim() != 2 or tokens is None or mask.shape != tokens.shape[:2] or mask.shape[0] != size:
        return 0, []
    real = (mask.detach() != 0).cpu().numpy()
    length = real.shape[1]
    if real.all():
        return length, [(0, length)] * size
    starts, stops = real.argmax(axis=1), length - real[:, ::-1].argmax(axis=1)
    empty = ~real.any(axis=1)
    starts[empty], stops[empty] = 0, length
    return length, list(zip(starts.tolist(), stops.tolist(), strict=True))


def keys_in_batch(keys: Sequence[bytes]) -> list[bytes]:
    """Return keys that are found only in the same batch: the same samples in the same order.

    Args:
        keys: The keys of its samples.
    """
    batch = new_hash()
    batch.update(b"".join(keys))
    found = []
    for number in range(len(keys)):
        entry = batch.copy()
        entry.update(b"@%d" % number)
        found.append(entry.digest())
    return found


def hash_of(tensor: Tensor) -> bytes:
    """Return a hash of the content of a tensor. Hashing releases the GIL."""
    entry = new_hash()
    entry.update(bytes_of(tensor.reshape(1, -1)))
    return bytes(entry.digest())


def bytes_of(tensor: Tensor) -> np.ndarray:
    """Return the content of a tensor as one row of bytes for each sample."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    rows = tensor.shape[0]
    return tensor.reshape(rows, -1).view(torch.uint8).numpy() if tensor.numel() else np.zeros((rows, 0), np.uint8)
