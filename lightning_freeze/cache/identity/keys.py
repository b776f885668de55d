"""From the arguments of a forward call to one content key for each sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_freeze.errors import ConfigurationError

#: Arguments with one entry for each token, from which the entries of padding may be left out.
TOKENWISE = frozenset({"input_ids", "inputs_embeds", "token_type_ids", "position_ids", "attention_mask"})
#: Arguments that say what the call returns, not what the hidden states are.
REPORTING = frozenset({"return_dict", "use_cache", "output_attentions", "output_hidden_states", "num_items_in_batch"})


class Unsupported(Exception):
    """The prefix cannot be cached; the message completes the sentence "switched off: ..."."""


def reason_of(error: Exception) -> str:
    """An error as the end of the sentence "switched off: ...": nothing that goes wrong in the cache may end a run."""
    if isinstance(error, Unsupported):
        return str(error)
    return f"{type(error).__name__} while its frozen layers were looked at: {' '.join(str(error).split())[:300]}"


def new_hash() -> Any:
    """An empty 128-bit xxHash.

    Raises:
        ConfigurationError: If xxhash is not installed.
    """
    try:
        import xxhash
    except ImportError as error:
        raise ConfigurationError(
            "FrozenPrefixCache needs xxhash, which is not installed: expected `pip install 'lightning-freeze[cache]'`."
        ) from error
    return xxhash.xxh3_128()


@dataclass
class Call:
    """The arguments of one forward call, seen sample by sample.

    Attributes:
        args: Positional arguments as they were passed.
        kwargs: Named arguments as they were passed.
        leaves: Path to every tensor among the arguments.
        plain: Path to every other argument that may change what is computed.
        size: Number of samples.
        length: Number of positions of the token-wise arguments, 0 if there is no mask that says what is padding.
        spans: For each sample the first position that is no padding, and the one behind the last.
        signature: Names of the positional parameters of the module's ``forward``.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: dict[str, Tensor]
    plain: dict[str, Any]
    size: int
    length: int
    spans: list[tuple[int, int]]
    signature: Sequence[str]

    @property
    def has_padding(self) -> bool:
        """Whether any position of any sample is padding."""
        return any(stop - start < self.length for start, stop in self.spans)

    def keys(self, trimmed: bool, origin: Callable[[Tensor], Sequence[bytes] | None]) -> list[bytes]:
        """The 16-byte key of each sample.

        Args:
            trimmed: Whether padding is left out; a sample without padding has the same key either way.
            origin: Gives the keys of the samples that a tensor was computed from, where they are known, so that it need
                not be read.
        """
        common = new_hash()
        for name, value in sorted(self.plain.items()):
            common.update(f"{name}={type(value).__name__}:{value!r};".encode())
        columns: list[tuple[bytes, np.ndarray | Sequence[bytes], int]] = []
        for name, tensor in sorted(self.leaves.items()):
            known = origin(tensor)
            if known is not None and len(known) == self.size:
                columns.append((f"{name}<-".encode(), known, 0))
            elif self.is_per_sample(tensor):
                each = int(np.prod(tensor.shape[2:], dtype=int)) * tensor.element_size() if tensor.dim() > 1 else 0
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
            whole = not trimmed and bool(self.spans) and stop - start < self.length
            if self.spans:
                entry.update(b"@%d+%d" % (start, stop - start))
            if whole:
                entry.update(b"padded to %d" % self.length)
            for title, column, each in columns:
                entry.update(title)
                value = column[row]
                entry.update(value[start * each : stop * each] if each and not whole else value)
            keys.append(entry.digest())
        return keys

    @property
    def per_sample(self) -> frozenset[str]:
        """The arguments that have an entry for each sample."""
        return frozenset(name for name, tensor in self.leaves.items() if self.is_per_sample(tensor))

    def agrees(self, per_sample: frozenset[str]) -> bool:
        """Whether the arguments have the samples where they had them before, sizes that coincide aside."""
        own = self.per_sample
        return self.size == 1 or all((name in own) == (name in per_sample) for name in self.leaves)

    def is_per_sample(self, tensor: Tensor) -> bool:
        """Whether the first dimension of an argument counts the samples."""
        if tensor.dim() == 0 or tensor.shape[0] != self.size:
            return False
        first = next(iter(self.leaves.values()))
        # A vector as long as the batch may as well count the positions, if there are as many of them.
        return tensor.dim() > 1 or first.dim() < 2 or first.shape[1] != self.size

    def only(self, rows: Sequence[int], stop: int | None = None) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The arguments of the same call with some of the samples.

        Args:
            rows: Which samples.
            stop: Leave out the positions from here on; ``None`` keeps all.

        Returns:
            Positional and named arguments, or ``None`` if samples or positions cannot be left out of them.
        """
        index = torch.as_tensor(rows)

        def take(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                if self.is_per_sample(value):
                    value = value.index_select(0, index.to(value.device))
                elif (stop is not None and self.length in value.shape) or value.shape[:1] == (self.size,):
                    raise _NotDivisible  # it counts positions, or may as well count the samples
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

    def part(self, rows: Sequence[int]) -> Call | None:
        """The same call with some of the samples, ``None`` if they cannot be told apart."""
        cut = self.only(rows)
        if cut is None:
            return None
        leaves = {name: t[list(rows)] if self.is_per_sample(t) else t for name, t in self.leaves.items()}
        spans = [self.spans[row] for row in rows] if self.spans else []
        return replace(self, args=cut[0], kwargs=cut[1], leaves=leaves, size=len(rows), spans=spans)


class _NotDivisible(Exception):
    """An argument has samples or positions that cannot be left out."""


class CallReader:
    """Reads calls of one module.

    Args:
        module: The module whose ``forward`` is called.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = inspect.signature(module.forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.names = [p.name for p in parameters if p.kind in kinds]

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments of a call by name; those without one by position."""
        return {**{(self.names[i] if i < len(self.names) else str(i)): v for i, v in enumerate(args)}, **kwargs}

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """See the arguments of one call sample by sample.

        Raises:
            Unsupported: If there is no tensor among them, or something that cannot be keyed by its content.
        """
        leaves: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for path, value in _walk(self.named(args, kwargs)):
            if isinstance(value, Tensor):
                leaves[path] = value
            elif path.rpartition(".")[2] not in REPORTING:
                plain[path] = value
        first = next((t for t in leaves.values() if t.dim() > 0), None)
        if first is None:
            raise Unsupported("its inputs hold no tensor with a batch dimension")
        size = first.shape[0]
        length, spans = _padding(leaves.get("attention_mask"), leaves, size)
        return Call(args, kwargs, leaves, plain, size, length, spans, self.names)


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


def _padding(mask: Tensor | None, leaves: Mapping[str, Tensor], size: int) -> tuple[int, list[tuple[int, int]]]:
    tokens = next((leaves[n] for n in ("input_ids", "inputs_embeds") if n in leaves), None)
    if mask is None or mask.dim() != 2 or tokens is None or mask.shape != tokens.shape[:2] or mask.shape[0] != size:
        return 0, []
    real = (mask.detach() != 0).cpu().numpy()
    length = real.shape[1]
    starts = real.argmax(axis=1)
    stops = length - real[:, ::-1].argmax(axis=1)
    empty = ~real.any(axis=1)
    starts[empty], stops[empty] = 0, length
    return length, list(zip(starts.tolist(), stops.tolist(), strict=True))


def hash_of(tensor: Tensor) -> bytes:
    """A hash of the content of a tensor; other threads go on meanwhile."""
    entry = new_hash()
    entry.update(bytes_of(tensor.reshape(1, -1)))
    return bytes(entry.digest())


def bytes_of(tensor: Tensor) -> np.ndarray:
    """The content of a tensor as one row of bytes for each sample."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    rows = tensor.shape[0]
    return tensor.reshape(rows, -1).view(torch.uint8).numpy() if tensor.numel() else np.zeros((rows, 0), np.uint8)
