"""Keeps the outputs of a teacher, so that it runs once for each sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_freeze.cache.identity.environment import environment
from lightning_freeze.cache.identity.keys import Call, CallReader, hash_of, new_hash
from lightning_freeze.cache.identity.unsupported import Unsupported
from lightning_freeze.cache.store.store import Store

#: Outputs by name, one entry for each sample.
Outputs = dict[str, Tensor]
Compute = Callable[[tuple[Any, ...], dict[str, Any]], Outputs]

#: How many roundings two runs on the same sample may differ by.
_ROUNDINGS = 100


class KeptOutputs:
    """Reads the outputs of a teacher from a store, and lets it run on samples that the store does not have.

    The key of a sample is a hash of its inputs, without padding where ``attention_mask`` marks it; the namespace is a
    hash of the teacher's weights and of the device and precision that it runs with.

    Args:
        store: Where outputs are kept.
        model: The teacher.
        trims_padding: Whether padding is left out of keys and of outputs with an entry for each token.
        verify: How many batches that were found as a whole are compared with the teacher.
    """

    def __init__(self, store: Store, model: nn.Module, trims_padding: bool, verify: int) -> None:
        self._store = store
        self._reader = CallReader(model)
        self._weights = _hash_of_weights(model)
        self._trims = trims_padding
        self._verify = verify
        self._is_off = False

    def outputs(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], names: Sequence[str], device: torch.device, run: Compute
    ) -> Outputs:
        """Return the outputs for a batch.

        Args:
            args: Positional arguments of the teacher.
            kwargs: Named arguments.
            names: The outputs that are wanted.
            device: Where they are wanted.
            run: Runs the teacher on arguments.
        """
        if self._is_off:
            return run(args, kwargs)
        try:
            call = self._reader.read(args, kwargs)
        except Unsupported as error:
            self._switch_off(f"{error}")
            return run(args, kwargs)
        keys = call.keys(self._trims, lambda tensor: None)
        rows = {name: self._store.get(self._namespace(name, device), keys) for name in names}
        missing = [i for i in range(call.size) if any(found[i] is None for found in rows.values())]
        if not missing:
            kept = {name: self._joined(call, found, device) for name, found in rows.items()}
            return self._compared(call, kept, args, kwargs, run) if self._verify else kept
        part = call.subset(missing) if len(missing) < call.size else call
        if part is None:  # the arguments cannot be divided by sample
            part, missing = call, list(range(call.size))
        fresh = run(part.args, part.kwargs)
        for name in names:
            if len(fresh[name]) != part.size:
                self._switch_off(f"its {name} have {len(fresh[name])} entries for {part.size} samples")
                return fresh if part is call else run(args, kwargs)
            pieces = [self._trimmed(part, fresh[name], row) for row in range(part.size)]
            self._store.put(self._namespace(name, device), [keys[i] for i in missing], pieces)
            for i, piece in zip(missing, pieces, strict=True):
                rows[name][i] = piece
        return fresh if part is call else {name: self._joined(call, rows[name], device) for name in names}

    def close(self) -> None:
        """Wait until everything is written, and close files. What is in memory stays."""
        self._store.rest()

    def _namespace(self, name: str, device: torch.device) -> bytes:
        entry = new_hash()
        entry.update(self._weights)
        entry.update(f"{name}, {environment(device)}, torch {torch.__version__}, {self._trims}".encode())
        return bytes(entry.digest())

    def _trimmed(self, call: Call, output: Tensor, row: int) -> Tensor:
        """Return the entry of one sample, without padding."""
        if not self._is_tokenwise(call, output[0]):
            return output[row]
        start, stop = call.spans[row]
        return output[row, start:stop]

    def _joined(self, call: Call, found: Sequence[Tensor | None], device: torch.device) -> Tensor:
        """Return one tensor for the batch, with zeros in place of padding."""
        entries = [entry for entry in found if entry is not None]
        if not call.spans or not self._trims or entries[0].dim() < 2:
            return torch.stack([entry.to(device) for entry in entries])
        joined = torch.zeros(call.size, call.length, *entries[0].shape[1:], dtype=entries[0].dtype, device=device)
        for row, (entry, (start, stop)) in enumerate(zip(entries, call.spans, strict=True)):
            joined[row, start:stop] = entry.to(device)
        return joined

    def _is_tokenwise(self, call: Call, entry: Tensor) -> bool:
        return self._trims and bool(call.spans) and entry.dim() >= 2 and entry.shape[0] == call.length

    def _compared(
        self, call: Call, kept: Outputs, args: tuple[Any, ...], kwargs: dict[str, Any], run: Compute
    ) -> Outputs:
        """Return kept outputs if a run of the teacher gives the same, and what it gives if not."""
        self._verify -= 1
        fresh = run(args, kwargs)
        for name, output in kept.items():
            difference = _difference(self._joined(call, _pieces(self, call, fresh[name]), output.device), output)
            if difference is not None:
                self._switch_off(
                    f"its {name} for the same samples differ by {difference:.2g} from one batch to another, because "
                    "they depend on the other samples, on padding or on random numbers"
                )
                return fresh
        return kept

    def _switch_off(self, reason: str) -> None:
        self._is_off = True
        rank_zero_warn(
            f"The outputs of the teacher are not kept: {reason}. It runs on every batch. Give distillation keep=False "
            "if that is as it should be."
        )


def _pieces(kept: KeptOutputs, call: Call, output: Tensor) -> Sequence[Tensor]:
    return [kept._trimmed(call, output, row) for row in range(call.size)]


def _difference(one: Tensor, other: Tensor) -> float | None:
    """Return by how much two outputs differ; None if that is no more than rounding."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel() or torch.equal(one, other):
        return None
    found = float((one.double() - other.double()).abs().max())
    device = one.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else one.dtype
    rounding = max(torch.finfo(one.dtype).eps, torch.finfo(dtype).eps)
    return found if not found <= _ROUNDINGS * rounding * max(1.0, float(other.abs().max())) else None


def _hash_of_weights(model: nn.Module) -> bytes:
    """Return a hash of everything that decides what a model returns: its structure, settings, weights and buffers."""
    entry = new_hash()
    entry.update(repr(model).encode())
    config: Any = getattr(model, "config", None)
    if callable(getattr(config, "to_json_string", None)):
        entry.update(config.to_json_string().encode())
    tensors: Mapping[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        entry.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        entry.update(hash_of(tensor))
    return bytes(entry.digest())
