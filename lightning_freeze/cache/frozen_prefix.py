"""One tower in a running fit: at each forward pass, decides by the facts, and carries the decision out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache.checks import failed_skip
from lightning_freeze.cache.checks.eligibility import Hook
from lightning_freeze.cache.decision import (
    CallFacts,
    Decision,
    Outcome,
    PrefixFacts,
    after_failure,
    decide_call,
    decide_prefix,
    without_own_passes,
)
from lightning_freeze.cache.execution import PrefixExecutor
from lightning_freeze.cache.identity.cached_towers import CachedTower, ModuleStructure
from lightning_freeze.cache.identity.keys import Call
from lightning_freeze.cache.identity.unsupported import ELSEWHERE, Unsupported, reason_of
from lightning_freeze.cache.joint_decision import JointDecision
from lightning_freeze.cache.offload import OffloadError, WeightOffload, not_needed
from lightning_freeze.cache.pass_facts import PassFacts
from lightning_freeze.cache.prefix.entries import PrefixEntries
from lightning_freeze.cache.prefix.lockstep import Lockstep
from lightning_freeze.cache.prefix.pass_state import KnownPrefix, PassState, Tally
from lightning_freeze.cache.upstream_keys import UpstreamKeys
from lightning_freeze.distributed.ranks import Ranks


class FrozenPrefix:
    """Runs or skips the frozen prefix of one tower at each call of it.

    Args:
        tower: The tower.
        entries: The stored hidden states.
        verify: Number of batches with hits that are compared with a real forward pass, for each identity of the prefix.
        towers: All towers of the module, this one included: one may read the output of another.
        on_switch_off: Called when the tower is switched off, with the reason, and with whether that is a fault rather
            than a choice.
        tally: Where to count; passed on when the modules of the tower were replaced.
        ranks: All ranks if they must run the same layers, because the module is sharded.

    Attributes:
        off: Why the tower is switched off, ``None`` if it is not.
        decision: What was decided at the latest pass, ``None`` before the first one.
        tally: What the cache has done.
        boundary: Number of blocks in the frozen prefix at the latest pass.
        min_boundary: Number of blocks that count as frozen in any case.
        known: What is known about the prefix of the latest pass.
        calls: Number of forward passes.
        batch_size: Number of samples in the latest pass.
        upstream_keys: Keys of what the tower has returned in the running step.
        executor: Runs or skips the prefix.
        is_outdated: Whether modules or parameters of the tower have been replaced, so that it must be analysed again.
        offload: Moves weights that are not needed out of the way, ``None`` to leave them.
        takes_over: Called in each pass once the prefix is identified, in place of the decision; ``None`` to decide.
    """

    def __init__(
        self,
        tower: CachedTower,
        entries: PrefixEntries,
        verify: int,
        towers: list[FrozenPrefix],
        on_switch_off: Callable[[FrozenPrefix, str, bool], None],
        tally: Tally,
        ranks: Ranks | None = None,
    ) -> None:
        self.tower = tower
        self.off: str | None = None
        self.decision: Decision | None = None
        self.tally = tally
        self.entries = entries
        self.known: KnownPrefix | None = None
        self.calls = 0
        self.batch_size = 0
        self.is_outdated = False
        self.takes_over: Callable[[PassState], None] | None = None
        self.boundary = 0
        self.min_boundary = 0
        self.offload: WeightOffload | None = None
        self.upstream_keys = UpstreamKeys(tower)
        self.executor = PrefixExecutor(tower, entries, self.tally, self.keys_of, Lockstep(ranks))
        self._joint = None if ranks is None else JointDecision(ranks)
        self._facts = PassFacts(tower, entries, verify, self.keys_of)
        self._towers = towers
        self._on_switch_off = on_switch_off
        self._pass: PassState | None = None
        self._busy = False
        self._structure = ModuleStructure(tower.entry, by_name=tower.gathers)
        entry = tower.entry
        self._handles = [
            entry.register_forward_pre_hook(Hook(self._before), with_kwargs=True),
            entry.register_forward_hook(Hook(self._after), with_kwargs=True, always_call=True, prepend=True),
        ]

    def close(self) -> None:
        """Remove all hooks and stand-ins from the module."""
        for handle in self._handles:
            handle.remove()
        self._end_pass()
        self.upstream_keys.forget()
        if self.offload is not None:
            self.offload.close()

    def end_training_batch(self) -> None:
        """End a training batch: weights that it has not needed may be offloaded."""
        known, decision = self.known, self.decision
        if self.offload is None or known is None or decision is None or decision.outcome is not Outcome.SKIP:
            return
        blocks = not_needed(self.tower.blocks[: known.boundary], self.executor.signatures)
        self.offload.end_batch(known.boundary, [*known.skipped_embeddings, *blocks])

    def _need_weights(self) -> None:
        if self.offload is not None:
            self.offload.restore()

    def end_step(self) -> None:
        """End a training step, after its backward pass."""
        self.executor.is_probing = False
        self.upstream_keys.forget()

    def switch_off(self, reason: str, is_fault: bool = True) -> None:
        """Do nothing from now on.

        Args:
            reason: Why.
            is_fault: Whether the cache cannot be used, rather than does not pay.
        """
        if self._joint is not None and self._busy:  # one pass runs, in which ranks may come to different conclusions
            self._joint.problem = self._joint.problem or (reason, is_fault)
        elif self.off is None:
            self._switch_off_now(reason, is_fault)

    def _switch_off_now(self, reason: str, is_fault: bool) -> None:
        self.off = reason
        self.decision = Decision(Outcome.SWITCH_OFF, reason)
        self._on_switch_off(self, reason, is_fault)

    @property
    def is_sharded(self) -> bool:
        """Whether all ranks must run the same layers."""
        return self._joint is not None

    # ------------------------------------------------------------------------------------------- before the pass

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._busy or torch._C._is_tracing():
            self._need_weights()
            return
        if self.off is None:
            self._end_pass()
        # Also if the tower was switched off, or began to train, since the pass that skipped blocks.
        self._facts.complete_keys(args, kwargs, self._need_weights)
        if self.off is not None:
            self._need_weights()
            return
        self.upstream_keys.forget()
        self.calls += 1
        self._busy = True
        try:
            # First, because a rank that has a problem reads weights with the others all the same, up to this boundary.
            self.boundary = max(self.tower.boundary(), self.min_boundary)
            self._pass = self._plan(args, kwargs) if self._joint is None else self._plan_together(args, kwargs)
        except OffloadError:
            self._end_pass()
            raise
        except Exception as error:  # an error of the cache must not end the run, unless weights are missing
            self._end_pass()
            self._need_weights()
            self.switch_off(reason_of(error))
        finally:
            self._busy = False

    def _plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PassState | None:
        """Decide and act; returns the pass if there is something to do at its end."""
        began = time.perf_counter()
        facts, call = self._call_facts(args, kwargs)
        decision, state = decide_call(facts), None
        if decision is None and call is not None:
            # Known from here on, so that the pass is closed whatever goes wrong.
            self._pass = state = self._facts.identify(self.boundary, call, began)
            self.known, self.batch_size = state.known, call.size
            if self.offload is not None and self.offload.boundary not in (0, state.known.boundary):
                self._need_weights()
            if self.takes_over is not None:
                self._need_weights()
                self.takes_over(state)
                return state
            decision = self._act(state, self._facts.of_prefix(state))
        self.decision = decision
        if decision is None or decision.outcome is Outcome.LEAVE_ALONE:
            self._need_weights()
            return None
        if decision.outcome is Outcome.SWITCH_OFF:
            raise Unsupported(decision.reason)
        if state is not None and state.too_slow is not None:
            self.switch_off(state.too_slow, is_fault=False)  # from the next pass on
        return state

    def _plan_together(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PassState | None:
        """Decide with all other ranks, and act: each of them does what any rank needs."""
        assert self._joint is not None
        decision, state = self._joint.decide(
            lambda: self._own_decision(args, kwargs), lambda: self.entries.read_weights(self.boundary)
        )
        self.decision = decision
        if decision.outcome is Outcome.SWITCH_OFF:
            self._switch_off_now(*self._joint.reason_of_all(decision))
            return None
        if decision.outcome is Outcome.LEAVE_ALONE or state is None:
            return None
        self._pass = state  # known from here on, so that the pass is closed whatever goes wrong
        self.known, self.batch_size = state.known, state.call.size
        blank = partial(self.executor.skip_blank, state) if decision.outcome is Outcome.SKIP else None
        self._joint.carry_out(state, partial(self._carry_out, state, decision.outcome), blank)
        return state

    def _own_decision(self, args: Any, kwargs: dict[str, Any]) -> tuple[Decision | None, PassState | None]:
        """Decide as if there were only this rank; ``None`` if weights have to be read first."""
        began = time.perf_counter()
        facts, call = self._call_facts(args, kwargs)
        decision = decide_call(facts)
        if decision is not None or call is None:
            return decision, None
        if self.entries.needs_weights(self.boundary):
            return None, None
        state = self._facts.identify(self.boundary, call, began)
        return decide_prefix(without_own_passes(self._facts.of_prefix(state))), state

    def _call_facts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[CallFacts, Call | None]:
        self.is_outdated = self.is_outdated or not self._structure.is_same()
        if self.is_outdated or not self.boundary:
            return CallFacts(self.boundary, self.is_outdated), None
        return self._facts.of_call(self.boundary, args, kwargs, [tower.executor for tower in self._towers])

    def _act(self, state: PassState, facts: PrefixFacts) -> Decision:
        """Do what the facts call for. A failed attempt is a new fact, with which the decision is made again."""
        decision = decide_prefix(facts)
        while not self._carry_out(state, decision.outcome):
            facts = after_failure(facts, decision.outcome)
            decision = decide_prefix(facts)
        return decision

    def _carry_out(self, state: PassState, outcome: Outcome) -> bool:
        if outcome is not Outcome.SKIP or state.missing:
            self._need_weights()
        if outcome is Outcome.SKIP:
            state.checks_padding = state.checks_padding and state.known.padding_check_is_due
            return self.executor.skip(state)
        if outcome is Outcome.CHECK_FEW_THEN_SKIP:
            return self.executor.check_few(state) and self.executor.skip(state)
        if outcome is Outcome.SKIP_FROM_LOWER:
            return self.executor.skip_from_lower(state)
        if outcome in (Outcome.RUN_AND_STORE, Outcome.RUN_AND_COMPARE):
            self.executor.run(state)
        return True

    def keys_of(self, tensor: Tensor) -> Sequence[bytes] | None:
        """Return the keys of the samples that a tensor was computed from, if a tower has returned it in this step.

        Args:
            tensor: Any tensor.
        """
        return next((keys for t in self._towers if (keys := t.upstream_keys.keys_of(tensor)) is not None), None)

    # -------------------------------------------------------------------------------------------- after the pass

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        state = self._pass
        if state is None or self._busy:
            return None
        self._end_pass()
        if output is None:
            failed_skip.annotate(state, sys.exc_info()[1])
            return None
        self._busy = True
        try:
            failed_here = self._has_failed(state, output)
            failed = failed_here if self._joint is None else self._joint.has_failed(state, failed_here)
            return self._rerun(state, failed_here) if failed else self._finish(state, output)
        finally:
            self._busy = False

    def _finish(self, state: PassState, output: Any) -> None:
        try:
            if state.recorder is not None and (slow := self.executor.finish(state, output)) is not None:
                self.switch_off(slow, is_fault=False)
            if state.skipped is not None:
                self._facts.remember_generation(state, output)
            if len(self._towers) > 1:
                self.upstream_keys.remember(state, output)
        except Exception as error:
            self.switch_off(reason_of(error))

    def _has_failed(self, state: PassState, output: Any) -> bool:
        try:
            return failed_skip.has_failed(state, output)
        except Exception as error:  # an output that cannot be inspected
            self.switch_off(reason_of(error))
            return state.skipped is not None

    def _rerun(self, state: PassState, failed_here: bool) -> Any:
        self._need_weights()
        output, problem = failed_skip.rerun(self.tower, state, failed_here)
        if problem is not None:
            self.switch_off(problem)
        else:
            own = "the output contained NaN, so the pass was run again; the NaN is the model's own"
            reason = own if failed_here else f"{ELSEWHERE} had to run the pass again"
            self.decision = Decision(Outcome.RUN_AND_COMPARE, reason)
        return output

    def _end_pass(self) -> None:
        state, self._pass = self._pass, None
        if state is not None:
            state.close()
