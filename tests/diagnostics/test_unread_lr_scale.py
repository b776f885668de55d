"""Groups with an lr_scale that nothing reads are named once; whatever reads it keeps the run silent."""

import pytest
import torch
from said import said
from toys import Toy, make

from lightning_freeze import DiscriminativeLR, GradualUnfreezing, LayerFreezing
from lightning_freeze.diagnostics.learning_rates.unread_lr_scale import ScaledGroup, is_scale_unread

UNREAD = "lr_scale"
FREEZING = LayerFreezing("embeddings", verbose=False)


@pytest.mark.parametrize(
    ("groups", "unread"),
    [
        ([(0.1, 0.5), (0.1, 1.0)], True),
        ([(0.05, 0.5), (0.1, 1.0)], False),
        ([(0.0, 0.5), (0.0, 1.0)], None),
        ([(0.1, 1.0), (0.1, 1.0)], None),
        ([(0.1, 0.5)], None),
        ([], None),
        ([(0.1, 0.5), (0.1, 0.75), (0.2, 1.0)], False),
    ],
)
def test_the_decision(groups, unread):
    assert is_scale_unread([ScaledGroup(*group) for group in groups]) is unread


def groups(module, scales=(0.5, 1.0)):
    """As timm's param_groups_layer_decay makes them: one group for each scale."""
    parts = (module.encoder, module.classifier)
    return [{"params": list(p.parameters()), "lr_scale": s} for p, s in zip(parts, scales, strict=True)]


def plain(module):
    return torch.optim.SGD(groups(module), lr=0.1)


def test_torch_does_not_read_it():
    (message,) = said(UNREAD, make(make_optimizers=plain), FREEZING)
    assert message == (
        "The parameter groups of SGD carry lr_scale from 0.5 to 1, but nothing reads it: all of them train at the same "
        "rate. Leave the groups out and use DiscriminativeLR(decay=...), or a scheduler of timm, which multiplies by "
        "lr_scale."
    )


@pytest.mark.parametrize("callback", [DiscriminativeLR(verbose=False), GradualUnfreezing(verbose=False)])
def test_with_every_callback(callback):
    assert len(said(UNREAD, make(make_optimizers=plain), callback, max_epochs=6)) == 1


def test_after_a_warm_up_from_zero():
    def warm(module):
        optimizer = plain(module)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    assert len(said(UNREAD, make(make_optimizers=warm), FREEZING)) == 1


class Scaling(torch.optim.lr_scheduler.LRScheduler):
    """Multiplies by the scale at every step, as timm's schedulers do."""

    def get_lr(self):
        groups = self.optimizer.param_groups
        return [base * group["lr_scale"] for base, group in zip(self.base_lrs, groups, strict=True)]


class ScalingSGD(torch.optim.SGD):
    """Scales its own steps, which no rate shows."""

    def step(self, closure=None):
        for group in self.param_groups:
            assert group["lr_scale"]
        return super().step(closure)


def by_scheduler(module):
    optimizer = plain(module)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": Scaling(optimizer), "interval": "step"}}


def by_hand(module):
    return torch.optim.SGD([{**group, "lr": 0.1 * group["lr_scale"]} for group in groups(module)], lr=0.1)


def by_the_optimizer(module):
    return ScalingSGD(groups(module), lr=0.1)


def one_scale(module):
    return torch.optim.SGD(groups(module, (1.0, 1.0)), lr=0.1)


@pytest.mark.parametrize("optimizers", [by_scheduler, by_hand, by_the_optimizer, one_scale, None])
def test_silent_where_it_is_read_or_makes_no_difference(optimizers):
    assert said(UNREAD, make(make_optimizers=optimizers), FREEZING) == []


def test_silent_where_the_training_loop_reads_it():
    module = make(make_optimizers=plain)

    def scale(batch, batch_idx):
        for group in module.trainer.optimizers[0].param_groups:
            group["lr"] = 0.1 * group["lr_scale"]

    module.on_train_batch_start = scale
    assert said(UNREAD, module, FREEZING) == []


def test_a_resumed_run_does_not_repeat_it(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    assert len(said(UNREAD, make(make_optimizers=plain), FREEZING, saving, enable_checkpointing=True)) == 1
    resumed = {"ckpt_path": tmp_path / "last.ckpt", "max_epochs": 5}
    assert said(UNREAD, make(make_optimizers=plain), FREEZING, **resumed) == []


@pytest.mark.parametrize(("reads", "count"), [(False, 1), (True, 0)])
def test_the_groups_of_timm(reads, count):
    optim, scheduler = pytest.importorskip("timm.optim"), pytest.importorskip("timm.scheduler")

    class Images(Toy):
        def __init__(self):
            super().__init__()
            import timm

            sizes = {"img_size": 32, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 2}
            self.model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **sizes)
            self.encoder = self.classifier = None

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.model(torch.rand(len(batch[1]), 3, 32, 32)), batch[1])

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            decayed = optim.param_groups_layer_decay(self.model, layer_decay=0.7)
            optimizer = torch.optim.AdamW(decayed, lr=1e-3)
            return [optimizer], [scheduler.CosineLRScheduler(optimizer, t_initial=5)] if reads else []

        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step(epoch=self.current_epoch)

    assert len(said(UNREAD, Images(), FREEZING)) == count
