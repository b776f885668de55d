"""One tower in a running fit: at each forward pass, gathers the facts, decides, and carries the decision out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_freeze.cache.checks.eligibility import (
    Eligibility,
    Generation,
    Hook,
    can_check_padding,
    is_recomputing,
)
from lightning_freeze.cache.checks.few_samples import few_samples_suffice
from lightning_freeze.cache.checks.repeat_limit import RepeatLimit
from lightning_freeze.cache.decision import (
    CallFacts,
    Decision,
    Outcome,
    PrefixFacts,
    after_failure,
    decide_call,
    decide_prefix,
)
from lightning_freeze.cache.execution import PrefixExecutor
from lightning_freeze.cache.identity.cached_towers import CachedTower, ModuleStructure
from lightning_freeze.cache.identity.keys import Call, CallReader, Unsupported, reason_of
from lightning_freeze.cache.prefix.entries import PrefixEntries
from lightning_freeze.cache.prefix.pass_state import KnownPrefix, PassState, Tally
from lightning_freeze.cache.upstream_keys import UpstreamKeys


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
    """

    def __init__(
        self,
        tower: CachedTower,
        entries: PrefixEntries,
        verify: int,
        towers: list[FrozenPrefix],
        on_switch_off: Callable[[FrozenPrefix, str, bool], None],
        tally: Tally,
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
        self.boundary = 0
        self.min_boundary = 0
        self.upstream_keys = UpstreamKeys(tower)
        self.executor = PrefixExecutor(tower, entries, self.tally, self._keys_of)
        self._verify = verify
        self._towers = towers
        self._on_switch_off = on_switch_off
        self._reader = CallReader(tower.entry)
        self._pass: PassState | None = None
        self._busy = False
        self._changes = RepeatLimit()
        self._generation = Generation(tower.entry, self._reader.names)
        self._eligibility = Eligibility(tower)
        self._structure = ModuleStructure(tower.entry)
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
        if self.off is None:
            self.off = reason
            self.decision = Decision(Outcome.SWITCH_OFF, reason)
            self._on_switch_off(self, reason, is_fault)

    # ------------------------------------------------------------------------------------------- before the pass

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.off is not None or self._busy or torch._C._is_tracing():
            return
        self._end_pass()
        self.upstream_keys.forget()
        self.calls += 1
        self._busy = True
        try:
            self._pass = self._plan(args, kwargs)
        except Exception as error:  # an error of the cache must not end the run
            self._end_pass()
            self.switch_off(reason_of(error))
        finally:
            self._busy = False

    def _plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PassState | None:
        """Decide and act; returns the pass if there is something to do at its end."""
        began = time.perf_counter()
        facts, call = self._call_facts(args, kwargs)
        decision, state = decide_call(facts), None
        if decision is None and call is not None:
            state = self._identify(call, began)
            decision = self._act(state, self._prefix_facts(state))
        self.decision = decision
        if decision is None or decision.outcome is Outcome.LEAVE_ALONE:
            return None
        if decision.outcome is Outcome.SWITCH_OFF:
            raise Unsupported(decision.reason)
        if state is not None and state.too_slow is not None:
            self.switch_off(state.too_slow, is_fault=False)  # from the next pass on
        return state

    def _call_facts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[CallFacts, Call | None]:
        """Gather facts until one of them decides; the call is read only if none before that does."""
        self.is_outdated = self.is_outdated or not self._structure.is_same()
        self.boundary = max(self.tower.boundary(), self.min_boundary)
        if self.is_outdated or not self.boundary:
            return CallFacts(self.boundary, self.is_outdated), None
        if self._generation.continues(args, kwargs):
            return CallFacts(self.boundary, continues_generation=True), None
        named = self._reader.named(args, kwargs)
        self._eligibility.check(self.boundary, named)
        # Keys and values are read in too many ways to find out what would be missing.
        has_observers, returns_keys = self._eligibility.has_observers, named.get("use_cache") is True
        if has_observers or returns_keys:
            return CallFacts(self.boundary, has_observers=has_observers, returns_keys=returns_keys), None
        call = self._reader.read(args, kwargs)
        has_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors.values())
        probes_padding = has_gradient and any(tower.executor.is_probing for tower in self._towers)
        return CallFacts(
            self.boundary, is_empty=not call.size, has_gradient=has_gradient, probes_padding=probes_padding
        ), call

    def _identify(self, call: Call, began: float) -> PassState:
        """Begin a pass: identify its prefix. From here on it is closed whatever goes wrong."""
        mode = self._eligibility.mode
        namespace, known = self.entries.identify(self.boundary, mode, call)
        self.known, self.batch_size = known, call.size
        self._pass = PassState(call, known, namespace, mode=mode, began=began)
        self._pass.training_modules = self._eligibility.training_modules
        return self._pass

    def _prefix_facts(self, state: PassState) -> PrefixFacts:
        """Look the samples up and gather the facts; stops before that if the decision does not need it."""
        call, known = state.call, state.known
        self._changes.record(not known.is_checked)
        is_recomputed = is_recomputing()
        # Only with gradients does it show whether something that trains feeds into the prefix. A pass that a backward
        # pass repeats has gradients where the first one had none.
        is_grad_checked = known.checked_with_grad or not torch.is_grad_enabled() or is_recomputed
        facts = PrefixFacts(
            call.size,
            keeps_changing=self._changes.is_exceeded,
            is_checked=known.is_checked,
            conditions_checked=is_grad_checked and state.training_modules <= known.training_modules,
            independence_checked=known.independence_checked,
            has_same_layout=call.has_same_layout(known.per_sample),
            is_recomputed=is_recomputed,
        )
        needs_check = facts.needs_check
        if facts.keeps_changing or not (needs_check or facts.has_same_layout):
            return facts
        # Only a backward pass can show whether anything reads the positions of padding.
        is_padded = call.has_padding
        checks_padding = is_padded and known.trims_padding and can_check_padding() and not is_recomputed
        known.padded_passes += checks_padding
        state.checks_padding = checks_padding
        state.trims_padding = known.trims_padding and (not is_padded or checks_padding)
        state.keys = state.find_keys(self._keys_of)
        state.rows = self.entries.read(state, state.namespace, known)
        found, has_grad = call.size - len(state.missing), torch.is_grad_enabled()
        facts = facts._replace(
            found=found,
            checks_padding=checks_padding,
            padding_dry_run=known.dry_run_trimmed,
            padding_unread=known.padding_unread,
            is_verified=known.verified >= self._verify,
            few_suffice=needs_check and few_samples_suffice(state),
            mixing=known.mixing,
            is_divisible=known.mixing is None,
            recurs=known.mixing is None
            or not has_grad
            or known.recurs(found, call.size, self.entries.expected_samples),
            has_lower=not found and self.entries.has_lower(self.boundary),
        )
        state.needs_dry_run = facts.needs_dry_run
        return facts

    def _act(self, state: PassState, facts: PrefixFacts) -> Decision:
        """Do what the facts call for. A failed attempt is a new fact, with which the decision is made again."""
        decision = decide_prefix(facts)
        while not self._carry_out(state, decision.outcome):
            facts = after_failure(facts, decision.outcome)
            decision = decide_prefix(facts)
        return decision

    def _carry_out(self, state: PassState, outcome: Outcome) -> bool:
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

    def _keys_of(self, tensor: Tensor) -> Sequence[bytes] | None:
        return next((keys for t in self._towers if (keys := t.upstream_keys.keys_of(tensor)) is not None), None)

    # -------------------------------------------------------------------------------------------- after the pass

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        state = self._pass
        if state is None or self._busy:
            return None
        self._end_pass()
        if output is None:
            self.executor.annotate(state, sys.exc_info()[1])
            return None
        self._busy = True
        try:
            # An error while the pass runs again is the module's own, and is raised.
            return self._rerun(state) if self._has_failed(state, output) else self._finish(state, output)
        finally:
            self._busy = False

    def _finish(self, state: PassState, output: Any) -> None:
        try:
            if state.recorder is not None and (slow := self.executor.finish(state, output)) is not None:
                self.switch_off(slow, is_fault=False)
            if state.skipped is not None:
                self._generation.remember(output, state.call.args, state.call.kwargs)
            if len(self._towers) > 1:
                self.upstream_keys.remember(state, output)
        except Exception as error:
            self.switch_off(reason_of(error))

    def _has_failed(self, state: PassState, output: Any) -> bool:
        try:
            return self.executor.has_failed(state, output)
        except Exception as error:  # an output that cannot be inspected
            self.switch_off(reason_of(error))
            return state.skipped is not None

    def _rerun(self, state: PassState) -> Any:
        output = self.executor.rerun(state)
        try:
            problem = self.executor.problem(state, output)
        except Exception as error:
            problem = reason_of(error)
        if problem is not None:
            self.switch_off(problem)
        else:
            reason = "the output contained NaN, so the pass was run again; the NaN is the model's own"
            self.decision = Decision(Outcome.RUN_AND_COMPARE, reason)
        return output

    def _end_pass(self) -> None:
        state, self._pass = self._pass, None
        if state is not None:
            state.close()
