"""Auto-RGN, L2-SP and re-initialised layers against loops by hand, straight and resumed."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import Recorder, StatefulLoader, fit, layer_of, loader, make, moved, trainer, weights

from lightning_freeze import L2SP, GradualUnfreezing, LayerFreezing, ReinitTopLayers, RelativeGradientLR
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.strategies.relative_gradient_lr import relative_factors


def sgd_by_hand(module, change=lambda step, names: None, rate=lambda step, name: 0.1, epochs=1):
    """Plain SGD; ``change`` may alter gradients before the step, and ``rate`` sets the rate of each tensor."""
    step = 0
    for _ in range(epochs):
        for tokens, labels in loader(4):
            module.zero_grad()
            torch.nn.functional.cross_entropy(module(tokens), labels).backward()
            named = dict(module.named_parameters())
            change(step, named)
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter -= rate(step, name) * parameter.grad
            step += 1


def assert_close(left, right):
    a, b = weights(left), weights(right)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-12


def test_l2sp_equals_the_penalty_by_hand():
    module, twin = make(), make()
    start = weights(twin)
    fit(module, L2SP(alpha=0.3, beta=0.05, verbose=False), max_epochs=2)

    def penalty(step, named):
        for name, parameter in named.items():
            pull = 0.05 * parameter if layer_of(name) == "head" else 0.3 * (parameter - start[name])
            parameter.grad += pull.detach()

    sgd_by_hand(twin, penalty, epochs=2)
    assert_close(module, twin)


def test_l2sp_keeps_a_model_near_its_start_and_frozen_layers_where_they_are():
    distances = []
    for alpha in (0.0, 5.0):
        module = make()
        start = weights(module)
        fit(module, L2SP(alpha, beta=0.0, verbose=False), LayerFreezing("embeddings,0", verbose=False), max_epochs=4)
        now = weights(module)
        assert moved(start, now) == {"1", "2", "3", "head"}
        distances.append(sum(float((now[n] - start[n]).norm()) for n in now if layer_of(n) != "head"))
    assert distances[1] < 0.5 * distances[0]


def test_l2sp_moves_the_pre_trained_weights_to_the_device_once():
    class Noted(Callback):
        def __init__(self, l2sp):
            self.l2sp, self.found = l2sp, []

        def on_train_batch_end(self, *_):
            self.found.append([anchor for _, anchor in self.l2sp._anchors.values()])

    module, l2sp = make().float(), L2SP(verbose=False)
    noted = Noted(l2sp)
    fit(module, l2sp, noted, max_epochs=1, precision="64-true")  # the parameters change after the copy is made
    assert {anchor.dtype for anchor in noted.found[0]} == {torch.float64}
    assert len(noted.found) == 4
    assert all(now is first for later in noted.found[1:] for now, first in zip(later, noted.found[0], strict=True))


def test_relative_factors():
    assert relative_factors({"a": 2.0, "b": 1.0, "c": 0.0}) == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert relative_factors({"a": 2.0, "zero weights": float("inf")}) == {"a": 1.0, "zero weights": 1.0}
    assert relative_factors({"a": 0.0}) == {"a": 1.0}


def test_auto_rgn_equals_rates_by_hand():
    module, twin = make(), make()
    fit(module, RelativeGradientLR(batches=2, verbose=False), max_epochs=2)
    sums, factors = {}, {}

    def measure(step, named):
        if step % 4 == 0:
            sums.clear()
        if step % 4 < 2:
            for name, parameter in named.items():
                sums[name] = sums.get(name, 0.0) + float(parameter.grad.norm() / parameter.detach().norm())
            largest = max(value for value in sums.values() if value < float("inf"))  # biases begin as zeros
            factors.update({name: min(1.0, value / largest) for name, value in sums.items()})

    sgd_by_hand(twin, measure, lambda step, name: 0.1 * factors[name], epochs=2)
    assert_close(module, twin)


def test_reinit_changes_the_top_blocks_alone_and_the_same_ones_each_time():
    class AtStart(Callback):
        def on_train_start(self, trainer, pl_module):
            self.found, self.state = weights(pl_module), torch.get_rng_state()

    starts, untouched = [], AtStart()
    fit(make(), untouched, max_epochs=1)
    for seed in (1, 1, 2):
        module = make()
        before, at_start = weights(module), AtStart()
        callback = ReinitTopLayers(2, std=0.5, seed=seed, verbose=False)
        fit(module, callback, at_start, max_epochs=1)
        assert moved(before, at_start.found) == {"2", "3"}
        assert torch.equal(untouched.state, at_start.state), "the global random state is not used"
        starts.append(at_start.found)
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not torch.equal(starts[0]["encoder.layers.3.linear.weight"], starts[2]["encoder.layers.3.linear.weight"])
    assert not starts[0]["encoder.layers.3.linear.bias"].any()
    assert (starts[0]["encoder.layers.3.norm.weight"] == 1).all()
    assert 0.3 < float(starts[0]["encoder.layers.3.linear.weight"].std()) < 0.7


def test_refused():
    with pytest.raises(ConfigurationError, match="4 blocks"):
        fit(make(), ReinitTopLayers(5, verbose=False))
    for wrong in (
        lambda: ReinitTopLayers(0),
        lambda: ReinitTopLayers(std=0.0),
        lambda: L2SP(alpha=-1.0),
        lambda: L2SP(beta=float("nan")),
        lambda: RelativeGradientLR(batches=0),
    ):
        with pytest.raises(ConfigurationError, match="expected a"):
            wrong()


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.01)


STRATEGIES = {
    "l2sp": lambda: [L2SP(alpha=0.5, verbose=False)],
    "auto-rgn": lambda: [RelativeGradientLR(batches=3, verbose=False), GradualUnfreezing(verbose=False)],
    "reinit": lambda: [ReinitTopLayers(2, verbose=False)],
}


@pytest.mark.fast_cases(2, "l2sp", "reinit")
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_run_equals_the_straight_one_bit_for_bit(name, tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    straight, whole = make(make_optimizers=adamw), Recorder()
    the_trainer = trainer(*STRATEGIES[name](), whole, saving, max_epochs=6, enable_checkpointing=True)
    the_trainer.fit(straight, StatefulLoader(), loader(2, seed=2))
    for step in (1, 4, 6, 11, 20):
        module, recorder = make(9, make_optimizers=adamw), Recorder()
        the_trainer = trainer(*STRATEGIES[name](), recorder, max_epochs=6)
        the_trainer.fit(module, StatefulLoader(), loader(2, seed=2), ckpt_path=tmp_path / f"step={step}.ckpt")
        mine, theirs = weights(module), weights(straight)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), step
