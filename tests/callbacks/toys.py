"""A tiny transformer in a LightningModule without this package, in float64 so that equality can be exact."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from step_rates import StepRates
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

DEPTH = 4


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(torch.tanh(self.linear(self.norm(x))))


class Encoder(nn.Module):
    def __init__(self, width: int = 8, depth: int = DEPTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(16, width)
        self.layers = nn.ModuleList(Block(width, dropout) for _ in range(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return x.mean(dim=1)


class Toy(LightningModule):
    """Classifies token sequences; ``make_optimizers`` makes what ``configure_optimizers`` returns, from the module."""

    def __init__(
        self,
        make_optimizers: Callable[[nn.Module], Any] | None = None,
        dropout: float = 0.0,
        depth: int = DEPTH,
        values: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(dropout=dropout, depth=depth)
        self.classifier = nn.Linear(8, 2)
        self.make_optimizers = make_optimizers
        self.values = list(values) if values is not None else None
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(self.encoder(tokens))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def on_validation_epoch_end(self) -> None:
        # A scripted metric makes plateaus happen exactly when a test wants them.
        if self.values is not None and not self.trainer.sanity_checking:
            self.log("scripted", self.values.pop(0) if self.values else 0.0)

    def configure_optimizers(self) -> Any:
        if self.make_optimizers is not None:
            return self.make_optimizers(self)
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make(seed: int = 0, **options: Any) -> Toy:
    torch.manual_seed(seed)
    return Toy(**options)


def loader(batches: int = 4, size: int = 4, seed: int = 1) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 16, (batches * size, 5), generator=generator)
    return DataLoader(TensorDataset(tokens, (tokens.sum(1) % 2)), batch_size=size)


def trainer(*callbacks: Callback, tmp_path: Any = None, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    if tmp_path is not None:
        defaults["default_root_dir"] = tmp_path
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def fit(module: LightningModule, *callbacks: Callback, **options: Any) -> Trainer:
    batches = options.pop("batches", 4)
    ckpt_path = options.pop("ckpt_path", None)
    the_trainer = trainer(*callbacks, **options)
    the_trainer.fit(module, loader(batches), loader(2, seed=2), ckpt_path=ckpt_path)
    return the_trainer


def weights(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(module.state_dict()))


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The layers, by name, of which any tensor differs in any bit."""
    names = {name for name in before if not torch.equal(before[name], after[name])}
    return {layer_of(name) for name in names}


def layer_of(name: str) -> str:
    if name.startswith("encoder.embeddings"):
        return "embeddings"
    if name.startswith("encoder.layers."):
        return name.split(".")[2]
    return "head"


class Recorder(Callback):
    """Notes at each training batch what is trainable, in eval mode and at which rate; the last of the callbacks."""

    def __init__(self) -> None:
        self.trains: list[set[str]] = []
        self.eval_blocks: list[set[str]] = []
        self.rates: list[dict[str, float]] = []
        self.clocks: list[tuple[int, int]] = []
        self.losses: list[Tensor] = []
        self._watch = StepRates()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.clocks.append((trainer.current_epoch, trainer.global_step))
        self.trains.append({layer_of(n) for n, p in pl_module.named_parameters() if p.requires_grad})
        layers = pl_module.encoder.layers
        self.eval_blocks.append({str(i) for i, block in enumerate(layers) if not block.dropout.training})

        def note(rates: dict[nn.Parameter, float]) -> None:
            self.rates.append({name: rates[p] for name, p in pl_module.named_parameters() if p in rates})

        self._watch.begin(trainer.optimizers, note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._watch.end()
        self.losses.append(outputs["loss"].detach().clone())

    def phases(self) -> list[tuple[tuple[int, int], set[str]]]:
        """The (epoch, step) at which the trainable set changed, with the new set."""
        changes: list[tuple[tuple[int, int], set[str]]] = []
        for clock, trains in zip(self.clocks, self.trains, strict=True):
            if not changes or changes[-1][1] != trains:
                changes.append((clock, trains))
        return changes


class StatefulLoader:
    """The batches of a loader in order, resumable in mid-epoch in the way that Lightning asks for."""

    def __init__(self, batches: int = 4) -> None:
        self.batches = list(loader(batches))
        self.position = 0
        self.resumes = False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        self.position = self.position if self.resumes else 0
        self.resumes = False
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"] % len(self.batches)
        self.resumes = True
