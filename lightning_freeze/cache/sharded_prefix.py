"""One tower of a sharded model: all ranks run the same layers, so that they decide together."""

from __future__ import annotations

import time
from typing import Any

from lightning_freeze.cache.decision import (
    IDENTIFY,
    Decision,
    Outcome,
    announcement,
    decide_call,
    decide_prefix,
    in_lockstep,
    without_own_passes,
)
from lightning_freeze.cache.frozen_prefix import FrozenPrefix
from lightning_freeze.cache.identity.unsupported import reason_of
from lightning_freeze.cache.prefix.pass_state import PassState
from lightning_freeze.distributed.ranks import Ranks


class ShardedPrefix(FrozenPrefix):
    """Runs or skips the frozen prefix of one tower on all ranks alike.

    Takes the arguments of :class:`FrozenPrefix`.
    """

    _ranks: Ranks
    #: Why this rank has to switch off, and whether that is a fault; the others hear of it in the next pass.
    _problem: tuple[str, bool] | None = None

    def switch_off(self, reason: str, is_fault: bool = True) -> None:
        """Do nothing from now on, on all ranks: in a running pass, the others are told at the next one.

        Args:
            reason: Why.
            is_fault: Whether the cache cannot be used, rather than does not pay.
        """
        if self._busy:  # one pass runs, in which ranks may come to different conclusions
            self._problem = self._problem or (reason, is_fault)
        else:
            super().switch_off(reason, is_fault)

    def _plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PassState | None:
        """Decide with all other ranks, and act: each of them does what any rank needs."""
        decision, state = self._own_decision(args, kwargs)
        needed = self._ranks.highest(IDENTIFY if decision is None else announcement(decision))
        if needed == IDENTIFY:
            try:
                self.entries.read_weights(self.boundary)
            except Exception as error:
                self._problem = self._problem or (reason_of(error), True)
            decision, state = self._own_decision(args, kwargs)
            if decision is None:
                decision = Decision(Outcome.SWITCH_OFF, "its frozen layers change from one step to the next")
            needed = self._ranks.highest(announcement(decision))
        assert decision is not None
        self.decision = decision = in_lockstep(decision, needed)
        if decision.outcome is Outcome.SWITCH_OFF:
            self._switch_off_together(decision)
            return None
        if decision.outcome is Outcome.LEAVE_ALONE or state is None:
            return None
        self._pass = state  # known from here on, so that the pass is closed whatever goes wrong
        self.known, self.batch_size = state.known, state.call.size
        try:
            self._carry_out(state, decision.outcome)
        except Exception as error:
            self._problem = (reason_of(error), True)
            if decision.outcome is Outcome.SKIP:
                self.executor.skip_blank(state)
        if state.too_slow is not None:
            self._problem = (state.too_slow, False)
        return state

    def _own_decision(self, args: Any, kwargs: dict[str, Any]) -> tuple[Decision | None, PassState | None]:
        """Decide as if there were only this rank; ``None`` if weights have to be read first."""
        if self._problem is not None:
            return Decision(Outcome.SWITCH_OFF, self._problem[0]), None
        began = time.perf_counter()
        try:
            facts, call = self._call_facts(args, kwargs)
            decision, state = decide_call(facts), None
            if decision is None and call is not None:
                if self.entries.needs_weights(self.boundary):
                    return None, None
                state = self._facts.identify(self.boundary, call, began)
                decision = decide_prefix(without_own_passes(self._facts.of_prefix(state)))
        except Exception as error:  # an error of the cache must not end the run
            decision, state = Decision(Outcome.SWITCH_OFF, reason_of(error)), None
        assert decision is not None
        return decision, state

    def _switch_off_together(self, decision: Decision) -> None:
        """Switch off with the reason of the first rank that has one; the first rank reports it for all of them."""
        is_fault = self._problem is None or self._problem[1]
        own = decision.reason if not decision.reason.startswith("another rank needs it") else None
        told = self._ranks.first_text(None if own is None else f"{int(is_fault)}{own}") or "1unknown"
        self.off = told[1:]
        self.decision = Decision(Outcome.SWITCH_OFF, self.off)
        self._on_switch_off(self, self.off, told[0] == "1")

    def _has_failed(self, state: PassState, output: Any) -> bool:
        has_failed = super()._has_failed(state, output)
        return has_failed if state.skipped is None else bool(self._ranks.highest(has_failed))
