"""Layers that the module froze before the fit stay frozen, with a message, unless ``unfreeze_all`` is set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys import Recorder, Toy, fit, layer_of, make

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.errors import ConfigurationError


def frozen_backbone() -> Toy:
    module = make()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(layer_of(name) == "head")
    return module


def given(module: torch.nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


SCHEDULES = {
    "gradual": lambda **options: GradualUnfreezing(verbose=False, **options),
    "phases": lambda **options: PhasedFineTuning(
        [Phase("head", EpochTrigger(1)), Phase("2:,head", EpochTrigger(1)), Phase("all")], verbose=False, **options
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_it_stays_frozen_and_that_is_said_with_the_way_out(schedule: Any) -> None:
    module, recorder = frozen_backbone(), Recorder()
    with pytest.warns(UserWarning, match=r"leaves .* frozen in every phase: Toy had set .*unfreeze_all=True"):
        fit(module, schedule(), recorder, max_epochs=3)
    assert all(trains == {"head"} for trains in recorder.trains)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_unfreeze_all_trains_as_a_module_that_froze_nothing(schedule: Any) -> None:
    runs = []
    for module, options in ((make(), {}), (frozen_backbone(), {"unfreeze_all": True})):
        before, recorder = given(module), Recorder()
        fit(module, schedule(**options), recorder, max_epochs=6)
        assert given(module) == before
        runs.append((recorder.trains, dict(module.state_dict())))
    assert runs[0][0] == runs[1][0]
    torch.testing.assert_close(runs[1][1], runs[0][1], rtol=0, atol=0)


def test_another_callback_still_freezes_what_the_module_froze() -> None:
    module, recorder = frozen_backbone(), Recorder()
    schedule = GradualUnfreezing(unfreeze_all=True, verbose=False)
    fit(module, schedule, LayerFreezing("embeddings,:2", verbose=False), recorder, max_epochs=4)
    assert recorder.trains[-1] == {"2", "3", "head"}


def test_nothing_is_said_of_a_module_that_froze_nothing(recwarn: pytest.WarningsRecorder) -> None:
    fit(make(), GradualUnfreezing(verbose=False), max_epochs=6)
    assert not [w for w in recwarn if "unfreeze_all" in str(w.message)]


def test_a_phase_without_anything_to_train_names_the_way_out() -> None:
    module = make().requires_grad_(False)
    module.encoder.layers[0].requires_grad_(True)
    with pytest.raises(ConfigurationError, match=r"train nothing.*start= or train=, or set unfreeze_all=True"):
        fit(module, GradualUnfreezing(verbose=False), max_epochs=2)
