"""Strategies that choose from measurements: against traces and loops by hand, resumed at every step, beside a cache."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import Recorder, StatefulLoader, Toy, fit, layer_of, loader, make, trainer, weights

from lightning_freeze import (
    AutoFreeze,
    DynamicFreezing,
    FisherUnfreezing,
    GrowingPrefix,
    LargestFisherNext,
    LargestUpdates,
    LayerFreezing,
    MeasuringPolicy,
    SlimFit,
    Statistics,
)
from lightning_freeze.errors import ConfigurationError

BLOCKS = ["0", "1", "2", "3"]
LAYERS = ["embeddings", *BLOCKS, "head"]


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


def run(*callbacks, **options):
    """What trains in each step, as far as the weights show it, and the module."""
    module, recorder = make(make_optimizers=adamw), Moved()
    fit(module, *callbacks, recorder, **{"max_epochs": 6, **options})
    return recorder, module


class Moved(Recorder):
    """Notes which layers each step moves, beside what requires grad when it begins."""

    def __init__(self):
        super().__init__()
        self.moved = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.before = weights(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, *rest):
        super().on_train_batch_end(trainer, pl_module, outputs, *rest)
        after = weights(pl_module)
        self.moved.append({layer_of(name) for name in after if not torch.equal(after[name], self.before[name])})


def parts(module):
    return dict(zip(LAYERS, [module.encoder.embeddings, *module.encoder.layers, module.classifier], strict=True))


def by_hand(policy, interval, layers, always, below=(), measure=None):
    """A plain loop: ``measure`` gets what trains before and after each step, and returns the values of the turn."""
    twin = make(make_optimizers=adamw)
    named, optimizer, statistics = parts(twin), adamw(twin), Statistics()
    trained, trace, step = [], [], 0
    for _ in range(6):
        for tokens, labels in loader(4):
            if step % interval == 0:
                if step:
                    statistics = statistics.after(trained, measure.values())
                trained = policy(layers, step // interval, statistics)
                on = {*trained, *always, *(below if len(trained) == len(layers) else ())}
                for name, part in named.items():
                    for parameter in part.parameters():
                        if name not in on:
                            optimizer.state.pop(parameter, None)
                measure.begin(trained)
            twin.zero_grad()
            torch.nn.functional.cross_entropy(twin(tokens), labels).backward()
            measure.before(named, step % interval)
            for name, part in named.items():
                if name not in on:
                    part.zero_grad()
            optimizer.step()
            measure.after(named, step % interval)
            trace.append(on)
            step += 1
    return trace, twin


def same(module, twin):
    mine, theirs = weights(module), weights(twin)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# ---------------------------------------------------------------------------------------------------- AutoFreeze


def test_growing_prefix_follows_a_trace_by_hand():
    choose = GrowingPrefix(50).choose
    first = Statistics()
    assert choose(BLOCKS, 0, first) == BLOCKS
    second = first.after(BLOCKS, {"0": 10.0, "1": 10.0, "2": 10.0, "3": 10.0})
    assert choose(BLOCKS, 1, second) == BLOCKS, "there is nothing to compare with"
    # Changes of 10, 20, 50 and 80%: the median is 35%, which block 2 is the first to reach.
    third = second.after(BLOCKS, {"0": 9.0, "1": 12.0, "2": 5.0, "3": 2.0})
    assert choose(BLOCKS, 2, third) == ["2", "3"]
    # Changes of 20 and 50%, with a median of 35% again.
    fourth = third.after(["2", "3"], {"2": 4.0, "3": 1.0})
    assert choose(BLOCKS, 3, fourth) == ["3"]
    assert choose(BLOCKS, 4, fourth.after(["3"], {"3": 1.0})) == ["3"], "something always trains"


@pytest.mark.parametrize(("percentile", "left"), [(0, BLOCKS), (25, ["1", "2", "3"]), (100, ["3"])])
def test_the_percentile_decides_how_much_is_frozen(percentile, left):
    statistics = Statistics(BLOCKS, {"0": 9.0, "1": 8.0, "2": 5.0, "3": 2.0}, dict.fromkeys(BLOCKS, 10.0))
    assert GrowingPrefix(percentile).choose(BLOCKS, 2, statistics) == left


def test_a_layer_without_a_gradient_counts_as_settled():
    statistics = Statistics(BLOCKS, {"0": 0.0, "1": 0.0, "2": 5.0, "3": 2.0}, {"0": 0.0, "1": 1.0, "2": 9.0, "3": 9.0})
    assert GrowingPrefix().choose(BLOCKS, 2, statistics) == ["2", "3"]


class SumOfGradients:
    def begin(self, trained):
        self.trained, self.sums = trained, {}

    def before(self, named, step):
        for name in self.trained:
            for key, parameter in named[name].named_parameters():
                self.sums[name, key] = self.sums.get((name, key), 0) + parameter.grad.clone()

    def after(self, named, step): ...

    def values(self):
        return {
            name: sum(v.abs().sum().item() for (n, _), v in self.sums.items() if n == name) for name in self.trained
        }


def test_autofreeze_equals_a_loop_by_hand():
    recorder, module = run(AutoFreeze(num_intervals=8, verbose=False))
    trace, twin = by_hand(GrowingPrefix().choose, 3, BLOCKS, ["head"], ["embeddings"], SumOfGradients())
    assert recorder.trains == trace
    assert recorder.trains[0] == set(LAYERS)
    assert "embeddings" not in recorder.trains[-1]
    assert len(set(map(frozenset, trace))) >= 3, "the prefix grows in several steps"
    same(module, twin)


def test_the_prefix_of_autofreeze_only_grows():
    recorder, _ = run(AutoFreeze(num_intervals=24, percentile=30, verbose=False))
    for before, after in zip(recorder.trains, recorder.trains[1:], strict=False):
        assert after <= before
    left = sorted(recorder.trains[-1] - {"head"})
    assert left == BLOCKS[4 - len(left) :]


def test_an_interval_of_autofreeze_is_a_share_of_the_run():
    callback = AutoFreeze(verbose=False)
    run(callback)
    assert callback.schedule.progress.trigger["interval"] == 2, "24 steps in 10 intervals"
    with pytest.raises(ConfigurationError, match="needs its length"):
        run(AutoFreeze(verbose=False), max_epochs=-1)


# ---------------------------------------------------------------------------------------------- FisherUnfreezing


def test_the_layer_with_the_largest_trace_is_next():
    choose = LargestFisherNext().choose
    first = Statistics()
    assert choose(BLOCKS, 0, first) == ["3"]
    second = first.after(["3"], {"0": 1.0, "1": 3.0, "2": 2.0})
    assert choose(BLOCKS, 1, second) == ["1", "3"]
    third = second.after(["1", "3"], {"0": 5.0, "2": 4.0})
    assert choose(BLOCKS, 2, third) == ["0", "1", "3"]
    assert choose(BLOCKS, 3, third.after(["0", "1", "3"], {})) == BLOCKS
    assert choose(BLOCKS, 9, third.after(BLOCKS, {})) == BLOCKS
    assert choose(BLOCKS, 1, first.after(["3"], {"0": 1.0, "1": 1.0, "2": 1.0})) == ["2", "3"], "the highest of equals"


class Fisher:
    def __init__(self, interval, batches):
        self.first = interval - batches
        self.batches = batches

    def begin(self, trained):
        frozen = [name for name in BLOCKS if name not in trained]
        self.frozen, self.sums = frozen if len(frozen) > 1 else [], {}

    def before(self, named, step):
        if step >= self.first:
            for name in self.frozen:
                norms = [torch.linalg.vector_norm(p.grad) for p in named[name].parameters()]
                self.sums[name] = self.sums.get(name, 0.0) + torch.stack(norms).square().sum().item()

    def after(self, named, step): ...

    def values(self):
        return {name: total / self.batches for name, total in self.sums.items()}


@pytest.mark.parametrize("batches", [2, 4])
def test_fisher_unfreezing_equals_a_loop_by_hand(batches):
    recorder, module = run(FisherUnfreezing(interval=4, batches=batches, verbose=False))
    trace, twin = by_hand(LargestFisherNext(batches).choose, 4, BLOCKS, ["head"], (), Fisher(4, batches))
    assert recorder.moved == trace
    assert [len(trains) for trains in trace[::4]] == [2, 3, 4, 5, 5, 5]
    same(module, twin)


def test_gradients_reach_frozen_layers_on_the_measured_steps_only():
    recorder, _ = run(FisherUnfreezing(interval=4, batches=1, verbose=False))
    assert [set(BLOCKS) <= trains for trains in recorder.trains[:8]] == [False] * 3 + [True] + [False] * 3 + [True]
    assert recorder.eval_blocks[3] == {"0", "1", "2"}, "dropout stays off in what is only measured"


@pytest.mark.filterwarnings("ignore:.*some layers will never train")
def test_an_optimizer_that_moves_what_has_no_gradient_does_not_move_what_is_only_measured():
    class Decaying(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.mul_(0.99)
            return loss

    module, recorder = make(make_optimizers=lambda m: Decaying(m.parameters(), lr=0.1)), Moved()
    fit(module, FisherUnfreezing(interval=4, batches=4, verbose=False), recorder, max_epochs=2)
    assert recorder.moved[:4] == [{"3", "head"}] * 4


@pytest.mark.filterwarnings("ignore:.*some layers will never train")
def test_measured_gradients_are_left_out_of_clipping():
    clipped, free = [
        run(FisherUnfreezing(4, batches, verbose=False), gradient_clip_val=0.1, max_epochs=1)[1] for batches in (4, 1)
    ]
    same(clipped, free)


def test_accumulated_batches_are_measured_as_one_step():
    recorder, _ = run(FisherUnfreezing(2, 1, verbose=False), accumulate_grad_batches=2)
    lifted = [set(BLOCKS) <= trains for trains in recorder.trains[:8]]
    assert lifted == [False, False, True, True] * 2


# ------------------------------------------------------------------------------------------------------- SlimFit


def test_the_layers_that_change_most_train():
    policy = LargestUpdates(0.5)
    first = policy.choose(BLOCKS, 0, Statistics())
    second = policy.choose(BLOCKS, 1, Statistics().after(first, dict.fromkeys(first, 1.0)))
    assert sorted([*first, *second]) == BLOCKS, "every layer trains once at first"
    known = Statistics(second, {"0": 0.3, "1": 0.1, "2": 0.2, "3": 0.4})
    assert policy.choose(BLOCKS, 2, known) == ["0", "3"]
    assert policy.choose(BLOCKS, 3, known.after(["0", "3"], {"0": 0.15, "3": 0.05})) == ["0", "2"]
    assert LargestUpdates(0.95).choose(BLOCKS, 2, known) == ["3"], "one layer trains at least"
    assert len({tuple(LargestUpdates(0.5, seed).choose(BLOCKS, 0)) for seed in range(9)}) > 1


class Updates:
    def __init__(self, interval):
        self.last = interval - 1

    def begin(self, trained):
        self.trained, self.found = trained, {}

    def before(self, named, step):
        self.old = {n: {k: p.detach().clone() for k, p in named[n].named_parameters()} for n in self.trained}

    def after(self, named, step):
        if step == self.last:
            for name in self.trained:
                new = dict(named[name].named_parameters())
                pairs = [(self.old[name][key], new[key].detach()) for key in new if key.endswith("weight")]
                changes = torch.cat([((after - before) / before).abs().flatten() for before, after in pairs])
                self.found[name] = changes.mean().item()

    def values(self):
        return self.found


@pytest.mark.parametrize("interval", [1, 3])
def test_slimfit_equals_a_loop_by_hand(interval):
    callback = SlimFit(0.7, interval, drop_optimizer_state=True, verbose=False)
    recorder, module = run(callback)
    trace, twin = by_hand(LargestUpdates(0.7).choose, interval, LAYERS[:-1], ["head"], (), Updates(interval))
    assert recorder.trains == trace
    assert all(len(trains) == 3 for trains in trace), "2 of 5 layers, and the head"
    assert set().union(*trace) == set(LAYERS)
    same(module, twin)


def test_a_weight_of_zero_does_not_make_a_change_infinite():
    module = make(make_optimizers=adamw)
    torch.nn.init.zeros_(module.encoder.layers[2].linear.weight)
    callback = SlimFit(0.7, verbose=False)
    fit(module, callback, max_epochs=6)
    assert all(0 < value < 100 for value in callback.schedule.statistics.latest.values())


# ---------------------------------------------------------------------------------------------- all of them alike

STRATEGIES = {
    "autofreeze": lambda: AutoFreeze(num_intervals=8, verbose=False),
    "fisher": lambda: FisherUnfreezing(4, 3, verbose=False),
    "slimfit": lambda: SlimFit(0.7, 2, verbose=False),
}


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("steps", [(2, 7, 9), pytest.param(range(1, 24), marks=pytest.mark.slow)], ids=["some", "all"])
def test_a_run_resumed_from_any_step_equals_the_straight_one_bit_for_bit(name, steps, tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    straight, whole = make(make_optimizers=adamw), Recorder()
    the_trainer = trainer(STRATEGIES[name](), whole, saving, max_epochs=6, enable_checkpointing=True)
    the_trainer.fit(straight, StatefulLoader(), loader(2, seed=2))
    assert len(set(map(frozenset, whole.trains))) > 2
    for step in steps:
        module, recorder = make(9, make_optimizers=adamw), Recorder()
        the_trainer = trainer(STRATEGIES[name](), recorder, max_epochs=6)
        the_trainer.fit(module, StatefulLoader(), loader(2, seed=2), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert recorder.trains == whole.trains[step:], step
        same(module, straight)


@pytest.mark.parametrize("name", STRATEGIES)
def test_layers_that_another_callback_freezes_do_not_stand_in_the_way(name):
    recorder, _ = run(STRATEGIES[name](), LayerFreezing("embeddings,:2", verbose=False))
    assert all(moved <= {"2", "3", "head"} for moved in recorder.moved)
    assert set().union(*recorder.moved[-12:]) >= {"3", "head"}
    if name == "autofreeze":
        assert recorder.trains[-1] == {"3", "head"}
    if name == "slimfit":
        assert {"2", "head"} in recorder.moved[10:] or {"2", "3", "head"} in recorder.moved[10:]


class OnlyTrainable(Toy):
    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


@pytest.mark.parametrize("name", ["fisher", "slimfit"])
def test_the_optimizer_trains_layers_that_are_chosen_later(name):
    torch.manual_seed(0)
    module = OnlyTrainable()
    before = weights(module)
    fit(module, STRATEGIES[name](), max_epochs=6)
    after = weights(module)
    moved = {layer_of(key) for key in before if not torch.equal(before[key], after[key])}
    assert moved >= {*BLOCKS, "head"}


def test_the_state_of_what_is_frozen_is_dropped():
    module = make(make_optimizers=adamw)
    recorder = Recorder()
    the_trainer = fit(module, AutoFreeze(num_intervals=8, verbose=False), recorder, max_epochs=6)
    held = {layer_of(n) for n, p in module.named_parameters() if p in the_trainer.optimizers[0].state}
    assert held == recorder.trains[-1] != set(LAYERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_compiled_model_equals_an_eager_one(name):
    torch._dynamo.reset()
    eager, compiled = make(make_optimizers=adamw), make(make_optimizers=adamw)
    compiled.encoder.compile(backend="aot_eager")
    for module in (eager, compiled):
        fit(module, STRATEGIES[name](), max_epochs=4)
    mine, theirs = weights(eager), weights(compiled)
    assert max(float((mine[key] - theirs[key]).abs().max()) for key in mine) < 1e-12


def test_a_measuring_policy_of_the_user():
    class FollowsTheLargestGradient(MeasuringPolicy):
        measures = "gradient"

        def choose(self, layers, turn, statistics):
            return [max(layers, key=statistics.latest.get)] if statistics.latest else layers[:1]

        def measured_layers(self, layers, chosen):
            return layers

        def measured_steps(self, interval):
            return 1

    recorder, _ = run(DynamicFreezing(FollowsTheLargestGradient(), interval=3, always=None, verbose=False))
    assert recorder.moved[:3] == [{"0"}] * 3
    assert all(len(set(map(frozenset, recorder.moved[i : i + 3]))) == 1 for i in range(0, 24, 3))
    assert [len(trains) for trains in recorder.trains[:3]] == [1, 1, 4]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: AutoFreeze(num_intervals=0), "num_intervals=0"),
        (lambda: AutoFreeze(percentile=101), "from 0 to 100"),
        (lambda: FisherUnfreezing(interval=10), "from 1 to interval=10"),
        (lambda: FisherUnfreezing(interval=10, batches=0), "batches=0"),
        (lambda: LargestFisherNext(0), "batches=0"),
        (lambda: SlimFit(1.0), "freeze_rate=1.0"),
        (lambda: LargestUpdates(-0.1), "freeze_rate=-0.1"),
        (lambda: SlimFit(interval=0), "interval=0"),
    ],
)
def test_refused(build, words):
    with pytest.raises(ConfigurationError, match=words):
        build()
