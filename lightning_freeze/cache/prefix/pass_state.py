"""What the cache knows about a frozen prefix, and the state of the forward pass that is running."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_freeze.cache.identity.keys import Call, KeysOf, keys_in_batch
from lightning_freeze.cache.prefix import layout
from lightning_freeze.cache.prefix.block_signature import ShapeOutputs
from lightning_freeze.cache.prefix.predicted_gain import Work
from lightning_freeze.cache.prefix.random_state import RandomState
from lightning_freeze.cache.prefix.stand_ins import BlockRecorder, SkippedBlocks

#: Padded batches of an epoch in which the padding is checked: the first ones, and then one of this many.
_FIRST_PADDED, _EVERY_PADDED = 8, 16
#: Number of batch sizes that are checked.
_MOST_SIZES = 8
#: Batches of a second epoch that are looked up before concluding that no batch recurs.
_SECOND_EPOCH = 4


class Store(Protocol):
    """Stores hidden states by the identity of the prefix and the key of the sample."""

    def get(self, namespace: bytes, keys: Sequence[bytes]) -> list[Tensor | None]: ...  # noqa: D102

    def put(self, namespace: bytes, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None: ...  # noqa: D102

    def declare(self, namespace: bytes, info: dict[str, str | int]) -> None: ...  # noqa: D102

    def note(self, namespace: bytes, extent: int) -> None: ...  # noqa: D102

    def noted(self, namespace: bytes) -> int: ...  # noqa: D102


@dataclass
class Tally:
    """What the cache has done so far.

    Attributes:
        samples: Samples that were passed to the tower while a prefix was frozen.
        hits: Samples among them whose hidden states were read from the store.
        saved_seconds: Time that computing the hits would have taken, less the time that reading them took.
    """

    samples: int = 0
    hits: int = 0
    saved_seconds: float = 0.0


class Conditions(NamedTuple):
    """The conditions under which a whole tower was compared with itself without a prefix.

    Attributes:
        settings: A hash of the settings of all its modules, ``None`` if they could not be read.
        training_modules: The modules outside of the blocks that were in training mode, by number.
        has_grad: Whether gradients were enabled.
    """

    settings: bytes | None
    training_modules: frozenset[int]
    has_grad: bool

    def covers(self, other: Conditions) -> bool:
        """Whether nothing else can show under the other conditions."""
        is_same = self.settings is not None and self.settings == other.settings
        return is_same and self.training_modules >= other.training_modules and self.has_grad >= other.has_grad


@dataclass
class KnownPrefix:
    """What is known about one prefix, identified by its weights, code, modes and surroundings.

    Attributes:
        boundary: Number of blocks in the prefix.
        is_checked: Whether a pass that skips the prefix was compared with one that does not.
        dry_run_trimmed: Whether that was done for a batch whose padding was left out.
        checked_with_grad: Whether that was done with gradients enabled.
        independence_checked: Whether the samples of a batch were seen not to depend on each other. Batches of a single
            sample cannot show that.
        mixing: The operation that computes across the samples of a batch, and where; ``None`` if none was found. If
            there is one, samples are read back only in the same batch.
        sizes: Numbers of samples that were seen not to depend on each other in one batch.
        missed_in_training: Samples that were not found in training passes, minus infinity once any was found.
        verified: Number of batches whose hits were compared with what the prefix computes.
        rng_is_harmless: Whether code around the blocks draws random numbers that do not affect the hidden states.
        training_modules: The modules outside of the blocks that were in training mode when the prefix was checked.
        checks: The conditions of each check.
        per_sample: The arguments that have one entry for each sample.
        trims_padding: Whether samples may be stored without padding.
        padding_unread: Whether a backward pass has shown that nothing reads the positions of padding.
        padded_passes: Number of padded training passes since the start of the epoch.
        has_own_nan: Whether the tower returns NaN of its own.
        has_positions: Whether the second dimension of the hidden states is that of the tokens.
        feature_shape: Shape of the hidden states after the batch dimension, and after the positions if there are any.
        dtype: What the hidden states are computed in.
        device: Where they are computed.
        memory_order: The order of their dimensions in memory; see :func:`layout.order_of`.
        skipped_embeddings: Modules before the blocks that are skipped too.
        compute_seconds: Shortest time that computing the prefix took, for one sample.
        first_compute_seconds: The same time in the first batch.
        has_room: Whether the store had room for anything of the first batch.
        read_seconds: Time to read one sample.
        read_times: Times of the first reads, for one sample.
        sample_bytes: Bytes that one sample takes.
        work: Floating point operations for one sample.
        shape_outputs: What the blocks compute from shapes alone.
    """

    boundary: int
    is_checked: bool = False
    dry_run_trimmed: bool = False
    independence_checked: bool = False
    mixing: str | None = None
    sizes: set[int] = field(default_factory=set)
    missed_in_training: float = 0
    checked_with_grad: bool = False
    rng_is_harmless: bool = False
    training_modules: frozenset[int] = frozenset()
    checks: set[Conditions] = field(default_factory=set)
    per_sample: frozenset[str] = frozenset()
    verified: int = 0
    trims_padding: bool = True
    padding_unread: bool = False
    padded_passes: int = 0
    has_own_nan: bool = False
    has_positions: bool = False
    feature_shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    memory_order: tuple[int, ...] = ()
    skipped_embeddings: list[nn.Module] = field(default_factory=list)
    compute_seconds: float = 0.0
    first_compute_seconds: float = 0.0
    has_room: bool = True
    read_seconds: float = 0.0
    read_times: list[float] = field(default_factory=list)
    sample_bytes: float = 0.0
    work: Work = field(default_factory=lambda: Work(0, 0))
    shape_outputs: ShapeOutputs = field(default_factory=dict)

    def record_layout(self, hidden: Tensor, call: Call) -> None:
        """Record the layout of the hidden states.

        Args:
            hidden: The hidden states of a batch.
            call: The call that computed them.
        """
        self.has_positions = bool(call.length) and hidden.dim() > 2 and hidden.shape[1] == call.length
        self.feature_shape = tuple(hidden.shape[2:] if self.has_positions else hidden.shape[1:])
        self.dtype, self.device, self.memory_order = hidden.dtype, hidden.device, layout.order_of(hidden)
        if call.size > 1 or not self.per_sample:
            self.per_sample = call.per_sample
        if call.length and not self.has_positions:
            self.trims_padding = False

    def record_conditions(self, training_modules: frozenset[int]) -> None:
        """Record the conditions under which the prefix was checked.

        Args:
            training_modules: The modules outside of the blocks that are in training mode, by number.
        """
        self.training_modules |= training_modules
        self.checked_with_grad = self.checked_with_grad or torch.is_grad_enabled()

    def recurs(self, found: int, size: int, expected: int) -> bool:
        """Record how many samples of a training pass were found; returns whether batches may come a second time.

        Args:
            found: Number of samples that were found.
            size: Number of samples in the batch.
            expected: Number of samples in an epoch, 0 if it is not known.
        """
        if self.mixing is None:
            return True
        self.missed_in_training = -math.inf if found else self.missed_in_training + size
        return not expected or self.missed_in_training < expected + _SECOND_EPOCH * size

    def has_checked(self, size: int) -> bool:
        """Whether samples need not be compared in a batch of some size: code may branch on it.

        Args:
            size: Number of samples in the batch.
        """
        is_one_of_many = len(self.sizes) >= _MOST_SIZES
        return size == 1 or size in self.sizes or is_one_of_many or self.mixing is not None

    def mark_checked(self, seconds: float) -> None:
        """Use the prefix from now on.

        Args:
            seconds: Time to compute it for one sample.
        """
        self.is_checked = True
        self.compute_seconds = self.first_compute_seconds = seconds

    @property
    def padding_check_is_due(self) -> bool:
        """Whether a pass that skips should check again whether anything reads the positions of padding."""
        return self.padded_passes <= _FIRST_PADDED or self.padded_passes % _EVERY_PADDED == 0


@dataclass
class PassState:
    """One forward pass of a tower.

    Attributes:
        call: The arguments.
        known: What is known about the prefix.
        namespace: The identity of the prefix.
        mode: The modes of the modules in the prefix, as text; ``"eval"`` if none is in training mode.
        keys: One key for each sample.
        rows: What was found in the store for each sample.
        trims_padding: Whether the keys leave padding out.
        checks_padding: Whether the backward pass of this pass shows if padding is read.
        training_modules: The modules outside of the blocks that are in training mode, by number.
        needs_dry_run: Whether parts of the tower are run once more to check that skipping changes nothing.
        skipped: Open while blocks are skipped.
        recorder: Open while blocks run for real.
        random_state: The state of the random number generators at the start.
        began: When the pass began, from ``time.perf_counter``.
        hidden: Computed hidden states by boundary.
        requires_grad: Whether the hidden states require grad, so that something below the boundary trains.
        used_rng: Whether random numbers were drawn before the boundary.
        seconds: Time to reach the boundary.
        is_timed: Whether ``seconds`` includes the computation itself, not only its launch on the device.
        too_slow: Why reading hidden states does not pay, if this pass has shown that it does not.
    """

    call: Call
    known: KnownPrefix
    namespace: bytes
    mode: str = "eval"
    keys: list[bytes] = field(default_factory=list)
    rows: list[Tensor | None] = field(default_factory=list)
    trims_padding: bool = False
    checks_padding: bool = False
    training_modules: frozenset[int] = frozenset()
    needs_dry_run: bool = False
    skipped: SkippedBlocks | None = None
    recorder: BlockRecorder | None = None
    random_state: RandomState | None = None
    began: float = 0.0
    hidden: dict[int, Tensor] = field(default_factory=dict)
    requires_grad: bool = False
    used_rng: bool = False
    seconds: float = 0.0
    is_timed: bool = True
    too_slow: str | None = None

    @property
    def spans(self) -> layout.Spans | None:
        """Where the samples are in the batch, ``None`` if they are stored with their padding or have none."""
        return self.call.spans if self.trims_padding and self.call.has_padding else None

    @property
    def device(self) -> torch.device:
        """Where the pass runs."""
        return next(iter(self.call.tensors.values())).device

    @property
    def missing(self) -> list[int]:
        """The samples that were not found."""
        return [number for number, row in enumerate(self.rows) if row is None]

    def find_keys(self, keys_of: KeysOf) -> list[bytes]:
        """Return the key of each sample, which is that of its batch too if samples are read only in the same batch.

        Args:
            keys_of: As for :meth:`Call.keys`.
        """
        keys = self.call.keys(self.trims_padding, keys_of)
        return keys_in_batch(keys) if self.known.mixing is not None else keys

    def observe_gradient(self, gradient: Tensor) -> None:
        """Read off a gradient whether the loss depends on the positions of padding.

        Args:
            gradient: The gradient of the loss with respect to the hidden states, ``(batch, positions, ...)``.
        """
        padding = torch.ones(gradient.shape[:2], dtype=torch.bool)
        for row, (start, stop) in enumerate(self.call.spans):
            padding[row, start:stop] = False
        # An overflow of mixed precision shows nothing, and neither does a gradient that is zero everywhere.
        if not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
            return
        self.known.padding_unread = not bool(gradient[padding.to(gradient.device)].any())
        self.known.trims_padding = self.known.trims_padding and self.known.padding_unread

    def close(self) -> None:
        """Restore the blocks' own ``forward``."""
        for replaced in (self.skipped, self.recorder):
            if replaced is not None:
                replaced.close()
