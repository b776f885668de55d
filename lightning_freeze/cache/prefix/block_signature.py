"""The signature of a block, learned from one real call, so that a stand-in can return the same structure."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_freeze.cache.identity.keys import REPORTING
from lightning_freeze.cache.identity.unsupported import Unsupported

#: Where one returned value comes from, and the constant or the argument that it is.
Part = tuple[Literal["hidden", "constant", "argument", "row", "all", "withheld"], Any]
#: What blocks have computed from shapes alone: by number of the block, by the shapes, by the position in the output.
ShapeOutputs = dict[int, dict[Any, Any]]

#: A block's own ``forward``.
Forward = Callable[..., Any]

#: Number of shapes for which these outputs are kept.
_MOST_SHAPES = 4
#: Largest argument without a batch dimension whose elements are part of the key.
_MOST_ELEMENTS = 4096


@dataclass
class BlockSignature:
    """What one block takes and returns.

    Attributes:
        options: The booleans and strings among its arguments, by name or position. With other values the block may
            return something else.
        kind: The type that it returns; ``Tensor`` for the hidden states alone.
        parts: Where each returned value comes from: ``"hidden"`` (the hidden states), ``"constant"``, ``"argument"``,
            ``"row"`` or ``"all"`` (computed from shapes alone, from one row of the batch or from all rows), or
            ``"withheld"`` (anything else, which a skipped block does not return).
    """

    options: dict[int | str, bool | str]
    kind: type
    parts: list[Part]

    @property
    def withholds_output(self) -> bool:
        """Whether a skipped block leaves out something that the real one returns."""
        return any(source == "withheld" for source, _ in self.parts)

    def hidden_in(self, output: Any) -> Tensor:
        """Return the hidden states in the output of a call.

        Args:
            output: What the block returned.

        Raises:
            Unsupported: If the output does not have this signature.
        """
        is_same = isinstance(output, Tensor) if self.kind is Tensor else type(output) is self.kind
        if not is_same or (self.kind is not Tensor and len(output) != len(self.parts)):
            raise Unsupported("its blocks return something else than before")
        value: Tensor = output if self.kind is Tensor else output[0]
        return value

    def build(
        self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Forward, earlier: dict[Any, Any]
    ) -> Any:
        """Return what a call would return if it computed the given hidden states.

        Args:
            hidden: The hidden states.
            args: Positional arguments of the call.
            kwargs: Named arguments of the call.
            forward: The block's own ``forward``, to compute what depends on shapes alone.
            earlier: What earlier calls have computed from shapes alone; updated.
        """
        if self.kind is Tensor:
            return hidden
        computed = self._compute(hidden.shape[0], args, kwargs, forward, earlier)
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
        """Return the hidden states in the structure of the output, with ``None`` for everything else."""
        return hidden if self.kind is Tensor else self.kind([hidden, *[None] * (len(self.parts) - 1)])

    def _compute(
        self, size: int, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Forward, earlier: dict[Any, Any]
    ) -> dict[int, Any]:
        """Compute what depends on shapes alone, by position in the output."""
        wanted = [position for position, (source, _) in enumerate(self.parts) if source in ("row", "all")]
        if not wanted:
            return {}
        is_row = all(self.parts[position][0] == "row" for position in wanted)
        key = _shapes_of(args, kwargs, size) if is_row else None
        before = earlier.get(key) if key is not None else None
        if before is not None and all(value._version == version for value, version in before.values()):
            return {position: value for position, (value, _) in before.items()}
        rows = slice(0, 1) if is_row else slice(None)
        few = [_rows_of(value, rows, size) for value in args]
        with torch.no_grad():
            output = forward(*few, **{name: _rows_of(value, rows, size) for name, value in kwargs.items()})
        found = {position: output[position] for position in wanted}
        if key is not None:
            if len(earlier) >= _MOST_SHAPES:
                earlier.clear()
            # The version counter shows whether the tensor was written to later.
            earlier[key] = {position: (value, value._version) for position, value in found.items()}
        return found


def _shapes_of(args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> Hashable | None:
    """A key of everything in the arguments that is shared by all samples; ``None`` if there is none."""
    if torch.is_inference_mode_enabled():  # inference tensors cannot be used in training, and have no version
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


def _rows_of(value: Any, rows: slice, size: int) -> Any:
    return value[rows] if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == size else value


def options_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, bool | str]:
    """Return the booleans and strings among the arguments of a call."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return {name: value for name, value in given if isinstance(value, (bool, str)) and name not in REPORTING}


def signature_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> BlockSignature:
    """Learn the signature of a block from one real call.

    Raises:
        Unsupported: If the block returns something that cannot be known without running it.
    """
    if not any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        raise Unsupported(f"{name} is not called with hidden states")
    options = options_in(args, kwargs)
    if isinstance(output, Tensor):
        return BlockSignature(options, Tensor, [])
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
            # For example attention weights that were not requested. The dry run shows whether anything reads them.
            parts.append(("withheld", None))
    return BlockSignature(options, type(output), parts)
