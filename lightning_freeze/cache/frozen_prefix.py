"""One tower of a running fit: decides at each forward pass whether its frozen prefix runs or is skipped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache.checks.eligibility import Generation, Hook, Obstacles, can_prove, recomputes
from lightning_freeze.cache.checks.few_samples import can_stand_for
from lightning_freeze.cache.checks.patience import Patience
from lightning_freeze.cache.execution import Passage
from lightning_freeze.cache.identity.cached_towers import CachedTower, Structure
from lightning_freeze.cache.identity.keys import CallReader, Unsupported, reason_of
from lightning_freeze.cache.prefix.entries import PrefixEntries
from lightning_freeze.cache.prefix.pass_state import Known, Pass, Tally
from lightning_freeze.cache.upstream_keys import Outputs


class FrozenPrefix:
    """Looks up the frozen prefix of one tower at each call of it; :class:`Passage` does what is decided.

    Args:
        tower: The tower.
        entries: The hidden states that are stored.
        verify: How many batches with hits are compared with a real forward pass for each identity of the prefix.
        together: Shared by the towers of one module, this one among them: one may feed on the output of another.
        on_off: Called when the tower is switched off, with the reason, and with whether that is a fault rather than a
            choice.
        tally: Where to count, on from what was there before the modules of the tower were replaced in mid-run.

    Attributes:
        off: Why it is switched off, ``None`` while it is not.
        tally: What it has done.
        boundary: Number of blocks in the frozen prefix at the latest pass.
        floor: Number of blocks to take as frozen at least.
        current: What is known about the prefix of the latest pass.
        calls: Number of forward passes seen.
        batch: Number of samples in the latest pass.
        outputs: What it has returned in the running step.
        passage: How its passes run.
        is_outdated: Whether modules or parameters of the tower have been replaced, so that it has to be found anew.
    """

    def __init__(
        self,
        tower: CachedTower,
        entries: PrefixEntries,
        verify: int,
        together: list[FrozenPrefix],
        on_off: Callable[[FrozenPrefix, str, bool], None],
        tally: Tally,
    ) -> None:
        self.tower = tower
        self.off: str | None = None
        self.tally = tally
        self.entries = entries
        self.current: Known | None = None
        self.calls = 0
        self.batch = 0
        self.is_outdated = False
        self.boundary = 0
        self.floor = 0
        self.outputs = Outputs(tower)
        self.passage = Passage(tower, entries, self.tally, self._origin)
        self._verify = verify
        self._together = together
        self._on_off = on_off
        self._reader = CallReader(tower.entry)
        self._pass: Pass | None = None
        self._busy = False
        self._patience = Patience()
        self._generation = Generation(tower.entry, self._reader.names)
        self._obstacles = Obstacles(tower)
        self._structure = Structure(tower.entry)
        entry = tower.entry
        self._handles = [
            entry.register_forward_pre_hook(Hook(self._before), with_kwargs=True),
            entry.register_forward_hook(Hook(self._after), with_kwargs=True, always_call=True, prepend=True),
        ]

    def close(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()
        self._end_pass()
        self.outputs.forget()

    def end_step(self) -> None:
        """The training step is over, its backward pass included."""
        self.passage.proving = False
        self.outputs.forget()

    def switch_off(self, reason: str, is_fault: bool = True) -> None:
        """Do nothing from now on."""
        if self.off is None:
            self.off = reason
            self._on_off(self, reason, is_fault)

    # ------------------------------------------------------------------------------------------- before the pass

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.off is not None or self._busy or torch._C._is_tracing():
            return
        self._end_pass()
        self.outputs.forget()
        self.calls += 1
        self._busy = True
        try:
            self._pass = self._plan(args, kwargs)
        except Exception as reason:
            self._end_pass()
            self.switch_off(reason_of(reason))
        finally:
            self._busy = False

    def _plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass | None:
        began = time.perf_counter()
        self.is_outdated = self.is_outdated or not self._structure.is_same()
        self.boundary = max(self.tower.boundary(), self.floor)
        if self.is_outdated or not self.boundary or self._generation.goes_on(args, kwargs):
            return None
        named = self._reader.named(args, kwargs)
        mode, loud = self._obstacles.look(self.boundary, named), self._obstacles.loud
        # Keys and values that are asked for are read in more ways than can be followed.
        if self._obstacles.is_watched or named.get("use_cache") is True:
            return None
        call = self._reader.read(args, kwargs)
        if not call.size:
            return None
        if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in call.leaves.values()):
            if any(tower.passage.proving for tower in self._together):
                return None
            raise Unsupported("something that trains, or is made to require grad, feeds into its frozen layers")
        namespace, known = self.entries.identify(self.boundary, mode, call)
        self.current, self.batch = known, call.size
        self._patience.note(not known.checked)
        if self._patience.is_over:
            raise Unsupported("its frozen layers change from one step to the next")
        # Only with a gradient it shows if something that trains feeds into the prefix. A pass that is repeated in a
        # backward pass has one where the first one had none.
        is_graded = known.graded or not torch.is_grad_enabled() or recomputes()
        is_new = not known.checked or not loud <= known.loud or not is_graded
        is_alone = known.alone and call.size > 1
        if not (is_new or is_alone) and not call.agrees(known.per_sample):
            return None
        padded = call.has_padding
        # Only where a backward pass will follow can be seen whether anything reads the positions of padding.
        proves = padded and known.trimmed and can_prove() and not recomputes()
        trimmed = known.trimmed and (not padded or proves)
        keys = call.keys(trimmed, self._origin)
        this = Pass(call, known, namespace, keys, [None] * call.size, trimmed, proves, began=began)
        self._pass = this  # so that it is closed whatever goes wrong from here on
        this.is_eval, this.loud = mode == "eval", loud
        this.rows = self.entries.read(this, namespace, known)
        this.rehearses = is_new or is_alone or (proves and not known.padded)
        hits = call.size - len(this.missing)
        known.proofs += proves
        if recomputes():
            # The backward pass of activation checkpointing repeats a forward pass, and must find the same again.
            if is_new or this.missing:
                return None
            self._skip(this)
        elif (is_new or is_alone) and can_stand_for(this) and self.passage.check_few(this):
            self._skip(this)
        elif this.rehearses or (hits and known.verified < self._verify) or (proves and not known.unread):
            self.passage.run(this)
        elif not hits:
            self.passage.skip_lower(this, mode)
        else:
            this.proves = proves and known.is_due
            self._skip(this)
        return this

    def _skip(self, this: Pass) -> None:
        if (slow := self.passage.skip(this)) is not None:
            self.switch_off(slow, is_fault=False)  # from the next pass on

    def _origin(self, tensor: Tensor) -> Sequence[bytes] | None:
        return next((keys for t in self._together if (keys := t.outputs.keys_of(tensor)) is not None), None)

    # -------------------------------------------------------------------------------------------- after the pass

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        this = self._pass
        if this is None or self._busy:
            return None
        self._end_pass()
        if output is None:
            _explain(this, sys.exc_info()[1])
            return None
        self._busy = True
        try:
            # What goes wrong when it is computed again is the module's own.
            return self._again(this) if self._is_wrong(this, output) else self._conclude(this, output)
        finally:
            self._busy = False

    def _conclude(self, this: Pass, output: Any) -> None:
        try:
            if this.watch is not None and (slow := self.passage.finish(this, output)) is not None:
                self.switch_off(slow, is_fault=False)
            if this.detour is not None:
                self._generation.note(output, this.call.args, this.call.kwargs)
            if len(self._together) > 1:
                self.outputs.remember(this, output)
        except Exception as reason:
            self.switch_off(reason_of(reason))

    def _is_wrong(self, this: Pass, output: Any) -> bool:
        try:
            return self.passage.was_read(this, output)
        except Exception as reason:  # nothing can be told from such an output
            self.switch_off(reason_of(reason))
            return this.detour is not None

    def _again(self, this: Pass) -> Any:
        output = self.passage.again(this)
        try:
            problem = self.passage.problem(this, output)
        except Exception as reason:
            problem = reason_of(reason)
        if problem is not None:
            self.switch_off(problem)
        return output

    def _end_pass(self) -> None:
        this, self._pass = self._pass, None
        if this is not None:
            for stack in (this.detour, this.watch):
                if stack is not None:
                    stack.close()


def _explain(this: Pass, error: BaseException | None) -> None:
    """Say in an error what it may come from: there is no way to go on from here."""
    if error is not None and this.detour is not None and hasattr(error, "add_note"):
        error.add_note(
            "FrozenPrefixCache was skipping frozen layers in this forward pass; what it skips returns NaN. If that is "
            "what this code ran into, fit this module without it."
        )
