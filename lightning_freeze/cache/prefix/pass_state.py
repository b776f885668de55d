"""What the cache knows about a prefix, and about the forward pass that is running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_freeze.cache.identity.keys import Call
from lightning_freeze.cache.prefix import layout
from lightning_freeze.cache.prefix.block_signature import Computed
from lightning_freeze.cache.prefix.predicted_gain import Work
from lightning_freeze.cache.prefix.random_state import Randomness
from lightning_freeze.cache.prefix.stand_ins import Detour, Watch

#: Padded batches of an epoch in which it is seen anew whether padding is read: the first, and then one in so many.
_PROOFS, _EVERY = 8, 16


class Store(Protocol):
    """Where hidden states are kept, by the identity of the prefix and the key of the sample."""

    def get(self, namespace: bytes, keys: Sequence[bytes]) -> list[Tensor | None]: ...  # noqa: D102

    def put(self, namespace: bytes, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None: ...  # noqa: D102

    def declare(self, namespace: bytes, info: dict[str, str | int]) -> None: ...  # noqa: D102

    def note(self, namespace: bytes, extent: int) -> None: ...  # noqa: D102

    def noted(self, namespace: bytes) -> int: ...  # noqa: D102


@dataclass
class Tally:
    """What the cache has done so far.

    Attributes:
        samples: Samples that came by while a prefix was frozen.
        hits: Those of them whose hidden states were read.
        saved: Seconds of computing that the hits would have taken, less the seconds that reading them took.
    """

    samples: int = 0
    hits: int = 0
    saved: float = 0.0


@dataclass
class Known:
    """What is known about the prefix of one identity.

    Attributes:
        boundary: Number of blocks in it.
        checked: Whether a pass that skips it was compared with one that does not.
        padded: Whether that pass had padding, and left it out.
        graded: Whether that was so for a pass with gradients.
        alone: Whether only batches of a single sample have been seen, which cannot tell if samples are independent.
        verified: Number of batches whose hits were compared with what the prefix computes.
        draws: Whether code around the blocks draws random numbers, of which nothing comes.
        loud: Which modules outside of the blocks were in training mode when that was looked at.
        per_sample: Which arguments have an entry for each sample.
        trimmed: Whether samples may be stored without padding.
        unread: Whether a backward pass has shown that nothing reads the positions of padding.
        proofs: Padded training passes since the beginning of the epoch.
        is_nan: Whether what the tower returns holds NaN of its own.
        positions: Whether the second dimension of the hidden states is that of the tokens.
        tail: Shape of the hidden states behind the batch, or behind the positions.
        dtype: What they are computed in.
        device: Where.
        order: Their dimensions in memory.
        stems: Modules before the blocks that may be skipped too.
        seconds: Time to compute the prefix for one sample, the shortest that was seen.
        first: The same in the first batch.
        fits: Whether there was room for anything of the first batch.
        reading: Time to read one sample.
        reads: What it took in the first batches that were read.
        size: Bytes that one sample takes.
        work: Floating point operations of one sample.
        computed: What its blocks compute from shapes alone.
    """

    boundary: int
    checked: bool = False
    padded: bool = False
    alone: bool = True
    graded: bool = False
    draws: bool = False
    loud: frozenset[int] = frozenset()
    per_sample: frozenset[str] = frozenset()
    verified: int = 0
    trimmed: bool = True
    unread: bool = False
    proofs: int = 0
    is_nan: bool = False
    positions: bool = False
    tail: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    order: tuple[int, ...] = ()
    stems: list[nn.Module] = field(default_factory=list)
    seconds: float = 0.0
    first: float = 0.0
    fits: bool = True
    reading: float = 0.0
    reads: list[float] = field(default_factory=list)
    size: float = 0.0
    work: Work = field(default_factory=lambda: Work(0, 0))
    computed: Computed = field(default_factory=dict)

    def describe(self, hidden: Tensor, call: Call) -> None:
        """Note the layout of hidden states.

        Args:
            hidden: Those of a batch.
            call: The call that they were computed in.
        """
        self.positions = bool(call.length) and hidden.dim() > 2 and hidden.shape[1] == call.length
        self.tail = tuple(hidden.shape[2:] if self.positions else hidden.shape[1:])
        self.dtype, self.device, self.order = hidden.dtype, hidden.device, layout.order_of(hidden)
        if call.size > 1 or not self.per_sample:
            self.per_sample = call.per_sample
        if call.length and not self.positions:
            self.trimmed = False

    def include(self, loud: frozenset[int]) -> None:
        """Note under which conditions it was looked at.

        Args:
            loud: Which modules outside of the blocks were in training mode.
        """
        self.loud |= loud
        self.graded = self.graded or torch.is_grad_enabled()

    def begin(self, seconds: float) -> None:
        """It is checked, and used from now on.

        Args:
            seconds: Time to compute it for one sample.
        """
        self.checked = True
        self.seconds = self.first = seconds

    @property
    def is_due(self) -> bool:
        """Whether it should be seen again, in a pass that skips, if anything reads the positions of padding."""
        return self.proofs <= _PROOFS or self.proofs % _EVERY == 0


@dataclass
class Pass:
    """One forward pass of the tower.

    Attributes:
        call: Its arguments.
        known: What is known about the prefix.
        namespace: The identity of the prefix.
        keys: One for each sample.
        rows: What was stored for each sample.
        trimmed: Whether the keys leave padding out.
        proves: Whether its backward pass shows if padding is read.
        loud: Which modules outside of the blocks are in training mode.
        is_eval: Whether all modules of the prefix are in eval mode, as those of prefixes to come will be.
        rehearses: Whether parts of it are run once more, to see that skipping would change nothing.
        detour: Open while blocks are skipped.
        watch: Open while blocks run for real.
        start: The random numbers at its beginning.
        began: When it began.
        taken: Hidden states by boundary.
        fed: Whether the hidden states require grad: something below the boundary trains.
        drew: Whether random numbers were drawn before the boundary.
        seconds: Time to the boundary.
        is_timed: Whether that is the time until it was computed, not only until the device was told to.
    """

    call: Call
    known: Known
    namespace: bytes
    keys: list[bytes]
    rows: list[Tensor | None]
    trimmed: bool
    proves: bool = False
    is_eval: bool = True
    loud: frozenset[int] = frozenset()
    rehearses: bool = False
    detour: Detour | None = None
    watch: Watch | None = None
    start: Randomness | None = None
    began: float = 0.0
    taken: dict[int, Tensor] = field(default_factory=dict)
    fed: bool = False
    drew: bool = False
    seconds: float = 0.0
    is_timed: bool = True

    @property
    def spans(self) -> layout.Spans | None:
        """Where the samples stand in the batch, ``None`` if they are stored with their padding or have none."""
        return self.call.spans if self.trimmed and self.call.has_padding else None

    @property
    def device(self) -> torch.device:
        """Where the pass runs."""
        return next(iter(self.call.leaves.values())).device

    @property
    def missing(self) -> list[int]:
        """The samples that were not found."""
        return [number for number, row in enumerate(self.rows) if row is None]

    def learn_from(self, gradient: Tensor) -> None:
        """Whether the loss depends on what stands in the positions of padding: its gradient there says so."""
        padding = torch.ones(gradient.shape[:2], dtype=torch.bool)
        for row, (start, stop) in enumerate(self.call.spans):
            padding[row, start:stop] = False
        # An overflow of mixed precision says nothing, and nor does a gradient that is zero everywhere.
        if not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
            return
        self.known.unread = not bool(gradient[padding.to(gradient.device)].any())
        self.known.trimmed = self.known.trimmed and self.known.unread
