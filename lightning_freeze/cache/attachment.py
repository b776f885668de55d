"""Attaches the cache to the module of a run, and detaches it at the end."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from weakref import ReferenceType

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_freeze.cache.cached_module import CachedModule
from lightning_freeze.cache.checks.eligibility import shards_weights
from lightning_freeze.cache.decision import Decision, Outcome
from lightning_freeze.cache.frozen_prefix import FrozenPrefix
from lightning_freeze.cache.storage import Storage
from lightning_freeze.distributed import call_before_change, ranks_of
from lightning_freeze.layers.discovery.groups import Groups
from lightning_freeze.run_warnings.record import warn_in_run


class Attachment:
    """The module that the cache is attached to, or was attached to last.

    Attributes:
        module: The module of the running loop, ``None`` between runs.
        cached: Its towers. They stay after the run, to report what was done.
        storage: Where hidden states are stored in the run, ``None`` between runs.
    """

    def __init__(self) -> None:
        self.module: LightningModule | None = None
        self.cached: CachedModule | None = None
        self.storage: Storage | None = None
        self._refused: Decision | None = None
        self._is_told = False
        self._offload_told: set[str] = set()
        self._stop_listening: Callable[[], None] | None = None
        self._min_boundaries: dict[str, int] = {}
        self._last_module: ReferenceType[LightningModule] | None = None

    @property
    def prefixes(self) -> list[FrozenPrefix]:
        """The towers that are cached."""
        return self.cached.prefixes if self.cached is not None else []

    @property
    def stored_bytes(self) -> int:
        """Bytes that are stored."""
        return self.storage.stored_bytes if self.storage is not None else 0

    def explain(self) -> dict[str, Decision]:
        """Return the decision at the latest pass of each tower; see :meth:`CachedModule.explain`."""
        if self._refused is not None:
            return {"": self._refused}
        return self.cached.explain() if self.cached is not None else {}

    def attach(
        self,
        trainer: Trainer,
        module: LightningModule,
        groups: Groups | None,
        open_storage: Callable[[], Storage],
        on_switch_off: Callable[[FrozenPrefix, str, bool], None],
    ) -> bool:
        """Attach the cache to the module of a run, unless it is attached already.

        Args:
            trainer: The trainer.
            module: Its module.
            groups: As for :class:`LayerStack`.
            open_storage: Opens the storage.
            on_switch_off: Called when a tower is switched off; see :class:`FrozenPrefix`.

        Returns:
            Whether it was attached now.
        """
        if self.module is module:
            return False
        self.detach()
        self.module, self.cached, self._refused, self._is_told = module, None, None, False
        self._offload_told.clear()
        if shards_weights(trainer.strategy):
            reason = "where weights are sharded, all ranks must run the same layers"
            self._refused = Decision(Outcome.LEAVE_ALONE, reason)
            warn_in_run(trainer, f"FrozenPrefixCache does nothing under {type(trainer.strategy).__name__}: {reason}.")
            return True
        # Nothing trains outside of a fit, so the prefix of the fit counts as frozen even if its layers require grad.
        is_last = self._last_module is not None and self._last_module() is module
        min_boundaries = self._min_boundaries if is_last and trainer.state.fn != TrainerFn.FITTING else {}
        self.storage = open_storage()
        self.cached = CachedModule(module, groups, self.storage, min_boundaries, on_switch_off, ranks_of(trainer))
        self._stop_listening = call_before_change(module, self.cached.restore_weights)
        if not self.prefixes:
            problems = "; ".join(self.cached.problems.values())
            warn_in_run(trainer, f"FrozenPrefixCache does nothing for {type(module).__name__}: {problems}.")
        return True

    def begin_loop(self, thorough: bool) -> None:
        """Begin an epoch or another loop: weights may have changed.

        Args:
            thorough: As for :meth:`CachedModule.recheck`.
        """
        if self.cached is not None:
            self.cached.end_step()
            self.cached.recheck(thorough)

    def end_batch(self) -> None:
        """End a batch of any loop."""
        if self.cached is not None:
            # First, while the towers are those of the batch: those that are found again have not been called.
            self.cached.use_smaller_entries()
            self.cached.end_step()

    def end_training_batch(self) -> None:
        """End a training batch: weights that are not needed may be offloaded. Warns once where they cannot be."""
        if self.cached is None or self.module is None or self.storage is None or not self.storage.offload:
            return
        self.cached.end_training_batch()
        for prefix in self.prefixes:
            reason = "" if prefix.offload is None else prefix.offload.problem
            if reason and prefix.tower.name not in self._offload_told:
                self._offload_told.add(prefix.tower.name)
                where = f" for {prefix.tower.label}" if len(self.prefixes) > 1 else ""
                warn_in_run(self.module.trainer, f"FrozenPrefixCache(offload=True) does nothing{where}: {reason}.")

    def restore_weights(self) -> None:
        """Bring offloaded weights back."""
        if self.cached is not None:
            self.cached.restore_weights()

    def frozen_parts(self) -> dict[str, str]:
        """Return once, after a training batch, the wholly frozen parts that are computed in each step, and why.

        Towers that cannot be cached get a warning of their own.
        """
        if self._is_told or self.cached is None or self.module is None or not self.prefixes:
            return {}
        self._is_told = True
        for name, reason in self.cached.frozen_problems.items():
            warn_in_run(self.module.trainer, f"FrozenPrefixCache does nothing for tower {name!r}: {reason}.")
        return self.cached.frozen_parts

    def detach(self) -> None:
        """Remove the cache from the module, and release the storage.

        Raises:
            OffloadError: If offloaded weights cannot come back, after all the rest is done.
        """
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
        try:
            if self.module is not None:
                self._last_module = weakref.ref(self.module)
                if self.cached is not None:
                    self._min_boundaries |= self.cached.boundaries
                    self.cached.close()
        finally:
            self.module = None
            if self.storage is not None:
                self.storage.release()
                self.storage = None
