"""A module whose frozen part is most of its weights, as a pre-trained model is, and runs that save after each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from toys import Encoder, StatefulLoader, Toy, loader, trainer

from lightning_freeze.checkpoints import OmittedWeight


class Model(Toy):
    """Has the same weights each time it is built from the same ``base``; knows nothing of this package."""

    def __init__(self, base: int = 0, width: int = 8, **options: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(base)
            super().__init__(**options)
            self.encoder = Encoder(width)
            self.classifier = nn.Linear(width, 2)
        self.register_buffer("calls", torch.zeros(3))
        self.double()
        self.save_hyperparameters("base", "width")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])


def adamw(module: nn.Module) -> Any:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)]


def run(
    *callbacks: Callback, path: Path | None = None, module: Model | None = None, ckpt_path: Any = None, **options: Any
) -> tuple[Trainer, Model]:
    """Fit for some epochs of four steps, saving a checkpoint after each step if there is a folder for them."""
    saving = [ModelCheckpoint(path, every_n_train_steps=1, save_top_k=-1, filename="{step}")] if path else []
    settings = {"max_epochs": 3, "enable_checkpointing": bool(path), **options}
    model = module if module is not None else Model(make_optimizers=adamw)
    the_trainer = trainer(*callbacks, *saving, **settings)
    the_trainer.fit(model, StatefulLoader(4), loader(2, seed=2), ckpt_path=ckpt_path)
    return the_trainer, model


def content(path: Path | str) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def omitted(path: Path | str) -> set[str]:
    return {name for name, value in content(path)["state_dict"].items() if isinstance(value, OmittedWeight)}


def assert_same(one: Any, other: Any) -> None:
    """Equal in every bit, the optimizer's state and the order of the entries included."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for x, y in zip(one, other, strict=True):
            assert_same(x, y)
    else:
        assert one == other
