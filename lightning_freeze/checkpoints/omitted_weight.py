"""What a checkpoint has in place of a frozen weight that was left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_freeze.checkpoints.base_weights import kept_weight
from lightning_freeze.checkpoints.fingerprint import fingerprint, has_plain_content
from lightning_freeze.errors import ConfigurationError

WAY_OUT = "`lightning-freeze merge-checkpoint` writes a whole checkpoint."


class OmittedWeight:
    """Stands in a state dict for a weight that the module which loads it already has.

    ``load_state_dict`` copies each value of a state dict into the weight of the module. PyTorch lets objects that are
    like tensors define what that means, by ``__torch_function__``: this one compares the weight with its fingerprint,
    and leaves it as it is. So it works with any module, in every way in which a state dict is loaded.

    Args:
        digest: The fingerprint of the weight.
        shape: Its shape.
        dtype: Its dtype by name, ``"float32"``.
        layer: The layer that it belongs to.

    Raises:
        ValueError: If there is no such dtype.
    """

    is_meta = False
    requires_grad = False

    def __init__(self, digest: str, shape: Sequence[int], dtype: str, layer: str) -> None:
        self.digest = digest
        self.shape = torch.Size(shape)
        self.dtype: torch.dtype = getattr(torch, dtype, None)  # type: ignore[assignment]
        if not isinstance(self.dtype, torch.dtype):
            raise ValueError(f"OmittedWeight(dtype={dtype!r}): expected the name of a dtype such as 'float32'.")
        self.layer = layer
        self._refusal: ConfigurationError | None = None

    @classmethod
    def of(cls, tensor: Tensor, digest: str, layer: str) -> OmittedWeight:
        """What stands for a tensor whose fingerprint is known."""
        return cls(digest, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), layer)

    def size(self) -> torch.Size:
        """The shape, as of a tensor.

        Raises:
            ConfigurationError: If :meth:`load_into` has just raised it.
        """
        # load_state_dict catches what copying raises, and asks for the size to write a line about each weight, hundreds
        # for one cause. What is raised here ends it, with one message.
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal
        return self.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions, as of a tensor."""
        return len(self.shape)

    def dim(self) -> int:
        """The same as :attr:`ndim`, as of a tensor."""
        return self.ndim

    def numel(self) -> int:
        """The number of elements, as of a tensor."""
        return self.shape.numel()

    def is_content_of(self, tensor: object) -> bool:
        """Whether a tensor has the content of the weight that was left out."""
        return has_plain_content(tensor) and fingerprint(tensor) == self.digest  # type: ignore[arg-type]

    @torch.no_grad()
    def load_into(self, target: Tensor) -> Tensor:
        """Give a weight of a module the content that was left out, which it has unless something changed it.

        Args:
            target: The weight. In another dtype, it is rounded as it would be if a whole checkpoint was loaded.

        Returns:
            The weight.

        Raises:
            ConfigurationError: If it has another content, and the one that was left out is not known.
        """
        if self.is_content_of(target):
            return target
        if (known := kept_weight(self.digest, target)) is not None:
            return target.copy_(known)
        if has_plain_content(target) and target.dtype != self.dtype:
            rounded = target.to(self.dtype)
            if self.is_content_of(rounded):
                return target.copy_(rounded)
        self._refusal = ConfigurationError(
            f"The checkpoint leaves out the weights of the frozen layer {self.layer!r}, and {_cause(self, target)} "
            f"{WAY_OUT}"
        )
        raise self._refusal

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Copying it into a tensor is :meth:`load_into`; it has no content for anything else."""
        if func is torch.Tensor.copy_ and isinstance(args[0], Tensor):
            source = args[1] if len(args) > 1 else (kwargs or {})["src"]
            return source.load_into(args[0])
        given = [*args, *(kwargs or {}).values()]
        flat = [value for each in given for value in (each if isinstance(each, list | tuple) else [each])]
        omitted = next(value for value in flat if isinstance(value, cls))
        raise ConfigurationError(f"{func.__name__}: {omitted._missing()}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"{name}: {self._missing()}")

    def _missing(self) -> str:
        return (
            f"this weight of the frozen layer {self.layer!r} is not in the checkpoint, which was saved with "
            f"save_frozen=False. Load it with load_state_dict into a module that is built as before. {WAY_OUT}"
        )

    def __reduce__(self) -> tuple[type[OmittedWeight], tuple[str, tuple[int, ...], str, str]]:
        dtype = str(self.dtype).removeprefix("torch.")
        return OmittedWeight, (self.digest, tuple(self.shape), dtype, self.layer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OmittedWeight) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"OmittedWeight({tuple(self.shape)}, {self.dtype}, layer={self.layer!r})"


def _cause(weight: OmittedWeight, target: Tensor) -> str:
    if not has_plain_content(target):
        return f"a {type(target).__name__} on the device {target.device} cannot be compared with their fingerprint."
    if target.dtype != weight.dtype:
        return (
            f"the module that loads it has others, or the same with fewer bits: {target.dtype} in place of "
            f"{weight.dtype}. Build the module with the same base weights, in {weight.dtype}."
        )
    return (
        "the module that loads it has others: the base weights are others than those of the run that saved it. Build "
        "the module with the same base weights (folder, revision, seed), and anew if it has been trained or has loaded "
        "another checkpoint since."
    )
