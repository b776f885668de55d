"""SlimFit measures only steps that change weights."""

from collections import Counter

import pytest
import torch
from overflow import fit_scaled
from toys import Recorder, fit, make, moved, weights

from lightning_freeze import SlimFit

LAYERS = {"embeddings", "0", "1", "2", "3"}


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.01)


def warm_up_from_zero(module):
    optimizer = adamw(module)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))
    return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_a_layer_whose_first_step_has_a_rate_of_zero_trains_later():
    module, recorder, callback = make(make_optimizers=warm_up_from_zero), Recorder(), SlimFit(0.75, verbose=False)
    before = weights(module)
    fit(module, callback, recorder, batches=10)
    assert moved(before, weights(module)) == {*LAYERS, "head"}
    assert recorder.trains[0] == recorder.trains[1], "the first step has measured nothing"
    assert all(value > 0 for value in callback.schedule.statistics.latest.values())


def test_a_layer_whose_first_step_is_skipped_by_a_loss_scaler_trains_later():
    recorder, callback = Recorder(), SlimFit(0.75, verbose=False)
    _, skipped = fit_scaled(adamw, callback, recorder, max_epochs=3)
    assert skipped > 1
    assert all(value > 0 for value in callback.schedule.statistics.latest.values())
    assert set().union(*recorder.trains) == {*LAYERS, "head"}


def test_a_step_without_change_keeps_the_value_before():
    def pause(module):
        optimizer = adamw(module)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if 8 <= step < 12 else 1.0)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    recorder = Recorder()
    fit(make(make_optimizers=pause), SlimFit(0.75, verbose=False), recorder, batches=16, max_epochs=1)
    assert all(trains == recorder.trains[8] for trains in recorder.trains[9:13])


@pytest.mark.parametrize("always", ["head", None])
def test_a_layer_without_a_rate_does_not_stand_in_the_way_of_the_others(always):
    def without_block_0(module):
        still = list(module.encoder.layers[0].parameters())
        rest = [p for p in module.parameters() if all(p is not other for other in still)]
        return torch.optim.AdamW([{"params": rest}, {"params": still, "lr": 0.0}], lr=0.01)

    recorder = Recorder()
    callback = SlimFit(0.5, always=always, verbose=False)
    fit(make(make_optimizers=without_block_0), callback, recorder, batches=10)
    counts = Counter(name for trains in recorder.trains for name in trains)
    assert counts["0"] == 1
    assert callback.schedule.statistics.latest["0"] == 0


def test_weights_of_zero_that_begin_to_move_are_not_ranked_last():
    # As in LoRA, where the gradient of one matrix is zero as long as the other one is.
    module = make(make_optimizers=lambda module: torch.optim.SGD(module.parameters(), lr=0.1))
    block = module.encoder.layers[2]
    torch.nn.init.zeros_(block.linear.weight)
    block.norm.requires_grad_(False)
    callback = SlimFit(0.75, verbose=False)
    fit(module, callback, batches=10)
    assert callback.schedule.statistics.latest["2"] > 0
