"""The same fit with and without the cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache


class Examples(Dataset):
    """Token sequences of different lengths, with a class each."""

    def __init__(self, count: int = 12, least: int = 3, most: int = 9, vocabulary: int = 90, seed: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(least, most + 1, (count,), generator=generator).tolist()
        self.rows = [torch.randint(5, vocabulary, (n,), generator=generator) for n in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.rows[index], "label": int(self.rows[index].sum()) % 2}


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad to the longest of the batch."""
    ids = nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["label"] for row in rows])}


def loader(data: Dataset | None = None, size: int = 4, shuffle: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    return DataLoader(
        data if data is not None else Examples(), size, shuffle=shuffle, collate_fn=collate, generator=generator
    )


class Plain(LightningModule):
    """A user's own module around a model that returns its loss; knows nothing of this package."""

    def __init__(self, model: nn.Module, lr: float = 0.05) -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.losses: list[Tensor] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        self.losses.append(loss.detach().clone())
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated.append(self.model(**batch).loss.clone())

    test_step = validation_step

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits: Tensor = self.model(**batch).logits
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def make_trainer(*callbacks: Callback, epochs: int = 3, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": epochs,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def freeze(*modules: nn.Module) -> None:
    for module in modules:
        module.requires_grad_(False).eval()


class MemoryStore:
    """The simplest store there can be."""

    def __init__(self) -> None:
        self.entries: dict[tuple[bytes, bytes], Tensor] = {}
        self.declared: dict[bytes, dict[str, Any]] = {}
        self.notes: dict[bytes, int] = {}

    def get(self, namespace: bytes, keys: Sequence[bytes]) -> list[Tensor | None]:
        return [self.entries.get((namespace, key)) for key in keys]

    def put(self, namespace: bytes, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
        self.entries.update({(namespace, k): t.clone() for k, t in zip(keys, tensors, strict=True)})

    def declare(self, namespace: bytes, info: dict[str, Any]) -> None:
        self.declared[namespace] = info

    def note(self, namespace: bytes, extent: int) -> None:
        self.notes[namespace] = max(extent, self.noted(namespace))

    def noted(self, namespace: bytes) -> int:
        return self.notes.get(namespace, 0)

    def rest(self) -> None: ...


def make_cache(store: Any = None, **options: Any) -> FrozenPrefixCache:
    cache = FrozenPrefixCache(**{"verbose": False, **options})
    cache._store = store
    return cache


class Counter(Callback):
    """Counts how often a module's forward was really run with gradients of a training step around it."""

    def __init__(self, find: Callable[[LightningModule], nn.Module]) -> None:
        self.find = find
        self.calls: list[int] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        linear = self.find(pl_module)
        original = linear.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.calls[-1:] = [self.calls[-1] + 1] if self.calls else []
            return original(*args, **kwargs)

        linear.forward = forward  # type: ignore[method-assign]

    def on_train_batch_start(self, *args: Any) -> None:
        self.calls.append(0)


def both(
    module: LightningModule,
    *callbacks: Callback,
    cache: FrozenPrefixCache | None = None,
    data: Callable[[], DataLoader] = loader,
    validation: Callable[[], DataLoader] | None = None,
    **options: Any,
) -> tuple[Any, Any, FrozenPrefixCache]:
    """Fit two copies of a module, one without and one with the cache; returns both and the cache."""
    cache = cache or make_cache()
    fitted = []
    for extra in ([], [cache]):
        copied = copy.deepcopy(module)
        torch.manual_seed(11)
        trainer = make_trainer(*copy.deepcopy(callbacks), *extra, **options)
        trainer.fit(copied, data(), validation() if validation else None)
        fitted.append(copied)
    return fitted[0], fitted[1], cache


def assert_same(one: Any, other: Any, exact: bool = True) -> None:
    tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-4, "atol": 1e-6}
    assert one.losses
    torch.testing.assert_close(other.losses, one.losses, **tolerance)
    torch.testing.assert_close(other.validated, one.validated, **tolerance)
    torch.testing.assert_close(dict(other.state_dict()), dict(one.state_dict()), **tolerance)
