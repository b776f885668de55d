"""One decision for all ranks of a sharded module, which must run the same layers."""

from __future__ import annotations

from collections.abc import Callable

from lightning_freeze.cache.decision import IDENTIFY, Decision, Outcome, announcement, in_lockstep
from lightning_freeze.cache.identity.unsupported import ELSEWHERE, reason_of
from lightning_freeze.cache.prefix.pass_state import PassState
from lightning_freeze.distributed.ranks import Ranks

#: What a rank decides by itself, ``None`` if it has to read weights first, and the pass if there is something to do.
Own = tuple[Decision | None, PassState | None]


class JointDecision:
    """Exchanges what each rank would do in a pass; each then does what any of them needs.

    Args:
        ranks: All ranks.

    Attributes:
        problem: Why this rank has to switch off, and whether that is a fault; the others hear of it in the next pass.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.problem: tuple[str, bool] | None = None
        self._ranks = ranks

    def decide(self, own: Callable[[], Own], read_weights: Callable[[], object]) -> tuple[Decision, PassState | None]:
        """Decide; to be called on all ranks.

        Args:
            own: Decides as if there were only this rank.
            read_weights: Reads the weights of the prefix, which takes all ranks.

        Returns:
            The decision, the same on all ranks, and the pass of this rank.
        """
        decision, state = self._own(own)
        needed = self._ranks.highest(IDENTIFY if decision is None else announcement(decision))
        if needed == IDENTIFY:
            try:
                read_weights()
            except Exception as error:
                self.problem = self.problem or (reason_of(error), True)
            decision, state = self._own(own)
            if decision is None:
                decision = Decision(Outcome.SWITCH_OFF, "its frozen layers change from one step to the next")
            needed = self._ranks.highest(announcement(decision))
        assert decision is not None
        return in_lockstep(decision, needed), state

    def carry_out(self, state: PassState, run: Callable[[], object], skip_blank: Callable[[], object] | None) -> None:
        """Do what all ranks do. If this rank cannot, it runs the same layers, and the others hear of it later.

        Args:
            state: The pass.
            run: Does it.
            skip_blank: Skips the prefix without its hidden states; ``None`` if it is not skipped.
        """
        try:
            run()
        except Exception as error:
            self.problem = (reason_of(error), True)
            if skip_blank is not None:
                skip_blank()
        if state.too_slow is not None:
            self.problem = (state.too_slow, False)

    def has_failed(self, state: PassState, has_failed: bool) -> bool:
        """Whether a pass has failed on any rank, so that all of them run it again.

        Args:
            state: The pass.
            has_failed: Whether it has failed on this one.
        """
        return has_failed if state.skipped is None else bool(self._ranks.highest(has_failed))

    def reason_of_all(self, decision: Decision) -> tuple[str, bool]:
        """Return the reason of the first rank that has one to switch off, and whether it is a fault.

        Args:
            decision: The decision to switch off.
        """
        is_fault = self.problem is None or self.problem[1]
        own = decision.reason if not decision.reason.startswith(ELSEWHERE) else None
        told = self._ranks.first_text(None if own is None else f"{int(is_fault)}{own}") or "1unknown"
        return told[1:], told[0] == "1"

    def _own(self, own: Callable[[], Own]) -> Own:
        if self.problem is not None:
            return Decision(Outcome.SWITCH_OFF, self.problem[0]), None
        try:
            return own()
        except Exception as error:  # an error of the cache must not end the run
            return Decision(Outcome.SWITCH_OFF, reason_of(error)), None
