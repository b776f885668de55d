"""What Auto-RGN measures where gradients overflow, and where layers begin to train in the course of an epoch."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from overflow import fit_scaled
from toys import Recorder, StatefulLoader, fit, layer_of, loader, make, trainer, weights

from lightning_freeze import DynamicFreezing, GradualUnfreezing, OneLayerAtATime, RelativeGradientLR, StepTrigger


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.001)


class Factors(Callback):
    """Notes the factors after each step, and the ratio of each tensor before it."""

    def __init__(self, callback):
        self.callback, self.factors, self.ratios, self.finite = callback, [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = {n: p for n, p in pl_module.named_parameters() if p.grad is not None}
        self.finite.append(all(p.grad.isfinite().all() for p in named.values()))
        self.ratios.append({n: float(p.grad.norm() / p.detach().norm()) for n, p in named.items()})

    def on_train_batch_end(self, *_):
        self.factors.append(dict(self.callback.factors))


def by_hand(ratios):
    """The factors after some steps that are measured."""
    names = {name for step in ratios for name in step}
    means = {n: sum(step[n] for step in ratios if n in step) / sum(n in step for step in ratios) for n in names}
    largest = max(value for value in means.values() if value < float("inf"))
    return {name: pytest.approx(min(1.0, mean / largest)) for name, mean in means.items()}


def test_steps_that_overflow_are_left_out_and_not_counted():
    callback = RelativeGradientLR(batches=2, verbose=False)
    noted = Factors(callback)
    _, skipped = fit_scaled(sgd, noted, callback, max_epochs=1)
    first = noted.finite.index(True)
    assert skipped > 1
    assert first > 0
    assert noted.factors[0] == {}
    assert noted.factors[-1] == by_hand(noted.ratios[first : first + 2])
    assert min(callback.factors.values()) < 0.5


def test_a_layer_that_begins_to_train_within_an_epoch_is_measured_from_its_first_step_on():
    callback = RelativeGradientLR(batches=2, verbose=False)
    noted, recorder = Factors(callback), Recorder()
    freezing = GradualUnfreezing(StepTrigger(5), verbose=False)
    fit(make(), freezing, noted, callback, recorder, max_epochs=1, batches=30)
    assert set(recorder.trains[7]) == {"3", "head"}
    for step in range(30):
        begun = step - step % 5 if step < 26 else 25
        assert noted.factors[step] == by_hand(noted.ratios[begun : min(step, begun + 1) + 1]), step
    rates = {name: rate for name, rate in recorder.rates[7].items() if layer_of(name) == "3"}
    assert rates["encoder.layers.3.linear.weight"] < 0.05


def test_a_tensor_is_averaged_over_the_steps_in_which_it_has_a_gradient():
    class Rare(type(make())):
        def training_step(self, batch, batch_idx):
            x = self.encoder.embeddings(batch[0])
            for number, layer in enumerate(self.encoder.layers):
                if number != 1 or batch_idx % 3 == 1:
                    x = layer(x)
            return torch.nn.functional.cross_entropy(self.classifier(x.mean(1)), batch[1])

    torch.manual_seed(0)
    callback = RelativeGradientLR(batches=2, verbose=False)
    noted = Factors(callback)
    fit(Rare(), noted, callback, max_epochs=1, batches=6)
    measured = {}
    for step in noted.ratios:
        for name, ratio in step.items():
            measured.setdefault(name, []).append(ratio)
    means = {name: sum(ratios[:2]) / 2 for name, ratios in measured.items()}
    largest = max(value for value in means.values() if value < float("inf"))
    assert callback.factors == {name: pytest.approx(min(1.0, mean / largest)) for name, mean in means.items()}


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.01)


def callbacks():
    freezing = DynamicFreezing(OneLayerAtATime(), interval=3, verbose=False)
    return [freezing, RelativeGradientLR(batches=2, verbose=False)]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_resumed_run_in_which_layers_take_turns_equals_the_straight_one_bit_for_bit(tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    straight, whole = make(make_optimizers=adamw), Recorder()
    the_trainer = trainer(*callbacks(), whole, saving, max_epochs=3, enable_checkpointing=True)
    the_trainer.fit(straight, StatefulLoader(), loader(2, seed=2))
    for step in (2, 4, 7):
        module, recorder = make(9, make_optimizers=adamw), Recorder()
        the_trainer = trainer(*callbacks(), recorder, max_epochs=3)
        the_trainer.fit(module, StatefulLoader(), loader(2, seed=2), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert recorder.rates == whole.rates[step:], step
        mine, theirs = weights(module), weights(straight)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), step
