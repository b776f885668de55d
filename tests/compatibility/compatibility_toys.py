"""Modules for the tests of what else may stand in a run: two networks with an optimizer each, and real transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from step_rates import StepRates
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toys import Block, Encoder


class Generator(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(16, 8)
        self.layers = nn.ModuleList(Block(8, 0.0) for _ in range(depth))
        self.out = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


class Discriminator(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.embeddings = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Block(8, 0.0) for _ in range(depth))
        self.score = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x)
        return self.score(x.mean(dim=1))


class Gan(LightningModule):
    """Trains a generator against a discriminator; the generator steps in every ``every``-th batch."""

    def __init__(
        self, toggles: bool = True, every: int = 1, clip: float | None = None, schedules: bool = False
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = Generator(), Discriminator()
        self.toggles, self.every, self.clip, self.schedules = toggles, every, clip, schedules
        self.seen: list[dict[str, Any]] = []
        self.watch = StepRates()
        self.double()

    def configure_optimizers(self) -> Any:
        one = torch.optim.SGD(self.discriminator.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        two = torch.optim.SGD(self.generator.parameters(), lr=0.05, momentum=0.9)
        if not self.schedules:
            return [one, two]
        return [one, two], [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (one, two)]

    def losses(self) -> dict[str, Callable[[Tensor], Tensor]]:
        bce = nn.functional.binary_cross_entropy_with_logits

        def of_discriminator(tokens: Tensor) -> Tensor:
            real, fake = self.generator.embeddings(tokens).detach().tanh(), self.generator(tokens).detach()
            left, right = self.discriminator(real), self.discriminator(fake)
            return bce(left, torch.ones_like(left)) + bce(right, torch.zeros_like(right))

        def of_generator(tokens: Tensor) -> Tensor:
            score = self.discriminator(self.generator(tokens))
            return bce(score, torch.ones_like(score))

        return {"discriminator": of_discriminator, "generator": of_generator}

    def turns(self, batch_idx: int) -> list[str]:
        return ["discriminator", *(["generator"] if batch_idx % self.every == 0 else [])]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizers = dict(zip(("discriminator", "generator"), self.optimizers(), strict=True))
        schedulers = dict(zip(optimizers, self.lr_schedulers() or (None, None), strict=True))
        for name in self.turns(batch_idx):
            optimizer = optimizers[name]
            if self.toggles:
                self.toggle_optimizer(optimizer)
            loss = self.losses()[name](batch[0])
            optimizer.zero_grad()
            if loss.requires_grad:
                self.manual_backward(loss)
            if self.clip is not None:
                self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
            # Hooks that are registered now run inside those of the package.
            self.watch.begin(
                [getattr(optimizer, "optimizer", optimizer)], lambda rates, name=name: self.note(name, rates)
            )
            optimizer.step()
            self.watch.end()
            if self.toggles:
                self.untoggle_optimizer(optimizer)
            if schedulers[name] is not None:
                schedulers[name].step()

    def note(self, name: str, rates: dict[nn.Parameter, float]) -> None:
        self.seen.append(
            {
                "optimizer": name,
                "step": self.global_step,
                **{n: rates[p] for n, p in self.named_parameters() if p in rates},
            }
        )


def gan(**options: Any) -> Gan:
    torch.manual_seed(0)
    return Gan(**options)


class Classifier(LightningModule):
    """Any transformers model with a loss, trained by SGD; notes which trainable parameters had no gradient."""

    def __init__(self, model: nn.Module, lr: float = 0.1) -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.without: list[set[str]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.model(**{self.model.main_input_name: batch[0], "labels": batch[1]}).loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.without.append({n for n, p in self.named_parameters() if p.requires_grad and p.grad is None})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def batches(kind: str = "tokens", count: int = 2, size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    total = count * size
    if kind == "images":
        inputs = torch.rand(total, 3, 8, 8, generator=generator)
    else:
        inputs = torch.randint(1, 32, (total, 6), generator=generator)
    return DataLoader(TensorDataset(inputs, torch.arange(total) % 2), batch_size=size)


__all__ = ["Block", "Classifier", "Encoder", "Gan", "batches", "gan"]
