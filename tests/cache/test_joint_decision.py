"""What the ranks of a sharded module decide together, where they come to different conclusions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import make

from lightning_freeze.cache.cached_module import CachedModule
from lightning_freeze.cache.decision import IDENTIFY, Decision, Outcome
from lightning_freeze.cache.joint_decision import JointDecision
from lightning_freeze.cache.storage import open_storage


class OtherRank:
    """Ranks of which another one has reported a value."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.exchanges = 0

    def highest(self, value: int) -> int:
        self.exchanges += 1
        return max(value, self.value)

    def first_text(self, text: str | None) -> str | None:
        return text or "1the reason of the other rank"


def a_pass(skipped: object = "blocks") -> Any:
    return SimpleNamespace(skipped=skipped, too_slow=None)


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("elsewhere", [0, 1])
def test_a_pass_that_fails_on_any_rank_is_run_again_on_all(here: bool, elsewhere: int) -> None:
    ranks: Any = OtherRank(elsewhere)
    assert JointDecision(ranks).has_failed(a_pass(), here) is (here or bool(elsewhere))
    assert ranks.exchanges == 1


def test_nothing_is_exchanged_after_a_pass_that_has_not_skipped() -> None:
    ranks: Any = OtherRank(1)
    assert not JointDecision(ranks).has_failed(a_pass(skipped=None), False)
    assert ranks.exchanges == 0


def test_a_rank_that_cannot_read_skips_blank_and_tells_the_others_later() -> None:
    ranks: Any = OtherRank(0)
    joint, did = JointDecision(ranks), []

    def run() -> None:
        raise RuntimeError("no such file")

    joint.carry_out(a_pass(), run, lambda: did.append("blank"))
    assert did == ["blank"]
    assert joint.problem is not None and "no such file" in joint.problem[0] and joint.problem[1]


def test_a_pass_that_was_too_slow_is_no_fault() -> None:
    ranks: Any = OtherRank(0)
    joint, state = JointDecision(ranks), a_pass()
    state.too_slow = "reading takes longer"
    joint.carry_out(state, lambda: None, None)
    assert joint.problem == ("reading takes longer", False)


@pytest.mark.parametrize("what", ["needs it (all 4 samples were found)", "cannot use it"])
def test_a_rank_that_only_follows_another_one_tells_no_reason(what: str) -> None:
    ranks: Any = OtherRank(0)
    told = JointDecision(ranks).reason_of_all(Decision(Outcome.SWITCH_OFF, f"another rank {what}"))
    assert told == ("the reason of the other rank", True)


def test_a_rank_tells_its_own_reason() -> None:
    ranks: Any = OtherRank(0)
    assert JointDecision(ranks).reason_of_all(Decision(Outcome.SWITCH_OFF, "mine")) == ("mine", True)


class NeedsWeights(OtherRank):
    """Another rank has to read weights, then goes on."""

    def highest(self, value: int) -> int:
        self.value = 0 if self.exchanges else IDENTIFY
        return super().highest(value)


def test_a_rank_with_a_problem_reads_the_weights_of_the_present_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks: Any = NeedsWeights(0)
    module, storage = make(), open_storage(None, None, None, None, None, None, 1, True)
    (prefix,) = CachedModule(module, None, storage, {}, lambda *_: None, ranks).prefixes
    read: list[int] = []
    monkeypatch.setattr(prefix.entries, "read_weights", read.append)
    assert prefix._joint is not None
    for frozen in (3, 2):  # as in two phases
        for part in (module.encoder.embeddings, *module.encoder.layers):
            part.requires_grad_(part not in (module.encoder.embeddings, *module.encoder.layers[:frozen]))
        prefix.off, ranks.exchanges = None, 0
        prefix._joint.problem = ("reading takes longer", False)
        module(torch.zeros(2, 5, dtype=torch.long))
    assert read == [3, 2] and prefix.off == "reading takes longer"
