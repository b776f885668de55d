"""What a prefix is, as a key: its weights, its structure, and everything else that its arithmetic depends on."""

from __future__ import annotations

import contextlib
import inspect
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.keys import bytes_of, hash_of, new_hash
from lightning_freeze.cache.identity.values import version_of

#: Counts up when entries of an older version of this package must not be read any more.
FORMAT = 1
_SAMPLES = 256
#: Elements of a weight that are hashed in one piece.
_PART = 2**22
#: Reading all weights again may take this share of the time, but for the first few hundredths of a second.
_SHARE, _FREE = 0.01, 0.05
#: Settings that concern the head; some models write them in their first forward pass.
_HEAD_SETTINGS = (
    "_name",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "output_",
    "return_dict",
    "architectures",
)


#: Where the weights of a step are looked up by name, and the buffers of its modules.
_Watched = tuple[list[tuple[Mapping[str, Tensor | None], str]], list[Mapping[str, Tensor | None]]]


class Fingerprint:
    """The identity of every possible prefix of one tower, computed when asked for.

    Args:
        tower: The tower.
    """

    def __init__(self, tower: CachedTower) -> None:
        self._tower = tower
        self._digests: list[bytes] = []
        self._weights: list[_Watched] = []
        self._watched: tuple[Any, ...] = ()
        self._sampled: bytes = b""
        self._seconds = 0.0
        self._read = 0.0

    def of(self, boundary: int, extra: str) -> bytes:
        """The 16-byte identity of the prefix that ends with block ``boundary - 1``.

        Args:
            boundary: Number of blocks in the prefix.
            extra: Whatever else the hidden states depend on, or how they are stored.
        """
        watched = self._watch(boundary)
        if watched != self._watched[: len(watched)]:
            self.forget()
            self._watched = watched
        if len(self._digests) <= boundary:
            began = time.perf_counter()
            with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
                while len(self._digests) <= boundary:
                    self._digests.append(self._step(len(self._digests), threads))
            self._read = time.perf_counter()
            self._seconds = self._read - began
        entry = new_hash()
        entry.update(self._digests[boundary])
        entry.update(extra.encode())
        return bytes(entry.digest())

    def look_again(self, thorough: bool, boundary: int) -> None:
        """Notice weights that were changed behind the back of their version counters.

        Args:
            thorough: Whether to read all of them again, or some elements of each. Where that was done a short while
                ago and takes long, some elements have to do.
            boundary: Number of blocks that count.
        """
        sampled = self._sample(boundary)
        is_due = _SHARE * (time.perf_counter() - self._read) >= self._seconds - _FREE
        if (thorough and is_due) or sampled != self._sampled:
            self.forget()
        self._sampled = sampled

    def forget(self) -> None:
        """Compute everything anew when it is asked for next."""
        self._digests, self._watched, self._weights = [], (), []

    def _watch(self, boundary: int) -> tuple[Any, ...]:
        """Version and place of every weight: what changes when somebody writes to one in the usual way."""
        if len(self._weights) <= boundary:
            owners = self._owners()
            for step in range(len(self._weights), boundary + 1):
                weights = [place for _, t in self._state(step) for place in owners.get(id(t), [({"": t}, "")])]
                inside = [module for root in self._roots(step) for module in root.modules()]
                # A buffer may be registered later, or stop being there.
                owning = inside if step else [*inside, *self._tower.around()]
                names: list[Mapping[str, Tensor | None]] = [module._buffers for module in owning]
                self._weights.append((weights, names))
        return tuple(map(_state_of, self._weights[: boundary + 1]))

    def _owners(self) -> dict[int, list[tuple[Mapping[str, Tensor | None], str]]]:
        """Where each weight is looked up by name, in one module or in several: another one may be put there."""
        found: dict[int, list[tuple[Mapping[str, Tensor | None], str]]] = {}
        for module in self._tower.entry.modules():
            for parts in (module._parameters, module._buffers):
                for name, tensor in parts.items():
                    found.setdefault(id(tensor), []).append((parts, name))
        return found

    def _sample(self, boundary: int) -> bytes:
        entry = new_hash()
        for step in range(boundary + 1):
            for _, tensor in self._state(step):
                flat = tensor.detach().reshape(1, -1)
                entry.update(bytes_of(flat[:, :: max(1, flat.numel() // _SAMPLES)]))
        return bytes(entry.digest())

    def _step(self, step: int, threads: ThreadPoolExecutor) -> bytes:
        entry = new_hash()
        if step:
            entry.update(self._digests[step - 1])
        else:
            entry.update(
                f"format {FORMAT}, torch {torch.__version__}, transformers {transformers.__version__}".encode()
            )
            entry.update(_settings(self._tower.entry).encode())
        for text in self._code(step):
            entry.update(text.encode())
        state = self._state(step)
        # Copied to the CPU here: a thread of its own would not wait for what the device is still to do.
        parts = [tensor.detach().cpu().reshape(-1).split(_PART) for _, tensor in state]
        contents = threads.map(hash_of, [part for some in parts for part in some])
        for (name, tensor), some in zip(state, parts, strict=True):
            entry.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            entry.update(b"".join(next(contents) for _ in some))
        return bytes(entry.digest())

    def _roots(self, step: int) -> list[nn.Module]:
        return [self._tower.blocks[step - 1]] if step else self._tower.stems

    def _state(self, step: int) -> list[tuple[str, Tensor]]:
        """Parameters and buffers of a step, by names that do not depend on what is built around the tower."""
        found: dict[int, tuple[str, Tensor]] = {}
        for number, root in enumerate(self._roots(step)):
            for name, tensor in (*root.named_parameters(), *root.named_buffers()):
                found.setdefault(id(tensor), (f"{number}.{name}", tensor))
        for number, parameter in enumerate(self._tower.steps[step]):
            found.setdefault(id(parameter), (f"own {number}", parameter))
        if step == 0:
            for name, tensor in (*self._loose_buffers(), *self._loose_parameters()):
                found.setdefault(id(tensor), (name, tensor))
        return list(found.values())

    def _loose_buffers(self) -> Iterable[tuple[str, Tensor]]:
        """Buffers of the entry outside of blocks and stems, such as rotary frequencies; not those of a head."""
        inside = {id(m) for root in (*self._tower.stems, *self._tower.blocks) for m in root.modules()}
        early = {id(p) for p in self._tower.steps[0]}
        for name, module in self._tower.entry.named_modules():
            own = {id(p) for p in module._parameters.values() if p is not None}
            if id(module) not in inside and (not own or own & early):
                yield from ((f"{name}.{key}", b) for key, b in module._buffers.items() if b is not None)

    def _loose_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Frozen parameters of the modules around the blocks that count as the head's: they may act between blocks."""
        known = {id(p) for step in self._tower.steps for p in step}
        for number, module in enumerate(self._tower.around()):
            for name, p in module._parameters.items():
                if p is not None and not p.requires_grad and id(p) not in known:
                    yield f"around {number}.{name}", p

    def _code(self, step: int) -> Sequence[str]:
        roots = self._roots(step)
        texts = [repr(root) for root in roots]
        classes: dict[type, None] = dict.fromkeys(type(m) for root in roots for m in root.modules())
        if step == 0:
            classes[type(self._tower.entry)] = None
        return [*texts, *(_source(cls) for cls in classes)]


def _state_of(watched: _Watched) -> tuple[Any, ...]:
    weights, names = watched
    found = (parts.get(name) for parts, name in weights)
    return (
        *(None if t is None else (version_of(t), t.data_ptr()) for t in found),
        *((name, buffer is None) for buffers in names for name, buffer in buffers.items()),
    )


def surroundings(device: torch.device) -> str:
    """What the arithmetic of a forward pass depends on besides weights and inputs.

    Args:
        device: Where the pass runs.
    """
    kind = device.type
    autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "off"
    return f"{kind}, autocast {autocast}, float32 {_float32_precision(kind)}"


def _float32_precision(kind: str) -> str:
    """How products of float32 are computed; where the newer settings are used, asking for the older ones fails."""
    backends = torch.backends
    owner = backends.cudnn if kind == "cuda" else backends.mkldnn
    places: list[Any] = [backends, backends.cuda.matmul if kind == "cuda" else getattr(owner, "matmul", None)]
    places += [getattr(owner, "conv", None), owner if kind == "cuda" else None]
    found = [str(getattr(place, "fp32_precision", "")) for place in places]
    with contextlib.suppress(RuntimeError):
        found.append(torch.get_float32_matmul_precision())
    return " ".join(filter(None, found))


def _settings(module: nn.Module) -> str:
    config = getattr(module, "config", None)
    to_dict = getattr(config, "to_dict", None)
    if not callable(to_dict):
        return ""
    settings = {k: v for k, v in to_dict().items() if not k.startswith(_HEAD_SETTINGS)}
    settings["attention"] = getattr(config, "_attn_implementation", None)
    return json.dumps(settings, sort_keys=True, default=str)


@lru_cache(maxsize=1024)
def _source(cls: type) -> str:
    """The code of a class that is nobody's release: an edited ``forward`` must not read what the old one wrote."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__.startswith(("torch.", "transformers.")):
        return name
    try:
        return name + inspect.getsource(cls)
    except (OSError, TypeError):
        return name
