"""The stored hidden states of one tower: by the identity of the prefix, then by the key of the sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.fingerprint import Fingerprint, surroundings
from lightning_freeze.cache.identity.keys import Call
from lightning_freeze.cache.identity.module_settings import Settings
from lightning_freeze.cache.prefix import break_even, layout
from lightning_freeze.cache.prefix.pass_state import Known, Pass, Store
from lightning_freeze.cache.store.accelerator import AcceleratorTier, has_own_memory
from lightning_freeze.cache.store.sizes import bytes_in


class PrefixEntries:
    """Identifies the prefixes of one tower, and reads and stores their hidden states.

    Args:
        tower: The tower.
        store: Where hidden states are kept.
        dtype: What to store them in, ``None`` for what was computed.
        accelerator: Where those that were used stay on their device, if anywhere.

    Attributes:
        known: What is known about each prefix.
        filled: The boundaries at which anything has been stored.
        ahead: Lower boundaries to fill in the same pass, because a later phase will need them, the next one first.
        budget: Bytes that there is room for, ``None`` for no limit.
        expected: Samples that there will be.
        trims: Whether padding may be left out.
    """

    def __init__(
        self, tower: CachedTower, store: Store, dtype: torch.dtype | None, accelerator: AcceleratorTier | None = None
    ) -> None:
        self.dtype = dtype
        self.known: dict[bytes, Known] = {}
        self.filled: set[int] = set()
        self.ahead: Sequence[int] = ()
        self.budget: int | None = None
        self.expected = 0
        self.trims = True
        self._tower = tower
        self._store = store
        self._accelerator = accelerator
        self._fingerprint = Fingerprint(tower)
        self._look: bool | None = True
        self._settings: dict[int, Settings] = {}

    def look_again(self, thorough: bool) -> None:
        """Notice at the next pass if the weights have changed in a way that left no trace."""
        self._look = thorough or bool(self._look)
        if thorough:
            for settings in self._settings.values():
                settings.look_again()
            for known in self.known.values():
                known.proofs = 0

    def identify(self, boundary: int, mode: str, call: Call) -> tuple[bytes, Known]:
        """The identity of the prefix, and what is known about it.

        Args:
            boundary: Number of blocks in it.
            mode: The modes of its modules.
            call: The running call.
        """
        if self._look is not None:
            self._fingerprint.look_again(self._look, boundary)
            self._look = None
        device = next(iter(call.leaves.values())).device
        extra = f"{surroundings(device)}, {mode}, stored as {self.dtype or 'computed'}"
        if boundary not in self._settings:
            self._settings[boundary] = Settings(self._tower.prefix_modules(boundary) + self._tower.around())
        namespace = self._fingerprint.of(boundary, f"{extra}, {self._settings[boundary].digest().hex()}")
        if namespace not in self.known:
            self.known[namespace] = Known(boundary, trimmed=self.trims)
            info: dict[str, str | int] = {
                "model": type(self._tower.entry).__name__,
                "tower": self._tower.name,
                "blocks": boundary,
                "of": len(self._tower.blocks),
                "computed": extra,
                "torch": torch.__version__,
            }
            self._store.declare(namespace, info)
        return namespace, self.known[namespace]

    def boundaries(self, boundary: int) -> list[int]:
        """The boundaries at which hidden states are wanted from a pass."""
        return [*(b for b in self.ahead if b < boundary), boundary]

    def read(self, this: Pass, namespace: bytes, known: Known) -> list[Tensor | None]:
        """What is stored for the samples of a pass; what does not fit the batch counts as missing."""
        rows = self._get(namespace, this)
        if not known.checked:
            return rows
        found = self.fitting(this, rows, known)
        if any(row is not None for row in found):
            self.filled.add(known.boundary)
        return found

    def fitting(self, this: Pass, rows: Sequence[Tensor | None], known: Known) -> list[Tensor | None]:
        """What was stored for the samples of a pass, ``None`` for what does not fit the batch.

        Args:
            this: The pass.
            rows: One for each sample.
            known: What is known about the layout of the hidden states.
        """
        dtype = self.dtype or known.dtype
        whole = (this.call.length, *known.tail) if known.positions and this.call.length else None
        found: list[Tensor | None] = []
        for number, row in enumerate(rows):
            span = this.spans[number] if this.spans else None
            expected = torch.Size(whole) if whole else row.shape if row is not None else torch.Size()
            found.append(row if row is not None and layout.fits(row, span, expected, dtype) else None)
        first = next((row for row in found if row is not None), None)
        if this.spans is None and first is not None:
            found = [row if row is not None and row.shape == first.shape else None for row in found]
        return found

    def _get(self, namespace: bytes, this: Pass) -> list[Tensor | None]:
        if self._accelerator is None or not has_own_memory(this.device):
            return self._store.get(namespace, this.keys)
        rows = self._accelerator.get(namespace, this.keys)
        rows = [row if row is not None and row.device == this.device else None for row in rows]
        missing = [number for number, row in enumerate(rows) if row is None]
        below = self._store.get(namespace, [this.keys[number] for number in missing]) if missing else []
        for number, row in zip(missing, below, strict=True):
            rows[number] = row
        return rows

    def keep(self, this: Pass, hidden: Tensor) -> None:
        """Let hidden states that were laid out for a pass stay on their device.

        Args:
            this: The pass.
            hidden: The batch.
        """
        if self._accelerator is None or not has_own_memory(hidden.device):
            return
        rows = layout.cut(hidden, this.spans)
        self._accelerator.put(this.namespace, this.keys, rows, self.dtype or this.known.dtype)

    def put(self, this: Pass, computed: dict[int, Tensor], rows: Sequence[int], whole: bool) -> None:
        """Store samples, at the boundary and at those ahead.

        Args:
            this: The pass.
            computed: Hidden states by boundary.
            rows: The samples to store.
            whole: Whether the hidden states are those of all samples, or of the given ones alone.
        """
        extent = computed[this.known.boundary].numel() if this.rehearses and this.call.size > 1 else 0
        if extent:
            self._store.note(this.namespace, extent)
        if not rows:
            return
        keys = [this.keys[i] for i in rows]
        spans = this.spans if this.spans is None or whole else [this.spans[i] for i in rows]
        for boundary in (this.known.boundary, *(self._affordable(this.known) if this.is_eval else ())):
            if boundary not in computed:
                continue
            packed = layout.pack(computed[boundary], spans, self.dtype)
            packed = [packed[i] for i in rows] if whole else packed
            if boundary == this.known.boundary:
                namespace = this.namespace
            else:
                namespace, _ = self.identify(boundary, "eval", this.call)
                if extent:
                    self._store.note(namespace, extent)
            entries = list(zip(keys, packed, strict=True))
            if self.dtype == torch.float16:  # what is beyond its range would come back as infinity
                entries = [(key, row) for key, row in entries if bool(torch.isfinite(row).all())]
            self._store.put(namespace, [key for key, _ in entries], [row for _, row in entries])
            self.filled.add(boundary)

    def is_independent(self, this: Pass) -> bool:
        """Whether it was seen in a batch as large, here or in an earlier run, that samples do not depend on others."""
        return sum(row.numel() for row in this.rows if row is not None) <= self._store.noted(this.namespace)

    def _affordable(self, known: Known) -> Sequence[int]:
        """The lower boundaries that there is room for beside the present one."""
        ahead = [b for b in self.ahead if b < known.boundary]
        if self.budget is None:
            return ahead
        return ahead[: max(0, int(self.budget / max(1.0, known.size * self.expected)) - 1)]

    def end_pass(self, this: Pass) -> None:
        """A pass has run for real from its beginning: what it changed itself is no setting, and its time is known."""
        self._settings[this.known.boundary].end_pass()
        if this.known.checked and this.is_timed:
            this.known.seconds = min(this.known.seconds, this.seconds / this.call.size)
            if this.device.type != "cpu":  # the first pass on an accelerator may have started it up
                this.known.first = min(this.known.first, this.known.seconds)

    def measure(self, this: Pass, hidden: Tensor) -> None:
        """Note how much room a sample takes."""
        known = this.known
        known.size = known.size or bytes_in(layout.pack(hidden, this.spans, self.dtype)) / this.call.size

    def begin(self, this: Pass, origin: Callable[[Tensor], Sequence[bytes] | None]) -> str | None:
        """The prefix is checked: use it from now on, if reading it back is worth while.

        Args:
            this: The pass that has been stored.
            origin: As for :meth:`Call.keys`.

        Returns:
            Why it is not worth while, ``None`` if it is.
        """
        known = this.known
        self.time_reading(this, known, origin)
        known.begin(this.seconds / this.call.size)
        return break_even.why_not(known)

    def time_reading(self, this: Pass, known: Known, origin: Callable[[Tensor], Sequence[bytes] | None]) -> None:
        """Measure what reading a batch takes, and see whether anything of it is stored.

        Args:
            this: The pass.
            known: Where to note it, with the layout of the hidden states.
            origin: As for :meth:`Call.keys`.
        """
        times = []
        for _ in range(3):
            began = time.perf_counter()
            keys = this.call.keys(this.trimmed, origin)
            rows = [row for row in self._store.get(this.namespace, keys) if row is not None]
            known.fits = bool(rows)
            if len(rows) < this.call.size:
                break
            layout.lay_out(rows, this.spans, this.call.length, known.dtype, known.device)
            synchronize(known.device)
            times.append(time.perf_counter() - began)
        known.reading = min(times, default=0.0) / this.call.size

    def passing(self, boundary: int) -> AbstractContextManager[None]:
        """A real forward pass runs inside: what it changes itself is no setting.

        Args:
            boundary: Number of blocks in the prefix, which has been identified.
        """
        return self._settings[boundary].passing()


def synchronize(device: torch.device) -> None:
    """Wait until everything is computed, so that time can be taken."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
