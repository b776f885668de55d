import math

import pytest

from lightning_freeze import AnyTrigger, EpochTrigger, PlateauTrigger, StepTrigger
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.schedule.triggers import Clock, Pace, Trigger


def plateau_after(trigger, values):
    """Number of validations after which the trigger fires, None if it does not."""
    state = trigger.start(Clock(0, 0))
    for number, value in enumerate(values, start=1):
        state = trigger.observe(state, {"val_loss": value})
        if trigger.fired(state, Clock(0, 0)):
            return number
    return None


def test_epochs_and_steps_count_from_the_start_of_the_phase():
    epochs, steps = EpochTrigger(2), StepTrigger(5)
    in_epochs, in_steps = epochs.start(Clock(3, 30)), steps.start(Clock(3, 30))
    assert not epochs.fired(in_epochs, Clock(4, 45))
    assert epochs.fired(in_epochs, Clock(5, 50))
    assert not steps.fired(in_steps, Clock(3, 34))
    assert steps.fired(in_steps, Clock(3, 35))


@pytest.mark.parametrize(
    ("patience", "values", "expected"),
    [
        (2, [1.0, 0.9, 0.9, 0.95, 0.9], 5),  # two set and improve the best, then three in a row do not
        (2, [1.0, 1.1, 1.2, 0.9, 1.0, 1.0], None),  # an improvement restarts the count
        (2, [1.0, 1.1, 1.2, 0.9, 1.0, 1.0, 1.0], 7),
        (0, [1.0, 1.0], 2),  # equal is no improvement
        (0, [1.0], None),  # the first validation only sets the best
        (1, [math.nan, math.inf], 2),  # never counted as an improvement
        (1, [1.0, -math.inf, 0.5, 0.6], None),
    ],
)
def test_a_plateau_is_patience_plus_one_validations_without_improvement(patience, values, expected):
    assert plateau_after(PlateauTrigger("val_loss", patience=patience), values) == expected


def test_a_plateau_respects_mode_and_min_delta():
    assert plateau_after(PlateauTrigger("val_loss", mode="max", patience=0), [0.5, 0.6, 0.7, 0.7]) == 4
    assert plateau_after(PlateauTrigger("val_loss", patience=0, min_delta=0.1), [1.0, 0.95]) == 2


def test_any_trigger_fires_with_the_first_and_is_flat():
    trigger = EpochTrigger(5) | PlateauTrigger("val_loss", patience=0) | StepTrigger(100)
    assert isinstance(trigger, AnyTrigger)
    assert len(trigger.triggers) == 3
    state = trigger.start(Clock(0, 0))
    assert not trigger.fired(state, Clock(4, 99))
    assert trigger.fired(state, Clock(5, 50))
    assert trigger.fired(state, Clock(1, 100))
    state = trigger.observe(trigger.observe(state, {"val_loss": 1.0}), {"val_loss": 1.0})
    assert trigger.fired(state, Clock(1, 10))
    assert trigger.monitors == (("val_loss", "min"),)


def test_the_earliest_end_of_a_phase():
    pace = Pace(batches_per_epoch=10, batches_per_validation=5)
    assert EpochTrigger(2).earliest(0, pace) == 20
    assert EpochTrigger(2).earliest(13, pace) == 30
    assert StepTrigger(7).earliest(13, pace) == 20
    assert PlateauTrigger("val_loss", patience=1).earliest(10, pace) == 25
    assert (EpochTrigger(9) | StepTrigger(3)).earliest(0, pace) == 3
    assert StepTrigger(7).earliest(0, pace._replace(batches_per_step=4)) == 24  # three steps in an epoch of ten batches


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: EpochTrigger(0), "n=0"),
        (lambda: EpochTrigger(-1), "n=-1"),
        (lambda: EpochTrigger(1.5), "n=1.5"),
        (lambda: StepTrigger(0), "n=0"),
        (lambda: StepTrigger(True), "n=True"),
        (lambda: PlateauTrigger(""), "monitor=''"),
        (lambda: PlateauTrigger("a", mode="mim"), "mode='mim'"),
        (lambda: PlateauTrigger("a", patience=-1), "patience=-1"),
        (lambda: PlateauTrigger("a", min_delta=-0.1), "min_delta=-0.1"),
        (lambda: PlateauTrigger("a", min_delta=math.nan), "min_delta=nan"),
        (lambda: PlateauTrigger("a", min_delta="0.1"), "min_delta='0.1'"),
        (lambda: AnyTrigger([]), "at least one"),
        (lambda: AnyTrigger(EpochTrigger(1)), "expected a list of triggers"),
        (lambda: AnyTrigger([3]), "3"),
    ],
)
def test_wrong_values_are_refused_by_name(make, named):
    with pytest.raises(ConfigurationError, match=named.replace("(", r"\(")):
        make()


def test_triggers_compare_by_value_and_say_what_they_are():
    assert EpochTrigger(2) == EpochTrigger(2) != StepTrigger(2)
    assert repr(EpochTrigger(5) | PlateauTrigger("a")) == (
        "EpochTrigger(5) | PlateauTrigger(monitor='a', mode='min', patience=2, min_delta=0.0)"
    )
    assert len({EpochTrigger(1), EpochTrigger(1)}) == 1


def test_a_trigger_says_why_the_phase_is_over():
    begun, now = Clock(3, 30), Clock(5, 50)
    epochs, steps, plateau = EpochTrigger(2), StepTrigger(1), PlateauTrigger("val_loss", patience=0)
    assert epochs.reason(epochs.start(begun), now) == "2 epochs had passed"
    assert steps.reason(steps.start(Clock(5, 49)), now) == "1 optimizer step had passed"
    state = plateau.start(begun)
    for value in (0.5, 0.6):
        state = plateau.observe(state, {"val_loss": value})
    assert plateau.reason(state, now) == "val_loss had not improved on 0.5 for 1 validation"
    either = EpochTrigger(9) | steps | plateau
    state = either.observe(either.observe(either.start(begun), {"val_loss": 0.5}), {"val_loss": 0.6})
    assert either.reason(state, now) == (
        "20 optimizer steps had passed and val_loss had not improved on 0.5 for 1 validation"
    )


def test_a_trigger_of_the_user_is_named():
    class Never(EpochTrigger):
        reason = Trigger.reason

    assert Never(3).reason({}, Clock(0, 0)) == "EpochTrigger(3) had fired"
