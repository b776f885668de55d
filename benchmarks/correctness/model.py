"""The model and data of the comparison: a small encoder and a head, in float64 so that equality can be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

RATE, MOMENTUM = 0.1, 0.9
EPOCHS = 4
UNFREEZE = 1
"""The plan of every run: the head alone trains; from this epoch on, everything does."""
BATCHES = 4

Configure = Callable[[torch.optim.Optimizer], Any]


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(torch.tanh(self.linear(self.norm(x))))


class Backbone(nn.Module):
    def __init__(self, dropout: float, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(16, width)
        self.layers = nn.ModuleList(Block(width, dropout) for _ in range(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return x.mean(dim=1)


class Classifier(LightningModule):
    """A user's module, written for none of the tools.

    Args:
        configure: From the optimizer to what ``configure_optimizers`` returns.
        dropout: Probability of dropout in each block.
    """

    def __init__(
        self,
        configure: Configure = lambda optimizer: optimizer,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone(dropout)
        self.head = nn.Linear(8, 2)
        self.configure = configure
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.backbone(tokens))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        # As Lightning's documentation of BackboneFinetuning asks for.
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return self.configure(torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM))


def dataset(batches: int = BATCHES, size: int = 4) -> TensorDataset:
    tokens = torch.randint(0, 16, (batches * size, 5), generator=torch.Generator().manual_seed(1))
    return TensorDataset(tokens, tokens.sum(1) % 2)


def loader(size: int = 4, ranks: tuple[int, int] | None = None) -> DataLoader:
    """The batches in a fixed order; with ``(rank, world size)``, this rank's share of each."""
    data = dataset()
    sampler = None if ranks is None else DistributedSampler(data, num_replicas=ranks[1], rank=ranks[0], shuffle=False)
    return DataLoader(data, batch_size=size, sampler=sampler)


def by_hand() -> dict[str, Tensor]:
    """The same plan in a plain PyTorch loop."""
    module = Classifier()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=MOMENTUM)
    for epoch in range(EPOCHS):
        module.backbone.requires_grad_(epoch >= UNFREEZE)
        for batch in loader():
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
    return dict(module.state_dict())
