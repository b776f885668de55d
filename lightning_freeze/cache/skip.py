"""Leaving out the first blocks of a tower: what each block takes and returns, and stand-ins that return it at once.

Masks, positions and everything else around the blocks are still made by the model's own code. The last skipped block
returns the hidden states that were stored, the others and the embeddings NaN: whatever reads them on the way shows it
in what the model returns, also where it is multiplied by a gate that is still zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_freeze.cache.keys import Unsupported
from lightning_freeze.cache.towers import CachedTower

Part = tuple[Literal["hidden", "constant", "argument", "row", "all", "withheld"], Any]


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


@dataclass
class BlockForm:
    """What one block takes and returns.

    Attributes:
        takes: Position or name of the argument that is the hidden states.
        kind: Type of what it returns; ``Tensor`` for the hidden states alone.
        parts: For each thing that it returns where it comes from: the hidden states, a constant, one of its arguments,
            something that it computes from shapes alone, for one row or for all, or something else, withheld.
    """

    takes: int | str
    kind: type
    parts: list[Part]

    @property
    def withholds(self) -> bool:
        """Whether a skipped block lacks something that the real one returns."""
        return any(source == "withheld" for source, _ in self.parts)

    def hidden(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The hidden states among the arguments of a call."""
        value: Tensor = args[self.takes] if isinstance(self.takes, int) else kwargs[self.takes]
        return value

    def returned(self, output: Any) -> Tensor:
        """The hidden states in what a call returned."""
        value: Tensor = output if self.kind is Tensor else output[0]
        return value

    def build(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[..., Any]) -> Any:
        """What a call would return if these were the hidden states that it computes.

        Args:
            hidden: The hidden states.
            args: Positional arguments of the call.
            kwargs: Named arguments of the call.
            run: The block's own ``forward``, for what depends on shapes alone.
        """
        if self.kind is Tensor:
            return hidden
        computed: Any = None
        values = []
        for source, detail in self.parts:
            if source in ("row", "all") and computed is None:
                some = slice(0, 1) if source == "row" else slice(None)
                rows = hidden.shape[0]
                few = [_some(value, some, rows) for value in args]
                with torch.no_grad():
                    computed = run(*few, **{key: _some(value, some, rows) for key, value in kwargs.items()})
            values.append(
                hidden
                if source == "hidden"
                else detail
                if source in ("constant", "withheld")
                else (args[detail] if isinstance(detail, int) else kwargs[detail])
                if source == "argument"
                else computed[detail]
            )
        return tuple(values) if self.kind is tuple else list(values)


def _some(value: Any, rows: slice, size: int) -> Any:
    return value[rows] if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == size else value


def form_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> BlockForm:
    """Learn the form of a block from one real call.

    Raises:
        Unsupported: If it returns something that cannot be told without running it.
    """
    takes: int | str | None = next((i for i, value in enumerate(args) if isinstance(value, Tensor)), None)
    if takes is None:
        named = [key for key, value in kwargs.items() if isinstance(value, Tensor)]
        takes = "hidden_states" if "hidden_states" in named else named[0] if named else None
    if takes is None:
        raise Unsupported(f"{name} is not called with hidden states")
    if isinstance(output, Tensor):
        return BlockForm(takes, Tensor, [])
    if type(output) not in (tuple, list) or not output or not isinstance(output[0], Tensor):
        raise Unsupported(f"{name} returns a {type(output).__name__}, expected hidden states or a tuple that begins so")
    hidden = output[0]
    arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    parts: list[Part] = [("hidden", None)]
    for position, value in enumerate(output[1:], start=1):
        same = next((key for key, argument in arguments if value is argument and value is not None), None)
        if same is not None:
            parts.append(("argument", same))
        elif value is None or isinstance(value, (bool, int, float, str)):
            parts.append(("constant", value))
        elif isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == 1:
            parts.append(("row" if hidden.shape[0] > 1 else "all", position))
        else:
            # Attention weights, for instance, that nobody has asked for. The rehearsal finds out whoever reads them.
            parts.append(("withheld", None))
    return BlockForm(takes, type(output), parts)


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

    Attributes:
        reached: Whether the last skipped block was called, as it must be.
    """

    def __init__(
        self,
        tower: CachedTower,
        forms: Sequence[BlockForm],
        boundary: int,
        hidden: Tensor,
        stems: Sequence[nn.Module] = (),
        nothing: Nothing | None = None,
    ) -> None:
        super().__init__()
        self.reached = False
        nan = (nothing or Nothing()).like(hidden)
        for stem in stems:
            self.enter_context(replaced(stem, lambda *args, **kwargs: nan))
        for number, block in enumerate(tower.blocks[:boundary]):
            is_last = number == boundary - 1
            stand_in = self._stand_in(block.forward, forms[number], hidden if is_last else nan, is_last)
            self.enter_context(replaced(block, stand_in))

    def _stand_in(self, run: Callable[..., Any], form: BlockForm, value: Tensor, is_last: bool) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.reached = self.reached or is_last
            return form.build(value, args, kwargs, run)

        return forward


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
            form = self.forms[number]
            if form is None:
                try:
                    form = self.forms[number] = form_of(f"block {number}", args, kwargs, output)
                except Unsupported as problem:
                    self.problem = self.problem or str(problem)
                    return output
            if not is_boundary:
                return output
            other = self._at_boundary(number + 1, form.returned(output))
            if other is None:
                return output
            return other if form.kind is Tensor else form.kind([other, *output[1:]])

        return forward

    def _stem_observer(self, stem: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.stems[stem] = run(*args, **kwargs)
            return self.stems[stem]

        return forward


class _Reached(Exception):
    """A forward pass has come to the boundary, and nothing above it is wanted."""


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
