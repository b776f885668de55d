"""Turns: what a policy may return, turns of one layer in a row, and runs that are too short for all turns."""

import pytest
import torch
from lightning.pytorch import Callback
from toys import Recorder, fit, loader, make, weights

from lightning_freeze import LISA, BlockCoordinate, DynamicFreezing, FisherUnfreezing, OneLayerAtATime, Policy
from lightning_freeze.errors import ConfigurationError


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


class Returns(Policy):
    """Returns what a function makes of the layers and the turn."""

    def __init__(self, function):
        self.function = function

    def choose(self, layers, turn):
        return self.function(layers, turn)

    def __repr__(self):
        return "Returns()"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda layers, turn: "11", r"Returns\(\) returned '11' for turn 0: expected a list of names from '0', '1'"),
        (lambda layers, turn: layers[-1], r"returned '3' .* Did you mean \['3'\]\?"),
        (lambda layers, turn: None, "returned None for turn 0: expected a list"),
        (lambda layers, turn: [0], r"returned \[0\] for turn 0.* Did you mean '0'\?"),
        (lambda layers, turn: ["x"], "not 'x'"),
        (lambda layers, turn: layers[:1] if turn < 9 else ["33"], "for turn 9: .* not '33'. Did you mean '3'"),
        (lambda layers, turn: ["embeddings"], "not 'embeddings'"),
    ],
)
def test_what_a_policy_returns_is_checked(function, words):
    with pytest.raises(ConfigurationError, match=f"^DynamicFreezing: .*{words}"):
        fit(make(), DynamicFreezing(Returns(function), interval=1, verbose=False))


def test_a_policy_that_chooses_nothing_beside_nothing():
    with pytest.raises(ConfigurationError, match="chose no layers for turn 0, so nothing would train"):
        fit(make(), DynamicFreezing(Returns(lambda layers, turn: []), always=None, verbose=False))


@pytest.mark.parametrize("kind", [iter, set, tuple])
def test_any_collection_of_names_will_do(kind):
    recorder = Recorder()
    fit(make(), DynamicFreezing(Returns(lambda layers, turn: kind(layers[:2])), verbose=False), recorder, max_epochs=1)
    assert recorder.trains == [{"0", "1", "head"}] * 4


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


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (
            lambda: BlockCoordinate(verbose=False),
            "5 layers in turns of 50 .* after 200 steps, .* after 30: ",
        ),
        (lambda: FisherUnfreezing(10, 2, verbose=False), "4 layers in turns of 10 .* after 30 steps, .* after 30: "),
        (
            lambda: BlockCoordinate(8, "random", verbose=False),
            "5 layers in turns of 8 .* after 32 steps, .* after 30: ",
        ),
    ],
)
def test_a_run_too_short_for_a_turn_of_each_layer(callback, words):
    with pytest.warns(UserWarning, match=f"{words}some layers will never train") as given:
        fit(make(), callback(), max_epochs=3, batches=10)
    layers = 4 if isinstance(callback(), FisherUnfreezing) else 5
    assert any(f"set interval={29 // (layers - 1)} or less" in str(warning.message) for warning in given)


@pytest.mark.parametrize("callback", [lambda: BlockCoordinate(7, verbose=False), lambda: LISA(1, verbose=False)])
def test_no_warning_where_every_layer_has_a_turn_or_may_have_one(callback):
    recorder = Recorder()
    fit(make(), callback(), recorder, max_epochs=3, batches=10)
    if isinstance(callback(), BlockCoordinate):
        assert set().union(*recorder.trains) == {"0", "1", "2", "3", "head"}
