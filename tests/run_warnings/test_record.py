"""The warnings of a fit are listed with their place in it, on rank zero only; a new fit begins a new list."""

import warnings

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from toys import fit, loader, make, trainer

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing
from lightning_freeze.run_warnings.record import RunWarning, warn_in_run, warnings_of


def test_a_warning_is_shown_and_listed_with_its_place():
    with pytest.warns(UserWarning, match="trainable below") as caught:
        the_trainer = fit(make(), LayerFreezing(":2", verbose=False))
    (given,) = warnings_of(the_trainer)
    assert given == RunWarning(0, 0, next(str(w.message) for w in caught if "trainable below" in str(w.message)))
    assert "\n" not in given.message


def test_a_new_fit_of_the_same_trainer_begins_a_new_list():
    callback = GradualUnfreezing(EpochTrigger(3), verbose=False)
    the_trainer = trainer(callback, max_epochs=1)
    with pytest.warns(UserWarning, match="some layers will never train"):
        the_trainer.fit(make(), loader(), loader(2))
    assert len(warnings_of(the_trainer)) == 1
    the_trainer.callbacks.remove(callback)
    the_trainer.callbacks.append(LayerFreezing("embeddings", verbose=False))
    the_trainer.fit(make(), loader(), loader(2))
    assert warnings_of(the_trainer) == []


def test_a_correct_run_has_none():
    assert warnings_of(fit(make(), LayerFreezing("embeddings", verbose=False))) == []


def test_ranks_other_than_zero_say_and_keep_nothing(monkeypatch):
    the_trainer = trainer()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_in_run(the_trainer, "anything")
    assert warnings_of(the_trainer) == []
