import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from toys import Recorder, fit, loader, make, moved, trainer, weights

from lightning_freeze import GradualUnfreezing, LayerFreezing
from lightning_freeze.errors import ConfigurationError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_layers_stay_bit_identical_and_the_others_move(name):
    module = make(make_optimizers=lambda m: OPTIMIZERS[name](m.parameters()), dropout=0.1)
    before = weights(module)
    fit(module, LayerFreezing("embeddings,:2", verbose=False), gradient_clip_val=0.5, accumulate_grad_batches=2)
    assert moved(before, weights(module)) == {"2", "3", "head"}


def test_frozen_layers_are_in_eval_mode_in_every_training_batch_and_only_they():
    recorder = Recorder()
    module = make(dropout=0.5)
    fit(module, LayerFreezing("embeddings,:2", verbose=False), recorder, num_sanity_val_steps=1)
    assert recorder.eval_blocks == [{"0", "1"}] * 12
    assert all(m.training for m in module.modules())


def test_a_users_call_of_train_leaves_frozen_layers_in_eval_mode():
    class Waking(type(make())):
        def on_train_epoch_start(self):
            self.train()

    recorder = Recorder()
    fit(Waking(dropout=0.5), LayerFreezing("embeddings,:2", verbose=False), recorder)
    assert recorder.eval_blocks == [{"0", "1"}] * 12


def test_what_the_user_had_put_in_eval_mode_stays_so():
    module = make(dropout=0.5)
    module.encoder.layers[0].eval()
    module.encoder.layers[3].eval()
    recorder = Recorder()
    fit(module, LayerFreezing("embeddings,:2", verbose=False), recorder)
    assert recorder.eval_blocks == [{"0", "1", "3"}] * 12
    assert not module.encoder.layers[0].training
    assert module.encoder.layers[1].training


def test_frozen_eval_can_be_turned_off():
    recorder = Recorder()
    fit(make(dropout=0.5), LayerFreezing("embeddings,:2", frozen_eval=False, verbose=False), recorder)
    assert recorder.eval_blocks == [set()] * 12


def test_batch_norm_statistics_of_frozen_layers_stand_still():
    module = make()
    module.encoder.layers[0].extra = nn.BatchNorm1d(5).double()
    module.encoder.layers[3].extra = nn.BatchNorm1d(5).double()
    for block in (module.encoder.layers[0], module.encoder.layers[3]):
        block.register_forward_hook(lambda b, _, output: b.extra(output))
    before = weights(module)
    fit(module, LayerFreezing("embeddings,:2", verbose=False))
    assert moved(before, weights(module)) == {"2", "3", "head"}
    assert not torch.equal(before["encoder.layers.3.extra.running_mean"], module.encoder.layers[3].extra.running_mean)


def test_single_parameters_can_be_frozen():
    module = make()
    before = weights(module)
    fit(module, LayerFreezing("*.bias", verbose=False))
    after = weights(module)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if not name.endswith("bias")}


def test_a_fit_gives_back_what_it_was_given_and_a_second_one_starts_clean():
    module = make()
    module.encoder.layers[3].linear.bias.requires_grad_(False)
    given = {name: p.requires_grad for name, p in module.named_parameters()}
    configure, setup = module.configure_optimizers, module.setup
    callback = LayerFreezing("embeddings,:2", verbose=False)
    for _ in range(2):
        fit(module, callback, max_epochs=1)
        assert {name: p.requires_grad for name, p in module.named_parameters()} == given
        assert module.configure_optimizers == configure
        assert module.setup == setup
    before = weights(module)
    fit(module, max_epochs=1)
    assert moved(before, weights(module)) == {"embeddings", "0", "1", "2", "3", "head"}
    other = make(seed=1)
    before = weights(other)
    fit(other, callback, max_epochs=1)
    assert moved(before, weights(other)) == {"2", "3", "head"}


def test_after_an_exception_everything_is_given_back_too():
    class Failing(type(make())):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("boom")

    module = Failing()
    with pytest.raises(RuntimeError, match="boom"):
        fit(module, LayerFreezing("embeddings,:2", verbose=False))
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.training for m in module.modules())
    assert "setup" not in vars(module)
    assert "configure_optimizers" not in vars(module)


def test_two_static_callbacks_freeze_the_union():
    module = make()
    before = weights(module)
    fit(module, LayerFreezing("embeddings", verbose=False), LayerFreezing(":3", verbose=False))
    assert moved(before, weights(module)) == {"3", "head"}
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_layers_that_the_module_builds_late_are_frozen_too(hook):
    class Late(type(make())):
        def __init__(self):
            super().__init__()
            del self.encoder, self.classifier

        def build(self, *_):
            if not hasattr(self, "encoder"):
                built = make()
                self.encoder, self.classifier = built.encoder, built.classifier

    setattr(Late, hook, lambda self, *args, **kwargs: self.build())
    module = Late()
    recorder = Recorder()
    fit(module, LayerFreezing("embeddings,:2", verbose=False), recorder)
    assert recorder.trains == [{"2", "3", "head"}] * 12


