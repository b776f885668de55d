from __future__ import annotations

import copy

import pytest
from torch import nn

from lightning_freeze import (
    EpochTrigger,
    GradualUnfreezing,
    LayerFreezing,
    LayerStack,
    Phase,
    PhasedFineTuning,
    ULMFiT,
)
from lightning_freeze.advice.candidates import FULL, Candidate, build, candidates_for
from lightning_freeze.advice.measures.gradients import LayerGradients
from lightning_freeze.advice.measures.probes import ProbeScore
from lightning_freeze.advice.measuring import DepthScore, Measurements
from lightning_freeze.schedule.triggers import StepTrigger


class Encoder(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(blocks))
        self.head = nn.Linear(4, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = self.embeddings(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def probes(*means: float, error: float = 0.01) -> Measurements:
    names = ["embeddings", *map(str, range(len(means) - 1))]
    return Measurements(tuple(DepthScore(n, ProbeScore(m, error), 0.0) for n, m in zip(names, means, strict=True)))


def plans(found: Measurements, blocks: int = 8, steps: int = 100, rate: float = 5e-5) -> dict[str, Candidate]:
    return {each.name: each for each in candidates_for(LayerStack(Encoder(blocks)), found, steps, rate)}


def test_without_measurements_the_plans_are_the_usual_ones() -> None:
    assert list(plans(Measurements())) == [
        *(FULL, "freeze embeddings,:2", "freeze embeddings,:4", "freeze embeddings,:6"),
        *("head only", "head, then all", "gradual unfreezing", "discriminative rates"),
    ]


def test_layers_above_the_best_probe_are_a_plan_of_their_own() -> None:
    found = plans(probes(0.5, 0.6, 0.7, 0.7, 0.7, 0.8, 0.78, 0.77, 0.7))
    assert "freeze embeddings,:5" in found
    assert "block 4" in found["freeze embeddings,:5"].why
    assert "freeze embeddings,:6" not in found


def test_the_lowest_of_equally_good_depths_counts() -> None:
    depth = probes(0.5, 0.795, 0.8, 0.8, error=0.01).best_depth()
    assert depth is not None
    assert depth.name == "0"


def test_first_layers_train_where_their_gradients_are_the_largest() -> None:
    norms = {str(i): LayerGradients(1.0 / (i + 1), 1.0) for i in range(6)}
    assert "freeze 2:" in plans(Measurements(layers=norms), blocks=6)
    upside_down = {str(i): LayerGradients(float(i + 1), 1.0) for i in range(6)}
    assert "freeze 2:" not in plans(Measurements(layers=upside_down), blocks=6)


def test_a_head_alone_trains_at_the_rate_of_a_new_network() -> None:
    (callback,) = plans(Measurements())["head only"].build()
    assert isinstance(callback, PhasedFineTuning)
    assert [(phase.train, phase.lr) for phase in callback.phases] == [("head", 20.0)]
    (callback,) = plans(Measurements(), rate=0.01)["head only"].build()
    assert isinstance(callback, PhasedFineTuning)
    assert callback.phases[0].lr == 1.0, "never slower than the user's rate"


def test_short_runs_have_shorter_phases() -> None:
    found = plans(Measurements(), steps=100)
    (whole,), (short,) = (found["head, then all"].at(share).build() for share in (1.0, 0.2))
    assert isinstance(whole, PhasedFineTuning)
    assert isinstance(short, PhasedFineTuning)
    assert [phase.until for phase in whole.phases] == [StepTrigger(25), None]
    assert [phase.until for phase in short.phases] == [StepTrigger(5), None]
    (gradual,) = found["gradual unfreezing"].build()
    assert isinstance(gradual, GradualUnfreezing)
    assert (gradual.trigger, gradual.layers_per_phase) == (StepTrigger(25), 3)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_small_models_have_fewer_plans_and_each_is_different(blocks: int) -> None:
    found = candidates_for(LayerStack(Encoder(blocks)), Measurements(), 10, 1e-3)
    names = [each.name for each in found]
    assert len(set(names)) == len(names)
    assert len({repr(each.entries) for each in found}) == len(names)


def test_an_entry_becomes_what_it_describes() -> None:
    callback = build({"class_path": "LayerFreezing", "init_args": {"layers": "75%"}})
    assert isinstance(callback, LayerFreezing)
    cached = Candidate("x", "y").with_cache("folder").build()
    assert cached[0].verbose is False  # type: ignore[attr-defined]


def test_triggers_of_callbacks_that_are_made_are_scaled_wherever_they_stand() -> None:
    one = StepTrigger(20)
    own = [
        PhasedFineTuning([Phase("head", one), Phase("all", one | EpochTrigger(3)), Phase("head")]),
        GradualUnfreezing(StepTrigger(3)),
        ULMFiT(EpochTrigger(2)),
    ]
    candidate = Candidate("as configured", "", (), lambda: copy.deepcopy(own))
    phased, gradual, ulmfit = candidate.at(0.1).build()
    assert [str(phase.until) for phase in phased.phases] == [
        "StepTrigger(2)",
        "StepTrigger(2) | EpochTrigger(3)",
        "None",
    ]
    assert [phase.until for phase in phased.schedule.plan] == [phase.until for phase in phased.phases]
    assert gradual.trigger == StepTrigger(1)
    assert ulmfit.trigger == EpochTrigger(2)
    assert (one.n, own[1].trigger.n) == (20, 3), "those of the user stay as they are"
    assert candidate.at(1.0).build()[1].trigger == StepTrigger(3)
