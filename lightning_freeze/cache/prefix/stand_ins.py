"""Stand-ins for the first blocks of a tower, which return their output without computing it.

Masks, positions and everything else around the blocks are still made by the model's own code. The last skipped block
returns the stored hidden states. The other skipped blocks and the embeddings return NaN: if anything reads them, NaN
reaches the output of the model, even through a gate that is still zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.unsupported import Unsupported, reason_of
from lightning_freeze.cache.prefix.block_signature import BlockSignature, ShapeOutputs, options_in, signature_of
from lightning_freeze.distributed.sharding import drop_prefetched, end_interrupted_forward


class NanBuffer:
    """NaN in the shape of hidden states, which skipped layers return. All passes share one piece of memory."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def like(self, hidden: Tensor) -> Tensor:
        """Return NaN of the same shape, dtype and device as some hidden states."""
        if not hidden.is_contiguous():
            return torch.full_like(hidden, torch.nan, requires_grad=False)
        size, flat = hidden.numel(), self._flat
        if flat.numel() < size or flat.dtype != hidden.dtype or flat.device != hidden.device:
            with torch.inference_mode(False):  # training passes use the same memory
                self._flat = torch.full((size,), torch.nan, dtype=hidden.dtype, device=hidden.device)
        return self._flat[:size].view(hidden.shape)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any], name: str = "forward") -> Iterator[None]:
    """Replace the ``forward`` of one module until exit, or another method."""
    before = _replace(module, forward, name)
    try:
        yield
    finally:
        _restore(module, before, name)


def _replace(module: nn.Module, forward: Callable[..., Any], name: str) -> Any:
    """Replace a method of one module, and return what it had in its place; ``None`` for that of its class."""
    # Written past `nn.Module.__setattr__`, which takes longer than the stand-in itself.
    own = vars(module)
    before, own[name] = own.get(name), forward
    return before


def _restore(module: nn.Module, before: Any, name: str) -> None:
    if before is None:
        vars(module).pop(name, None)
    else:
        vars(module)[name] = before


def replaced_method(block: nn.Module, is_sharded: bool) -> str:
    """Return the method that a stand-in replaces: ``forward``, or the whole call with the hooks around it.

    The hooks of a sharded module gather its weights and redistribute its inputs and outputs. A skipped block needs
    neither. PyTorch has no public name for a call with its hooks.
    """
    return "_call_impl" if is_sharded else "forward"


class SkippedBlocks(ExitStack):
    """Replaces the first blocks of a tower by stand-ins while it is open.

    Args:
        tower: The tower.
        signatures: The signatures of its blocks.
        boundary: Number of blocks to skip.
        hidden: What the last of them returns.
        embedding_modules: Modules before the blocks to skip as well.
        nan_buffer: Makes what the other blocks return.
        shape_outputs: What blocks of this prefix have computed from shapes alone, in earlier passes; updated.

    Attributes:
        reached_boundary: Whether the last skipped block was called, as it must be.
        was_called_differently: Whether a block was called with other options than when its signature was learned, or
            has failed.
    """

    def __init__(
        self,
        tower: CachedTower,
        signatures: Sequence[BlockSignature],
        boundary: int,
        hidden: Tensor,
        embedding_modules: Sequence[nn.Module] = (),
        nan_buffer: NanBuffer | None = None,
        shape_outputs: ShapeOutputs | None = None,
    ) -> None:
        super().__init__()
        self.reached_boundary = self.was_called_differently = False
        self._is_sharded = tower.is_sharded
        self._shape_outputs = {} if shape_outputs is None else shape_outputs
        nan = (nan_buffer or NanBuffer()).like(hidden)
        stand_ins = [(module, self._embedding_stand_in(module.forward, nan), "forward") for module in embedding_modules]
        for number, block in enumerate(tower.blocks[:boundary]):
            is_last = number == boundary - 1
            method = replaced_method(block, tower.is_sharded)
            run = getattr(block, method)
            stand_in = self._stand_in(number, run, signatures[number], hidden if is_last else nan, is_last)
            stand_ins.append((block, stand_in, method))
        for module, stand_in, method in stand_ins:  # nothing is replaced if one of them cannot be made
            self.callback(_restore, module, _replace(module, stand_in, method), method)
        if tower.is_sharded:
            for block in tower.blocks[:boundary]:
                self.callback(drop_prefetched, block)

    def _embedding_stand_in(self, run: Callable[..., Any], nan: Tensor) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            # An output that is not computed for each sample may have had as many rows as samples by chance.
            given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim())
            return nan if any(value.shape[0] == nan.shape[0] for value in given) else run(*args, **kwargs)

        return forward

    def _stand_in(
        self, number: int, run: Callable[..., Any], signature: BlockSignature, value: Tensor, is_last: bool
    ) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.reached_boundary = self.reached_boundary or is_last
            if self._is_sharded:
                return self._in_lockstep(signature, value, args, kwargs, run)
            if any(isinstance(part, Tensor) and part.is_nested for part in (*args, *kwargs.values())):
                # What follows needs nested tensors too. The pass ends with what real blocks return, and is run again.
                self.was_called_differently = True
                self.close()
                return run(*args, **kwargs)
            if signature.options == options_in(args, kwargs):
                with suppress(Exception):
                    return signature.build(value, args, kwargs, run, self._shape_outputs.setdefault(number, {}))
            # The output may have another signature now. It is computed from NaN, and the pass will be computed again.
            self.was_called_differently = True
            with suppress(Exception):
                return run(*args, **kwargs)
            return signature.blank(value)

        return forward

    def _in_lockstep(
        self, signature: BlockSignature, value: Tensor, args: Any, kwargs: dict[str, Any], run: Callable[..., Any]
    ) -> Any:
        """Do the same such that all ranks run the block, or none: nothing that was computed before is used."""
        if signature.options == options_in(args, kwargs):
            with suppress(Exception):
                return signature.build(value, args, kwargs, run, {})
        self.was_called_differently = True
        return signature.blank(value)


