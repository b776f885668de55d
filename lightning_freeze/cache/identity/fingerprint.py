"""The identity of a prefix: a hash of its weights, its structure, its code and its configuration."""

from __future__ import annotations

import contextlib
import inspect
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import Parameter

from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.keys import bytes_of, hash_of, new_hash
from lightning_freeze.cache.identity.module_settings import HEAD_SETTINGS
from lightning_freeze.cache.identity.values import version_of
from lightning_freeze.distributed.sharding import local, unsharded_class, whole

#: Increased when entries of an older version of this package must not be read any more.
FORMAT = 2
#: Elements of a weight that are read in a quick check.
_SAMPLES = 256
#: Elements of a weight that one thread hashes at a time.
_PART = 2**22
#: Reading all weights again may take this share of the time. The first seconds of each reading do not count.
_MAX_SHARE, _FREE_SECONDS = 0.01, 0.05
#: Types of tensors that are not sharded, and their version counter.
_USUAL, _VERSION = frozenset({Tensor, Parameter}), attrgetter("_version")
#: Where the weights of a step are found by name, and the buffers of its modules.
_Places = tuple[list[tuple[Mapping[str, Tensor | None], str]], list[Mapping[str, Tensor | None]]]


class Fingerprint:
    """Computes the identity of any prefix of one tower.

    Args:
        tower: The tower.

    Attributes:
        changed: The module and the name of a weight that was written to or replaced, ``None`` if none was.
    """

    def __init__(self, tower: CachedTower) -> None:
        self.changed: tuple[nn.Module, str] | None = None
        self._tower = tower
        self._digests: list[bytes] = []
        self._places: list[_Places] = []
        self._versions: tuple[Any, ...] = ()
        self._sampled: bytes = b""
        self._read_seconds = 0.0
        self._read_at = 0.0
        # Those that are exchanged for gathered ones in each forward pass.
        self._sharded: dict[tuple[int, str], Parameter] | None = None
        if tower.gathers:
            self._sharded = {
                (id(m), name): p for m in tower.entry.modules() for name, p in m._parameters.items() if p is not None
            }

    def is_known(self, boundary: int) -> bool:
        """Whether the identity of a prefix is known and still right, so that no weights need to be read.

        Args:
            boundary: Number of blocks in the prefix.
        """
        versions = self._read_versions(boundary)
        return versions == self._versions[: len(versions)] and len(self._digests) > boundary

    def of(self, boundary: int, extra: str) -> bytes:
        """Return the 16-byte identity of the prefix that ends with block ``boundary - 1``.

        Args:
            boundary: Number of blocks in the prefix.
            extra: Everything else that the stored hidden states depend on.

        If the module is sharded and :meth:`is_known` is false on any rank, it must be called on all ranks, each of
        which has called :meth:`invalidate`.
        """
        versions = self._read_versions(boundary)
        if versions != self._versions[: len(versions)]:
            self.changed = self._find_changed(versions) or self.changed
            self.invalidate()
            self._versions = versions
        if len(self._digests) <= boundary:
            began = time.perf_counter()
            with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
                while len(self._digests) <= boundary:
                    self._digests.append(self._step(len(self._digests), threads))
            self._read_at = time.perf_counter()
            self._read_seconds = self._read_at - began
        entry = new_hash()
        entry.update(self._digests[boundary])
        entry.update(extra.encode())
        return bytes(entry.digest())

    def recheck(self, thorough: bool, boundary: int) -> None:
        """Check for weights that have changed although their version counters have not.

        Args:
            thorough: Whether to read all weights again, or some elements of each. If reading all of them takes long
                and was done a short time ago, some elements are read in any case.
            boundary: Number of blocks to check.
        """
        sampled = self._sampled_elements(boundary)
        is_due = _MAX_SHARE * (time.perf_counter() - self._read_at) >= self._read_seconds - _FREE_SECONDS
        if (thorough and is_due) or sampled != self._sampled:
            self.changed = self._find_changed(self._read_versions(boundary)) or self.changed
            self.invalidate()
        self._sampled = sampled

    @contextlib.contextmanager
    def moving_weights(self) -> Iterator[None]:
        """While this is open, weights get another place in memory and keep their elements."""
        seen = max(0, len(self._versions) - 1)
        is_current = bool(self._versions) and self._read_versions(seen)[: seen + 1] == self._versions
        try:
            yield
        finally:  # after an error, some weights have moved
            if is_current:
                self._versions = self._read_versions(seen)

    def invalidate(self) -> None:
        """Compute all identities again when they are needed next."""
        self._digests, self._versions, self._places = [], (), []

    def _find_changed(self, versions: tuple[Any, ...]) -> tuple[nn.Module, str] | None:
        """Return a weight whose version or address differs from that of the latest pass."""
        for (weights, _), now, before in zip(self._places, versions, self._versions, strict=False):
            for (parts, name), one, other in zip(weights, now, before, strict=False):
                if one != other:
                    owners = self._tower.entry.modules()
                    owner = next((m for m in owners if m._parameters is parts or m._buffers is parts), None)
                    return None if owner is None else (owner, name)
        return None

    def _read_versions(self, boundary: int) -> tuple[Any, ...]:
        """Return version and address of every weight, which show an ordinary write or a replacement."""
        if len(self._places) <= boundary:
            owners = self._owners()
            for step in range(len(self._places), boundary + 1):
                weights = [place for _, t in self._state(step) for place in owners.get(id(t), [({"": t}, "")])]
                if self._sharded is not None:
                    weights = [({"": t}, "") for _, t in self._state(step)]
                inside = [module for root in self._roots(step) for module in root.modules()]
                # A buffer may be registered or removed later.
                owning = inside if step else [*inside, *self._tower.enclosing_modules()]
                names: list[Mapping[str, Tensor | None]] = [module._buffers for module in owning]
                self._places.append((weights, names))
        return tuple(map(_versions_of, self._places[: boundary + 1]))

    def _owners(self) -> dict[int, list[tuple[Mapping[str, Tensor | None], str]]]:
        """Return where each weight is registered, in one module or several, to notice when it is replaced."""
        found: dict[int, list[tuple[Mapping[str, Tensor | None], str]]] = {}
        for module in self._tower.entry.modules():
            for parts in (module._parameters, module._buffers):
                for name, tensor in parts.items():
                    found.setdefault(id(tensor), []).append((parts, name))
        return found

    def _sampled_elements(self, boundary: int) -> bytes:
        entry = new_hash()
        for step in range(boundary + 1):
            for _, tensor in self._state(step):
                flat = local(tensor).detach().reshape(1, -1)
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
            entry.update(self._tower.computation.encode())
        for text in self._code(step):
            entry.update(text.encode())
        state = self._state(step)
        # Copied to the CPU in this thread: another thread would not wait for pending work on the device.
        parts = [whole(tensor).detach().cpu().reshape(-1).split(_PART) for _, tensor in state]
        contents = threads.map(hash_of, [part for some in parts for part in some])
        for (name, tensor), some in zip(state, parts, strict=True):
            entry.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            entry.update(b"".join(next(contents) for _ in some))
        return bytes(entry.digest())

    def _roots(self, step: int) -> list[nn.Module]:
        return [self._tower.blocks[step - 1]] if step else self._tower.embedding_modules

    def _state(self, step: int) -> list[tuple[str, Tensor]]:
        """Return parameters and buffers of a step, by names that do not depend on the modules around the tower."""
        found: dict[int, tuple[str, Tensor]] = {}
        for number, root in enumerate(self._roots(step)):
            for name, tensor in (*self._named_parameters(root), *root.named_buffers()):
                found.setdefault(id(tensor), (f"{number}.{name}", tensor))
        for number, parameter in enumerate(self._tower.steps[step]):
            found.setdefault(id(parameter), (f"own {number}", parameter))
        if step == 0:
            for name, tensor in (*self._surrounding_buffers(), *self._surrounding_parameters()):
                found.setdefault(id(tensor), (name, tensor))
        return list(found.values())

    def _parameters(self, module: nn.Module) -> Iterator[tuple[str, Parameter]]:
        """Yield the parameters of one module, those that are sharded rather than those that were gathered."""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield name, self._sharded.get((id(module), name), parameter) if self._sharded else parameter

    def _named_parameters(self, root: nn.Module) -> Iterator[tuple[str, Parameter]]:
        if self._sharded is None:
            yield from root.named_parameters()
            return
        for path, module in root.named_modules():
            yield from ((f"{path}.{name}" if path else name, p) for name, p in self._parameters(module))

    def _surrounding_buffers(self) -> Iterable[tuple[str, Tensor]]:
        """Yield buffers of the entry outside of blocks, embeddings and head, such as rotary frequencies."""
        inside = {id(m) for root in (*self._tower.embedding_modules, *self._tower.blocks) for m in root.modules()}
        early = {id(p) for p in self._tower.steps[0]}
        for name, module in self._tower.entry.named_modules():
            own = {id(p) for _, p in self._parameters(module)}
            if id(module) not in inside and (not own or own & early):
                yield from ((f"{name}.{key}", b) for key, b in module._buffers.items() if b is not None)

    def _surrounding_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Yield frozen parameters of the modules around the blocks, which may act between blocks."""
        known = {id(p) for step in self._tower.steps for p in step}
        for number, module in enumerate(self._tower.enclosing_modules()):
            for name, p in self._parameters(module):
                if not p.requires_grad and id(p) not in known:
                    yield f"around {number}.{name}", p

    def _code(self, step: int) -> Sequence[str]:
        roots = self._roots(step)
        texts = [repr(root) for root in roots]
        classes: dict[type, None] = dict.fromkeys(type(m) for root in roots for m in root.modules())
        if step == 0:
            classes[type(self._tower.entry)] = None
        for cls in classes:
            if unsharded_class(cls) is not cls:
                texts = [text.replace(f"{cls.__name__}(", f"{unsharded_class(cls).__name__}(") for text in texts]
        return [*texts, *dict.fromkeys(_source(unsharded_class(cls)) for cls in classes)]


def _versions_of(places: _Places) -> tuple[Any, ...]:
    weights, names = places
    found: list[Any] = [parts.get(name) for parts, name in weights]
    states: Iterable[Any] = map(_state_of, found)
    if _USUAL.issuperset(map(type, found)):
        # Without Python code for each weight: this runs in each forward pass.
        with contextlib.suppress(RuntimeError):  # inference tensors have no version
            states = list(zip(map(_VERSION, found), map(Tensor.data_ptr, found), strict=True))
    return (*states, *[(name, buffer is None) for buffers in names for name, buffer in buffers.items()])


def _state_of(tensor: Tensor | None) -> tuple[int, int] | None:
    return None if tensor is None else (version_of(own := local(tensor)), own.data_ptr())


def _settings(module: nn.Module) -> str:
    config = getattr(module, "config", None)
    to_dict = getattr(config, "to_dict", None)
    if not callable(to_dict):
        return ""
    settings = {k: v for k, v in to_dict().items() if not k.startswith(HEAD_SETTINGS)}
    settings["attention"] = getattr(config, "_attn_implementation", None)
    return json.dumps(settings, sort_keys=True, default=str)


@lru_cache(maxsize=1024)
def _source(cls: type) -> str:
    """Return the name of a class, and its source unless it belongs to torch or transformers.

    An edited ``forward`` must not read hidden states that the old version has stored.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__.startswith(("torch.", "transformers.")):
        return name
    try:
        return name + inspect.getsource(cls)
    except (OSError, TypeError):
        return name
