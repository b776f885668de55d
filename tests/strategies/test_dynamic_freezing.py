"""LISA and block coordinate descent against traces by hand, and the traps that rotating freezes fall into."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import Recorder, StatefulLoader, fit, layer_of, loader, make, trainer, weights

from lightning_freeze import LISA, BlockCoordinate, DynamicFreezing, OneLayerAtATime, Policy, RandomLayers
from lightning_freeze.errors import ConfigurationError

BLOCKS = ["0", "1", "2", "3"]


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


class OnlyTrainable(type(make())):
    """Hands only what requires grad to its optimizer, as many public modules do."""

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


def turns(recorder, interval):
    assert all(len(set(map(frozenset, recorder.trains[i : i + interval]))) == 1 for i in range(0, 24, interval))
    return recorder.trains[::interval]


def test_random_layers_are_a_function_of_seed_and_turn():
    policy = RandomLayers(2, seed=7)
    drawn = [policy.choose(BLOCKS, turn) for turn in range(50)]
    assert drawn[::-1] == [RandomLayers(2, seed=7).choose(BLOCKS, turn) for turn in reversed(range(50))]
    assert all(len(set(names)) == 2 and names == sorted(names) for names in drawn)
    assert {name for names in drawn for name in names} == set(BLOCKS)
    assert drawn != [RandomLayers(2, seed=8).choose(BLOCKS, turn) for turn in range(50)]


@pytest.mark.parametrize(
    ("order", "expected"), [("descending", "32103210"), ("ascending", "01230123")], ids=["descending", "ascending"]
)
def test_one_layer_at_a_time(order, expected):
    policy = OneLayerAtATime(order)
    assert "".join(policy.choose(BLOCKS, turn)[0] for turn in range(8)) == expected


def test_random_order_visits_each_layer_once_a_cycle():
    order = [OneLayerAtATime("random").choose(BLOCKS, turn)[0] for turn in range(40)]
    cycles = [order[i : i + 4] for i in range(0, 40, 4)]
    assert all(sorted(cycle) == BLOCKS for cycle in cycles)
    assert len(set(map(tuple, cycles))) > 1


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_lisa_trains_the_drawn_blocks_beside_embeddings_and_head(count, embeddings):
    recorder = Recorder()
    fit(make(), LISA(count, interval=3, embeddings=embeddings, seed=5, verbose=False), recorder, max_epochs=6)
    fixed = {"head", *(["embeddings"] if embeddings else [])}
    expected = [fixed | set(RandomLayers(count, 5).choose(BLOCKS, turn)) for turn in range(8)]
    assert turns(recorder, 3) == expected


def test_lisa_leaves_the_head_out():
    recorder = Recorder()
    fit(make(), LISA(1, interval=3, embeddings=False, head=False, verbose=False), recorder, max_epochs=6)
    assert turns(recorder, 3) == [set(RandomLayers(1, 0).choose(BLOCKS, turn)) for turn in range(8)]


def test_block_coordinate_goes_from_the_top_down():
    recorder = Recorder()
    fit(make(), BlockCoordinate(interval=3, verbose=False), recorder, max_epochs=6)
    assert turns(recorder, 3) == [{name} for name in ["head", "3", "2", "1", "0", "head", "3", "2"]]


def test_block_coordinate_with_embeddings_from_the_input_up():
    recorder = Recorder()
    callback = BlockCoordinate(4, "ascending", embeddings=True, head=False, verbose=False)
    fit(make(), callback, recorder, max_epochs=6)
    assert turns(recorder, 4) == [{name} for name in ["embeddings", "0", "1", "2", "3", "embeddings"]]


@pytest.mark.filterwarnings("ignore:.*some layers will never train")
@pytest.mark.parametrize(("batches", "expected"), [(4, 50), (400, 80), (2000, 100)])
def test_the_turns_of_badam_last_as_long_as_published(batches, expected):
    callback = BlockCoordinate(verbose=False)
    fit(make(), callback, max_epochs=1, batches=batches, limit_val_batches=0, max_steps=2)
    assert callback.schedule.progress.trigger["interval"] == expected, "400 batches of 5 layers: 80 steps"


def test_the_optimizer_trains_layers_that_are_chosen_later():
    torch.manual_seed(0)
    module = OnlyTrainable()
    before, recorder = weights(module), Recorder()
    fit(module, BlockCoordinate(interval=2, head=False, verbose=False), recorder, max_epochs=2)
    after = weights(module)
    for name in before:
        assert torch.equal(before[name], after[name]) == (layer_of(name) in ("embeddings", "head")), name


def test_the_number_of_active_layers_changes_the_loss():
    losses = []
    for count in (1, 2, 4):
        torch.manual_seed(0)
        recorder = Recorder()
        fit(OnlyTrainable(), LISA(count, interval=2, verbose=False), recorder, max_epochs=2)
        losses.append(recorder.losses[-1].item())
    assert len(set(losses)) == 3


def test_the_state_of_layers_that_are_frozen_again_is_dropped():
    module = make(make_optimizers=adamw)
    the_trainer = fit(module, LISA(1, interval=3, verbose=False), max_epochs=6)
    held = {n for n, p in module.named_parameters() if p in the_trainer.optimizers[0].state}
    last = set(RandomLayers(1, 0).choose(BLOCKS, 7))
    assert {layer_of(name) for name in held} == {"embeddings", "head"} | last
    steps = {
        layer_of(n): the_trainer.optimizers[0].state[p]["step"].item()
        for n, p in module.named_parameters()
        if n in held
    }
    assert steps["head"] == 24, "what trains all the time keeps its state"


def test_equals_a_loop_by_hand():
    module, twin = make(make_optimizers=adamw), make(make_optimizers=adamw)
    fit(module, BlockCoordinate(interval=3, verbose=False), max_epochs=6)
    parts = [twin.classifier, *reversed(twin.encoder.layers)]
    optimizer, step = None, 0
    for _ in range(6):
        for tokens, labels in loader(4):
            if step % 3 == 0:
                part = parts[step // 3 % 5]
                optimizer = torch.optim.AdamW(part.parameters(), lr=0.01, weight_decay=0.1)
            twin.zero_grad()
            torch.nn.functional.cross_entropy(twin(tokens), labels).backward()
            optimizer.step()
            step += 1
    mine, theirs = weights(module), weights(twin)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_a_compiled_model_equals_an_eager_one():
    torch._dynamo.reset()
    eager, compiled = make(make_optimizers=adamw), make(make_optimizers=adamw)
    compiled.encoder.compile(backend="aot_eager")
    for module in (eager, compiled):
        fit(module, LISA(1, interval=1, seed=1, verbose=False), max_epochs=4)
    mine, theirs = weights(eager), weights(compiled)
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-12


STRATEGIES = {
    "lisa": lambda: LISA(2, interval=3, seed=3, verbose=False),
    "block coordinate": lambda: BlockCoordinate(interval=3, order="random", verbose=False),
}


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_run_equals_the_straight_one_bit_for_bit(name, tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    straight, whole = make(make_optimizers=adamw), Recorder()
    the_trainer = trainer(STRATEGIES[name](), whole, saving, max_epochs=6, enable_checkpointing=True)
    the_trainer.fit(straight, StatefulLoader(), loader(2, seed=2))
    for step in (1, 2, 3, 4, 8, 12, 20, 21):
        module, recorder = make(9, make_optimizers=adamw), Recorder()
        the_trainer = trainer(STRATEGIES[name](), recorder, max_epochs=6)
        the_trainer.fit(module, StatefulLoader(), loader(2, seed=2), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert recorder.trains == whole.trains[step:], step
        mine, theirs = weights(module), weights(straight)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), step


def test_another_policy_does_not_resume(tmp_path):
    the_trainer = fit(make(), LISA(1, interval=3, verbose=False), max_epochs=1)
    the_trainer.save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(ConfigurationError, match="another LISA"):
        fit(make(), LISA(1, interval=3, seed=1, verbose=False), max_epochs=2, ckpt_path=tmp_path / "end.ckpt")


def test_a_policy_of_the_user():
    class FirstAndLast(Policy):
        def choose(self, layers, turn):
            return [layers[-(turn % 2)]]

    recorder = Recorder()
    fit(make(), DynamicFreezing(FirstAndLast(), interval=6, always=None, verbose=False), recorder, max_epochs=6)
    assert turns(recorder, 6) == [{"0"}, {"3"}, {"0"}, {"3"}]


def test_refused():
    with pytest.raises(ConfigurationError, match="4 layers to draw from"):
        fit(make(), LISA(5, verbose=False))
    with pytest.raises(ConfigurationError, match="count=0"):
        LISA(0)
    with pytest.raises(ConfigurationError, match="interval=0"):
        BlockCoordinate(interval=0)
    with pytest.raises(ConfigurationError, match="no layers to choose from"):
        fit(make(), DynamicFreezing(RandomLayers(1), layers="head", verbose=False))