class _BoundaryReached(Exception):
    """A forward pass has reached the boundary, and nothing above it is needed."""


class BlockRecorder(ExitStack):
    """Learns the signatures of blocks and records hidden states at boundaries while a tower runs for real.

    Args:
        tower: The tower.
        boundaries: Numbers of blocks after which hidden states are recorded.
        signatures: The signatures of the blocks; ``None`` to learn them.
        at_boundary: Called with a boundary and the hidden states there; may return others to continue with.
        embedding_modules: Modules before the blocks whose outputs are recorded.

    Attributes:
        signatures: The signature of each block that has run.
        problem: Why a signature could not be learned, ``None`` if there was no problem.
        embedding_modules: What each of those modules returned.
    """

    def __init__(
        self,
        tower: CachedTower,
        boundaries: Sequence[int],
        signatures: Sequence[BlockSignature] | None,
        at_boundary: Callable[[int, Tensor], Tensor | None],
        embedding_modules: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.signatures: list[BlockSignature | None] = list(signatures) if signatures else [None] * len(tower.blocks)
        self.problem: str | None = None
        self.embedding_modules: dict[nn.Module, Any] = {}
        self._at_boundary = at_boundary
        for number, block in enumerate(tower.blocks):
            if not signatures or number + 1 in boundaries:
                method = replaced_method(block, tower.is_sharded)
                observer = self._observer(number, getattr(block, method), number + 1 in boundaries)
                self.enter_context(replaced_forward(block, observer, method))
        for module in embedding_modules:
            self.enter_context(replaced_forward(module, self._embedding_observer(module, module.forward)))

    def _observer(self, number: int, run: Callable[..., Any], is_boundary: bool) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            try:
                signature = self.signatures[number]
                if signature is None:
                    signature = self.signatures[number] = signature_of(f"block {number}", args, kwargs, output)
                hidden = signature.hidden_in(output)
                other = self._at_boundary(number + 1, hidden) if is_boundary else None
            except _BoundaryReached:
                raise
            except Exception as problem:
                self.problem = self.problem or reason_of(problem)
                return output
            if other is None:
                return output
            return other if signature.kind is Tensor else signature.kind([other, *output[1:]])

        return forward

    def _embedding_observer(self, module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.embedding_modules[module] = run(*args, **kwargs)
            return self.embedding_modules[module]

        return forward


def run_prefix(
    tower: CachedTower, signatures: Sequence[BlockSignature], boundaries: Sequence[int], call: tuple[Any, Any]
) -> dict[int, Tensor]:
    """Compute the hidden states at boundaries, and nothing above the highest one.

    Args:
        tower: The tower.
        signatures: The signatures of its blocks.
        boundaries: Numbers of blocks after which hidden states are returned.
        call: Positional and named arguments of the tower's entry.

    Raises:
        Unsupported: If the call does not reach the highest boundary.
    """
    found: dict[int, Tensor] = {}

    def take(boundary: int, hidden: Tensor) -> None:
        found[boundary] = hidden
        if boundary == max(boundaries):
            raise _BoundaryReached
        found[boundary] = hidden.clone()  # the next block may change it in place

    with torch.no_grad(), BlockRecorder(tower, boundaries, signatures, take):
        try:
            tower.entry.forward(*call[0], **call[1])
        except _BoundaryReached:
            _end_interrupted(tower)
            return found
    raise Unsupported(f"{tower.entry_name or 'the module'} does not run its blocks in every call")


def run_until(tower: CachedTower, boundary: int | None, call: tuple[Any, Any]) -> Any:
    """Run a tower up to a boundary, without learning anything about its blocks.

    Args:
        tower: The tower.
        boundary: Number of blocks to run; ``None`` to run everything.
        call: Positional and named arguments of the tower's entry.

    Returns:
        What the last of these blocks returns; what the entry returns if everything runs.
    """
    if boundary is None:
        return tower.entry.forward(*call[0], **call[1])
    block = tower.blocks[boundary - 1]
    method = replaced_method(block, tower.is_sharded)
    run = getattr(block, method)
    output = None

    def last(*args: Any, **kwargs: Any) -> Any:
        nonlocal output
        output = run(*args, **kwargs)
        raise _BoundaryReached

    with replaced_forward(block, last, method), suppress(_BoundaryReached):
        output = tower.entry.forward(*call[0], **call[1])
    _end_interrupted(tower)
    return output


def _end_interrupted(tower: CachedTower) -> None:
    if tower.is_sharded:
        end_interrupted_forward(tower.entry)
