"""``nn.TransformerEncoder`` with a padding mask: frozen layers in eval mode must not switch its fast path on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toys import trainer

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(16, 2)
        self.losses: list[Tensor] = []
        self.validated: list[Tensor] = []

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.encoder(self.embeddings(tokens), src_key_padding_mask=tokens == 0)
        return self.head(hidden[:, 0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.encoder(self.embeddings(batch[0]), src_key_padding_mask=batch[0] == 0))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


def padded() -> DataLoader:
    tokens = torch.randint(1, 20, (16, 6), generator=torch.Generator().manual_seed(1))
    tokens[::2, 4:] = 0
    return DataLoader(TensorDataset(tokens, tokens.sum(1) % 2), batch_size=4)


@pytest.mark.parametrize(
    "callback",
    [
        lambda: LayerFreezing("embeddings,:2", verbose=False),
        lambda: LayerFreezing("embeddings,:3", verbose=False),
        lambda: GradualUnfreezing(EpochTrigger(1), verbose=False),
    ],
)
def test_it_trains(callback: Any) -> None:
    module = Classifier()
    trainer(callback(), max_epochs=6).fit(module, padded(), padded())
    assert len(module.losses) == 24 and all(loss.isfinite() for loss in module.losses)
    assert module.encoder.use_nested_tensor and "forward" not in vars(module.encoder)


def test_losses_are_those_of_layers_frozen_by_hand_in_train_mode() -> None:
    by_hand, module = Classifier(), Classifier()
    for part in (by_hand.embeddings, *by_hand.encoder.layers[:2]):
        part.requires_grad_(False)
    trainer(max_epochs=2).fit(by_hand, padded())
    trainer(LayerFreezing("embeddings,:2", verbose=False), max_epochs=2).fit(module, padded())
    torch.testing.assert_close(module.losses, by_hand.losses, rtol=1e-5, atol=1e-6)


def test_validation_packs_as_without_callbacks() -> None:
    plain, module = Classifier(), Classifier()
    trainer(max_epochs=1, limit_train_batches=0).validate(plain, padded(), verbose=False)
    trainer(LayerFreezing("embeddings,:2", verbose=False), max_epochs=1, num_sanity_val_steps=-1).fit(
        module, padded(), padded()
    )
    for found, expected in zip(module.validated[:4], plain.validated, strict=True):
        torch.testing.assert_close(found, expected)
