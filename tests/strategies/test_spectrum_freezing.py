"""SpectrumFreezing against ratios that are worked out by hand."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import Recorder, StatefulLoader, Toy, fit, layer_of, loader, make, moved, trainer, weights

from lightning_freeze import LayerStack, SpectrumFreezing, plan_training
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.strategies.signal_to_noise import highest, signal_to_noise


def with_spectra(*spectra, **options):
    """A toy whose linear layers have these singular values."""
    module = make(**options)
    for block, values in zip(module.encoder.layers, spectra, strict=True):
        basis, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
        block.linear.weight.data = basis @ torch.diag(torch.tensor(values, dtype=torch.float64))
    return module


# Ratios of 30 / 1 / 8, 15 / 6 / 8, 25 / 1 / 8 and 0: the edge of the noise lies below all values of the first and the
# third, above all but two of the second, and above all of the fourth.
NOISY = [[8, 4, 4, 4, 3, 3, 2, 2], [8, 7, 1, 1, 1, 1, 1, 1], [8, 3, 3, 3, 2, 2, 2, 2], [9, 8, 7, 1, 1, 1, 0.5, 0.5]]


def test_the_ratio_of_a_matrix_by_hand():
    # Quartiles 1.75 and 5, so a deviation of 3.25 / 1.349 = 2.409, and an edge of twice that, 4.818.
    assert signal_to_noise(torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))) == pytest.approx(8 / 7 / 8)
    # One singular value of 5: no spread, so no noise.
    assert signal_to_noise(torch.tensor([[3.0, 0.0, 0.0, 4.0]])) == pytest.approx(1 / 5 * 5)
    # Of two to eight the edge is 0.5 / 1.349 * 1.5 = 0.556, below both values.
    wide = torch.zeros(2, 8)
    wide[0, 0], wide[1, 1] = 2.0, 1.0
    assert signal_to_noise(wide) == pytest.approx(3 / 1 / 2)
    assert signal_to_noise(torch.zeros(4, 4)) == 0
    assert signal_to_noise(torch.diag(torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0]))) == math.inf


def test_the_highest_of_each_type_rounded_down():
    ratios = {"q": {"0.q": 0.1, "1.q": 0.3, "2.q": 0.2}, "k": {"0.k": 0.5, "1.k": 0.5}}
    assert highest(ratios, 50) == ["1.q", "0.k"]
    assert highest(ratios, 100) == ["1.q", "2.q", "0.q", "0.k", "1.k"]
    assert highest(ratios, 30) == []


def test_the_best_half_of_the_matrices_trains_with_its_biases():
    module = with_spectra(*NOISY)
    before = weights(module)
    fit(module, SpectrumFreezing(embeddings=False, verbose=False), max_epochs=1)
    after = weights(module)
    assert moved(before, after) == {"0", "2", "head"}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if "layers.2" in name} == {
        "encoder.layers.2.linear.weight",
        "encoder.layers.2.linear.bias",
    }, "norms stay frozen"


@pytest.mark.parametrize(("top", "blocks"), [(25, {"0"}), (75, {"0", "1", "2"}), (100, {"0", "1", "2", "3"})])
def test_the_share_of_the_matrices(top, blocks):
    recorder = Recorder()
    fit(with_spectra(*NOISY), SpectrumFreezing(top, verbose=False), recorder, max_epochs=1)
    assert recorder.trains[0] == blocks | {"embeddings", "head"}


def test_types_are_compared_among_themselves():
    model = torch.nn.Sequential(*(torch.nn.TransformerEncoderLayer(8, 2, 16) for _ in range(4)))

    class Typed(Toy):
        def __init__(self):
            super().__init__()
            self.encoder.layers = torch.nn.ModuleList(model)

    module = Typed().double()
    callback = SpectrumFreezing(verbose=False)
    fit(module, callback, max_epochs=1)
    kinds = [name.split(".", 3)[3] for name in callback.matrices]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "self_attn.in_proj_weight": 2,
        "self_attn.out_proj.weight": 2,
        "linear1.weight": 2,
        "linear2.weight": 2,
    }


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_resumed_run_keeps_the_choice(tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    straight, whole = with_spectra(*NOISY), Recorder()
    the_trainer = trainer(SpectrumFreezing(verbose=False), whole, saving, max_epochs=3, enable_checkpointing=True)
    the_trainer.fit(straight, StatefulLoader(), loader(2, seed=2))
    for step in (1, 4, 9):
        module, recorder, callback = with_spectra(*reversed(NOISY), seed=9), Recorder(), SpectrumFreezing(verbose=False)
        the_trainer = trainer(callback, recorder, max_epochs=3)
        the_trainer.fit(module, StatefulLoader(), loader(2, seed=2), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert recorder.trains == whole.trains[step:] == [{"embeddings", "0", "2", "head"}] * (12 - step)
        assert callback.matrices == ["encoder.layers.0.linear.weight", "encoder.layers.2.linear.weight"]
        mine, theirs = weights(module), weights(straight)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), step


def test_only_what_trains_has_optimizer_state():
    module = with_spectra(*NOISY, make_optimizers=lambda m: torch.optim.AdamW(m.parameters(), lr=0.01))
    the_trainer = fit(module, SpectrumFreezing(verbose=False), max_epochs=1)
    held = {layer_of(n) for n, p in module.named_parameters() if p in the_trainer.optimizers[0].state}
    assert held == {"embeddings", "0", "2", "head"}


def test_refused():
    for wrong in (0.0, 101.0):
        with pytest.raises(ConfigurationError, match="above 0 and at most 100"):
            SpectrumFreezing(wrong)
    with pytest.raises(ConfigurationError, match="chooses no weight matrix"):
        fit(make(), SpectrumFreezing(20, verbose=False))


def test_weights_on_the_meta_device_have_no_ratio_yet():
    with torch.device("meta"):
        module = Toy()
    ratios = SpectrumFreezing().ratios(LayerStack(module))
    assert [len(matrices) for matrices in ratios.values()] == [4]
    assert all(math.isnan(ratio) for matrices in ratios.values() for ratio in matrices.values())
    plan = plan_training(module, SpectrumFreezing(), next(iter(loader())))
    assert [layer.name for layer in plan.phases[0].layers if layer.status != "frozen"]
