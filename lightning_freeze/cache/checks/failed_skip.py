"""A pass that has skipped layers: whether that went wrong, and what to do then."""

from __future__ import annotations

from typing import Any

from lightning_freeze.cache.checks import self_check
from lightning_freeze.cache.identity.cached_towers import CachedTower
from lightning_freeze.cache.identity.unsupported import reason_of
from lightning_freeze.cache.prefix.pass_state import PassState


def has_failed(state: PassState, output: Any) -> bool:
    """Whether skipping went wrong: blocks were called otherwise than before, or the output contains NaN.

    Skipped layers return NaN, which reaches the output if anything reads it.

    Args:
        state: The pass.
        output: What the tower returned.
    """
    if state.skipped is None:
        return False
    if state.skipped.was_called_differently or not state.skipped.reached_boundary:
        return True
    return not state.known.has_own_nan and self_check.contains_nan(output)


def rerun(tower: CachedTower, state: PassState, failed_here: bool) -> tuple[Any, str | None]:
    """Run a pass that has skipped again without skipping. An error in it is the module's own, and is raised.

    Args:
        tower: The tower.
        state: The pass.
        failed_here: Whether it has failed on this rank, rather than on another one alone.

    Returns:
        What the tower returns without skipping, and what went wrong here; ``None`` if the NaN was the module's own.
    """
    assert state.random_state is not None
    state.random_state.restore()
    output = tower.entry.forward(*state.call.args, **state.call.kwargs)
    if not failed_here:
        return output, None
    try:
        return output, _problem(state, output)
    except Exception as error:  # an output that cannot be inspected
        return output, reason_of(error)


def _problem(state: PassState, output: Any) -> str | None:
    assert state.skipped is not None
    if state.skipped.was_called_differently:
        return "its blocks were called with other options or arguments than before"
    if not state.skipped.reached_boundary:
        return "its blocks were not run in the order in which they ran before"
    if not self_check.contains_nan(output):
        return "a layer above the frozen ones reads what they compute on the way"
    state.known.has_own_nan = True
    return None


def annotate(state: PassState, error: BaseException | None) -> None:
    """Add a note to an error that has ended a pass, if the NaN of skipped layers may have caused it.

    Args:
        state: The pass.
        error: The error, which is raised in any case.
    """
    if error is not None and state.skipped is not None and hasattr(error, "add_note"):
        error.add_note(
            "FrozenPrefixCache was skipping frozen layers in this forward pass; what it skips returns NaN. If that "
            "made this code fail, fit this module without it."
        )