def test_validate_and_test_touch_nothing():
    module = make()
    the_trainer = trainer(LayerFreezing("embeddings,:2", verbose=False))
    the_trainer.validate(module, loader(), verbose=False)
    assert all(p.requires_grad for p in module.parameters())
    assert "configure_optimizers" not in vars(module)


def test_groups_name_the_layers_and_leave_the_rest_untouched():
    module = make()
    before = weights(module)
    groups = {"low": ["encoder.layers.0", "encoder.layers.1"], "high": ["encoder.layers.2"]}
    with pytest.warns(UserWarning, match=r"encoder\.embeddings\.weight trainable below 1 frozen block.*in no group"):
        fit(module, LayerFreezing("low", groups=groups, verbose=False))
    assert moved(before, weights(module)) == {"embeddings", "2", "3", "head"}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("", "layers=''"),
        ("haed", "haed"),
        ("12", "12"),
        ("all", "Nothing is left to train"),
    ],
)
def test_wrong_selectors_are_refused_before_any_training(layers, words):
    module = make()
    before = weights(module)
    with pytest.raises(ConfigurationError, match=words):
        fit(module, LayerFreezing(layers, verbose=False))
    assert not moved(before, weights(module))
    assert all(p.requires_grad for p in module.parameters())


def test_a_module_without_parameters_is_refused():
    class Empty(type(make())):
        def __init__(self):
            super().__init__()
            del self.encoder, self.classifier

        def configure_optimizers(self):
            return None

    with pytest.raises(ConfigurationError, match="parameter"):
        fit(Empty(), LayerFreezing("embeddings", verbose=False))


def test_lightnings_own_finetuning_callbacks_contradict():
    module = make()
    module.backbone = module.encoder
    with pytest.raises(ConfigurationError, match=r"LayerFreezing and BackboneFinetuning both decide"):
        fit(module, LayerFreezing(":2", verbose=False), BackboneFinetuning())


def test_lbfgs_is_refused():
    module = make(make_optimizers=lambda m: torch.optim.LBFGS(m.parameters()))
    with pytest.raises(ConfigurationError, match="LBFGS"):
        fit(module, LayerFreezing(":2", verbose=False))


def test_somebody_else_unfreezing_a_frozen_layer_is_an_error():
    class Unfreezing(type(make())):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.encoder.layers[0].requires_grad_(True)

    with pytest.raises(ConfigurationError, match=r"LayerFreezing holds 4 parameters frozen .*encoder\.layers\.0"):
        fit(Unfreezing(), LayerFreezing("embeddings,:2", verbose=False))


def test_the_table_of_layers_is_printed_at_the_start_and_the_end(capsys):
    fit(make(), LayerFreezing("embeddings,:2"), max_epochs=1)
    start, end = capsys.readouterr().out.split("Layers at the end of training")
    assert [line.split() for line in start.splitlines() if "frozen" in line or "trains" in line] == [
        ["embeddings", "...", "1", "304", "frozen", "-"],
        ["2", "...", "head", "194", "trains", "0.1"],
    ]
    assert "trained" in end


def test_callbacks_can_be_copied_and_pickled_in_mid_run():
    import copy
    import pickle

    class Copying(Recorder):
        def on_train_batch_end(self, trainer, *args):
            copy.deepcopy(trainer.callbacks)
            self.pickled = [pickle.loads(pickle.dumps(c)) for c in trainer.callbacks if c is not self]

    copying = Copying()
    fit(make(), LayerFreezing("embeddings,:2", verbose=False), GradualUnfreezing(verbose=False), copying, max_epochs=5)
    assert [type(c).__name__ for c in copying.pickled] == ["LayerFreezing", "GradualUnfreezing"]


def test_what_something_else_unfreezes_within_a_step_is_not_moved():
    class Unfreezing(type(make())):
        def on_after_backward(self):
            self.encoder.embeddings.weight.requires_grad_(True)
            self.encoder.embeddings.weight.grad = torch.ones_like(self.encoder.embeddings.weight)

    module = Unfreezing()
    before = weights(module)
    with pytest.raises(ConfigurationError, match=r"encoder.embeddings.weight.* something else has"):
        fit(module, LayerFreezing("embeddings,:2", verbose=False))
    assert not moved(before, weights(module))
