"""What a block takes and returns, learned from one real call, so that a stand-in can return the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_freeze.cache.identity.keys import REPORTING, Unsupported

Part = tuple[Literal["hidden", "constant", "argument", "row", "all", "withheld"], Any]
#: By number of the block, what it has computed from shapes alone: by the shapes, by the position in what it returns.
Computed = dict[int, dict[Any, Any]]

#: A block's own ``forward``.
Run = Callable[..., Any]

#: Shapes of which that is kept.
_MOST_SHAPES = 4
#: Largest argument that is no sample's own and is looked at element by element.
_MOST_ELEMENTS = 4096


@dataclass
class BlockForm:
    """What one block takes and returns.

    Attributes:
        options: The switches among its arguments, by name or position: others may make it return something else.
        kind: Type of what it returns; ``Tensor`` for the hidden states alone.
        parts: For each thing that it returns where it comes from: the hidden states, a constant, one of its arguments,
            something that it computes from shapes alone, for one row or for all, or something else, withheld.
    """

    options: dict[int | str, bool | str]
    kind: type
    parts: list[Part]

    @property
    def withholds(self) -> bool:
        """Whether a skipped block lacks something that the real one returns."""
        return any(source == "withheld" for source, _ in self.parts)

    def returned(self, output: Any) -> Tensor:
        """The hidden states in what a call returned.

        Raises:
            Unsupported: If it is not of the form.
        """
        is_same = isinstance(output, Tensor) if self.kind is Tensor else type(output) is self.kind
        if not is_same or (self.kind is not Tensor and len(output) != len(self.parts)):
            raise Unsupported("its blocks return something else than before")
        value: Tensor = output if self.kind is Tensor else output[0]
        return value

    def build(
        self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], run: Run, earlier: dict[Any, Any]
    ) -> Any:
        """What a call would return if these were the hidden states that it computes.

        Args:
            hidden: The hidden states.
            args: Positional arguments of the call.
            kwargs: Named arguments of the call.
            run: The block's own ``forward``, for what depends on shapes alone.
            earlier: What it has computed in earlier calls.
        """
        if self.kind is Tensor:
            return hidden
        computed = self._compute(hidden.shape[0], args, kwargs, run, earlier)
        values: list[Any] = []
        for position, (source, detail) in enumerate(self.parts):
            if source == "hidden":
                values.append(hidden)
            elif source == "argument":
                values.append(args[detail] if isinstance(detail, int) else kwargs[detail])
            else:
                values.append(computed.get(position, detail))
        return tuple(values) if self.kind is tuple else list(values)

    def blank(self, hidden: Tensor) -> Any:
        """The hidden states in something of the same form, with nothing else in it."""
        return hidden if self.kind is Tensor else self.kind([hidden, *[None] * (len(self.parts) - 1)])

    def _compute(
        self, size: int, args: tuple[Any, ...], kwargs: dict[str, Any], run: Run, earlier: dict[Any, Any]
    ) -> dict[int, Any]:
        """By position, what the block computes itself from shapes alone."""
        wanted = [position for position, (source, _) in enumerate(self.parts) if source in ("row", "all")]
        if not wanted:
            return {}
        is_row = all(self.parts[position][0] == "row" for position in wanted)
        key = _shapes_of(args, kwargs, size) if is_row else None
        before = earlier.get(key) if key is not None else None
        if before is not None and all(value._version == version for value, version in before.values()):
            return {position: value for position, (value, _) in before.items()}
        rows = slice(0, 1) if is_row else slice(None)
        few = [_some(value, rows, size) for value in args]
        with torch.no_grad():
            output = run(*few, **{name: _some(value, rows, size) for name, value in kwargs.items()})
        found = {position: output[position] for position in wanted}
        if key is not None:
            if len(earlier) >= _MOST_SHAPES:
                earlier.clear()
            # Whoever writes into it later would be found out by its version.
            earlier[key] = {position: (value, value._version) for position, value in found.items()}
        return found


def _shapes_of(args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> Hashable | None:
    """All that something may depend on which is the same for every sample of a batch; ``None`` if it cannot be told."""
    if torch.is_inference_mode_enabled():  # its tensors cannot be used in training, and have no version
        return None
    found: list[Hashable] = []
    for name, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, Tensor):
            found.append((name, value.shape, value.dtype, value.device))
            if value.dim() <= 1 or value.shape[0] != size:
                if value.numel() > _MOST_ELEMENTS or value.device.type != "cpu":
                    return None
                found.append(tuple(value.flatten().tolist()))
        elif value is None or isinstance(value, (bool, int, float, str)):
            found.append((name, value))
        elif callable(length := getattr(value, "get_seq_length", None)):  # keys and values of earlier tokens
            found.append((name, length()))
        else:
            return None
    return tuple(found)


def _some(value: Any, rows: slice, size: int) -> Any:
    return value[rows] if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == size else value


def options_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, bool | str]:
    """The switches among the arguments of a call."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return {name: value for name, value in given if isinstance(value, (bool, str)) and name not in REPORTING}


def form_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> BlockForm:
    """Learn the form of a block from one real call.

    Raises:
        Unsupported: If it returns something that cannot be told without running it.
    """
    if not any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        raise Unsupported(f"{name} is not called with hidden states")
    options = options_of(args, kwargs)
    if isinstance(output, Tensor):
        return BlockForm(options, Tensor, [])
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
    return BlockForm(options, type(output), parts)
