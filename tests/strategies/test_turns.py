"""Turns of one layer in a row."""

import pytest
import torch
from lightning.pytorch import Callback
from toys import fit, loader, make, weights

from lightning_freeze import LISA, BlockCoordinate, OneLayerAtATime


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


class Steps(Callback):
    """Notes, after each step, how many steps the optimizer remembers of a block."""

    def __init__(self, block):
        self.block, self.found = block, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        state = trainer.optimizers[0].state.get(pl_module.encoder.layers[self.block].linear.weight, {})
        self.found.append(int(state["step"]) if "step" in state else 0)


def test_a_second_turn_in_a_row_begins_with_an_empty_optimizer_state():
    steps = Steps(2)
    callback = BlockCoordinate(interval=3, layers="2", head=False, verbose=False)
    fit(make(make_optimizers=adamw), callback, steps, batches=8, max_epochs=1)
    assert steps.found == [1, 2, 3, 1, 2, 3, 1, 2]


def test_cycles_of_badam_that_meet_in_one_layer_equal_a_loop_by_hand():
    seed = next(s for s in range(99) if len(set(turns(s)[3:5])) == 1)
    module, twin = make(make_optimizers=adamw), make(make_optimizers=adamw)
    callback = BlockCoordinate(3, "random", head=False, seed=seed, verbose=False)
    fit(module, callback, batches=24, max_epochs=1)
    optimizer = None
    for step, (tokens, labels) in enumerate(loader(24)):
        if step % 3 == 0:
            block = twin.encoder.layers[int(turns(seed)[step // 3])]
            optimizer = torch.optim.AdamW(block.parameters(), lr=0.01, weight_decay=0.1)
        twin.zero_grad()
        torch.nn.functional.cross_entropy(twin(tokens), labels).backward()
        optimizer.step()
    mine, theirs = weights(module), weights(twin)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def turns(seed):
    policy = OneLayerAtATime("random", seed)
    return [policy.choose(["0", "1", "2", "3"], turn)[0] for turn in range(8)]


def test_a_block_that_lisa_draws_twice_in_a_row_keeps_its_state():
    steps = Steps(2)
    fit(make(make_optimizers=adamw), LISA(1, interval=3, layers="2", verbose=False), steps, batches=8, max_epochs=1)
    assert steps.found == [1, 2, 3, 4, 5, 6, 7, 8]
