"""Leaving out the first blocks of a tower: stand-ins that return at once what the blocks would.

Masks, positions and everything else around the blocks are still made by the model's own code. The last skipped block
returns the hidden states that were stored, the others and the embeddings NaN: whatever reads them on the way shows it
in what the model returns, also where it is multiplied by a gate that is still zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.keys import Unsupported, reason_of
from lightning_freeze.cache.prefix.block_signature import BlockForm, Computed, form_of, options_of


class Nothing:
    """NaN in the shape of hidden states: what skipped layers return. One piece of memory serves all passes."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def like(self, hidden: Tensor) -> Tensor:
        """As many as there are in other hidden states, on their device."""
        if not hidden.is_contiguous():
            return torch.full_like(hidden, torch.nan, requires_grad=False)
        size, flat = hidden.numel(), self._flat
        if flat.numel() < size or flat.dtype != hidden.dtype or flat.device != hidden.device:
            with torch.inference_mode(False):  # training passes use it too
                self._flat = torch.full((size,), torch.nan, dtype=hidden.dtype, device=hidden.device)
        return self._flat[:size].view(hidden.shape)


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let another function be the ``forward`` of one module, for the time being."""
    # Written past `nn.Module.__setattr__`, which would spend more time on it than the stand-in itself.
    own = vars(module)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            own.pop("forward", None)
        else:
            own["forward"] = before


class Detour(ExitStack):
    """Open while a forward pass of a tower leaves out its first blocks.

    Args:
        tower: The tower.
        forms: The forms of its blocks.
        boundary: Number of blocks to leave out.
        hidden: What the last of them returns.
        stems: Modules before the blocks to leave out as well.
        nothing: Makes what the others return.
        computed: What blocks of this prefix have computed from shapes alone, in earlier passes.

    Attributes:
        reached: Whether the last skipped block was called, as it must be.
        is_strange: Whether a block was called with other options than when its form was learned.
    """

    def __init__(
        self,
        tower: CachedTower,
        forms: Sequence[BlockForm],
        boundary: int,
        hidden: Tensor,
        stems: Sequence[nn.Module] = (),
        nothing: Nothing | None = None,
        computed: Computed | None = None,
    ) -> None:
        super().__init__()
        self.reached = self.is_strange = False
        self._computed = {} if computed is None else computed
        nan = (nothing or Nothing()).like(hidden)
        for stem in stems:
            self.enter_context(replaced(stem, self._no_stem(stem.forward, nan)))
        for number, block in enumerate(tower.blocks[:boundary]):
            is_last = number == boundary - 1
            stand_in = self._stand_in(number, block.forward, forms[number], hidden if is_last else nan, is_last)
            self.enter_context(replaced(block, stand_in))

    def _no_stem(self, run: Callable[..., Any], nan: Tensor) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            # What is not computed for each sample may have had as many rows as there were samples, by chance.
            given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim())
            return nan if any(value.shape[0] == nan.shape[0] for value in given) else run(*args, **kwargs)

        return forward

    def _stand_in(
        self, number: int, run: Callable[..., Any], form: BlockForm, value: Tensor, is_last: bool
    ) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.reached = self.reached or is_last
            if form.options == options_of(args, kwargs):
                with suppress(Exception):
                    return form.build(value, args, kwargs, run, self._computed.setdefault(number, {}))
            # What it returns now may have another form. It comes from NaN, and the pass will be computed again.
            self.is_strange = True
            with suppress(Exception):
                return run(*args, **kwargs)
            return form.blank(value)

        return forward


class _Reached(Exception):
    """A forward pass has come to the boundary, and nothing above it is wanted."""


class Watch(ExitStack):
    """Open while a tower runs for real: learns the forms of its blocks and takes the hidden states at boundaries.

    Args:
        tower: The tower.
        boundaries: After how many blocks hidden states are wanted.
        forms: The forms of the blocks if they are known, otherwise they are learned.
        at_boundary: Called with a boundary and the hidden states there; may return others to go on with.
        stems: Modules before the blocks whose outputs are wanted.

    Attributes:
        forms: The form of each block that has run.
        problem: Why the forms cannot be told, if they cannot.
        stems: What each of those modules returned.
    """

    def __init__(
        self,
        tower: CachedTower,
        boundaries: Sequence[int],
        forms: Sequence[BlockForm] | None,
        at_boundary: Callable[[int, Tensor], Tensor | None],
        stems: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.forms: list[BlockForm | None] = list(forms) if forms else [None] * len(tower.blocks)
        self.problem: str | None = None
        self.stems: dict[nn.Module, Any] = {}
        self._at_boundary = at_boundary
        for number, block in enumerate(tower.blocks):
            if not forms or number + 1 in boundaries:
                self.enter_context(replaced(block, self._observer(number, block.forward, number + 1 in boundaries)))
        for stem in stems:
            self.enter_context(replaced(stem, self._stem_observer(stem, stem.forward)))

    def _observer(self, number: int, run: Callable[..., Any], is_boundary: bool) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            try:
                form = self.forms[number]
                if form is None:
                    form = self.forms[number] = form_of(f"block {number}", args, kwargs, output)
                hidden = form.returned(output)
                other = self._at_boundary(number + 1, hidden) if is_boundary else None
            except _Reached:
                raise
            except Exception as problem:
                self.problem = self.problem or reason_of(problem)
                return output
            if other is None:
                return output
            return other if form.kind is Tensor else form.kind([other, *output[1:]])

        return forward

    def _stem_observer(self, stem: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.stems[stem] = run(*args, **kwargs)
            return self.stems[stem]

        return forward


def run_prefix(
    tower: CachedTower, forms: Sequence[BlockForm], boundaries: Sequence[int], call: tuple[Any, Any]
) -> dict[int, Tensor]:
    """Compute the hidden states at boundaries, and nothing above the highest of them.

    Args:
        tower: The tower.
        forms: The forms of its blocks.
        boundaries: After how many blocks hidden states are wanted.
        call: Positional and named arguments of the tower's entry.

    Raises:
        Unsupported: If the call does not come to the highest boundary.
    """
    found: dict[int, Tensor] = {}

    def take(boundary: int, hidden: Tensor) -> None:
        found[boundary] = hidden
        if boundary == max(boundaries):
            raise _Reached
        found[boundary] = hidden.clone()  # the next block may change it in place

    with torch.no_grad(), Watch(tower, boundaries, forms, take):
        try:
            tower.entry.forward(*call[0], **call[1])
        except _Reached:
            return found
    raise Unsupported(f"{tower.entry_name or 'the module'} does not run its blocks in every call")
