"""Modules with several networks, branches and other shapes that are no single chain."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Network(nn.Module):
    """Embeddings, blocks and a head."""

    def __init__(self, depth: int = 4, outputs: int = 2) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.classifier = nn.Linear(8, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings(tokens)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean(1))


class Trained(LightningModule):
    """Trains whatever ``loss`` depends on."""

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-3)


class Distillation(Trained):
    """A student, and a second network that never trains: before it, behind it, or of another kind."""

    def __init__(self, kind: str = "none", depth: int = 4, is_frozen: bool = True) -> None:
        super().__init__()
        self.kind = kind
        if kind == "before":
            self.teacher = Network(depth).requires_grad_(not is_frozen)
        self.student = Network()
        if kind == "behind":
            self.teacher = Network(depth).requires_grad_(not is_frozen)
        if kind == "copy":
            self.ema = copy.deepcopy(self.student).requires_grad_(False)
        if kind == "average":
            self.averaged = AveragedModel(self.student)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.student(tokens)
        loss = cross_entropy(logits, targets)
        if self.kind in ("before", "behind"):
            with torch.no_grad():
                wanted = self.teacher(tokens)
            loss = loss + mse_loss(logits, wanted)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=1e-3)


class TwoEncoders(Trained):
    """A question encoder and a passage encoder, as for dense retrieval."""

    def __init__(self, depths: tuple[int, int] = (4, 4)) -> None:
        super().__init__()
        self.question, self.passage = (Network(depth, 8) for depth in depths)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        questions = self.question(tokens)
        passages = self.passage(tokens)
        return cross_entropy(questions @ passages.T, torch.arange(len(tokens), device=tokens.device))


class FrozenBackbone(Trained):
    """A backbone that is frozen when the module is made, below a head that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Network(outputs=8).requires_grad_(False)
        self.head = nn.Linear(8, 2)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.head(self.backbone(tokens)), targets)


class Perceptual(Trained):
    """A frozen network that compares what another one makes with what is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = Network(outputs=8)
        self.features = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).requires_grad_(False)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        made = self.features(self.generator(tokens))
        return mse_loss(made, self.features(nn.functional.one_hot(targets, 8).float()))


class DeepAR(nn.Module):
    """One table for each category, a recurrent network, and one head for each parameter of a distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5, 4) for _ in range(3))
        self.rnn = nn.LSTM(12, 8, batch_first=True)
        self.outputs = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))

    def forward(self, categories: Tensor) -> tuple[Tensor, ...]:
        x = torch.cat([table(categories[..., i]) for i, table in enumerate(self.tables)], -1)
        h, _ = self.rnn(x)
        return tuple(output(h) for output in self.outputs)


class Unreadable(DeepAR):
    """The same, by code that does not say which parts it runs."""

    def forward(self, categories: Tensor) -> tuple[Tensor, ...]:
        parts = dict(self.named_children())
        x = torch.cat([table(categories[..., i]) for i, table in enumerate(parts["tables"])], -1)
        h, _ = parts["rnn"](x)
        return tuple(output(h) for output in parts["outputs"])


class Recurrent(nn.Module):
    """A recurrent network below a list of other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.rnn(self.embed(tokens))
        return self.head(self.mlp(x))


class Branches(nn.Module):
    """Two branches of which one is deeper than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.short = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)) + self.short(x))


class Gated(nn.Module):
    """A gated residual network, as a Temporal Fusion Transformer has many of."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.two(torch.relu(self.one(x))))


class InterpretableAttention(nn.Module):
    """A projection of its own for each attention head."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.ModuleList(nn.Linear(8, 4) for _ in range(4))
        self.keys = nn.ModuleList(nn.Linear(8, 4) for _ in range(4))
        self.value = nn.Linear(8, 8)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for i in range(4):
            q, k = self.queries[i](x), self.keys[i](x)
            found.append(torch.softmax(q @ k.transpose(-1, -2), -1) @ self.value(x))
        return self.out(torch.stack(found).mean(0))


class TemporalFusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.variables = nn.ModuleDict({name: Gated() for name in ("price", "weather", "events")})
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = InterpretableAttention()
        self.gate = Gated()
        self.output_layer = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found = {name: net(inputs) for name, net in self.variables.items()}
        x = torch.stack(list(found.values())).sum(0)
        x, _ = self.lstm(x)
        x = x + self.attention(x)
        return self.output_layer(self.gate(x))


class Decoder(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class ManyTasks(nn.Module):
    """One encoder, and a decoder with blocks of its own for each task."""

    def __init__(self, depths: tuple[int, ...] = (2, 2, 2)) -> None:
        super().__init__()
        self.embeddings = nn.Linear(4, 8)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.decoders = nn.ModuleList(Decoder(depth) for depth in depths)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x)
        return [decoder(x) for decoder in self.decoders]


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


class Stage(nn.Module):
    """Blocks in attributes of their own."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, Block())


class ByNumber(Stage):
    def __init__(self) -> None:
        super().__init__("b1", "b2", "b3")

    def forward(self, x: Tensor) -> Tensor:
        x = self.b1(x)
        x = self.b2(x)
        return self.b3(x)


class ByName(Stage):
    def __init__(self) -> None:
        super().__init__("first", "second", "third")

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


class ByFormat(Stage):
    def __init__(self) -> None:
        super().__init__("unit1", "unit2", "unit3")

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.names)):
            x = getattr(self, f"unit{i + 1}")(x)
        return x


class ByChildren(Stage):
    def __init__(self) -> None:
        super().__init__("one", "two", "three")

    def forward(self, x: Tensor) -> Tensor:
        for _, block in self.named_children():
            x = block(x)
        return x


class Staged(nn.Module):
    def __init__(self, stage: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.stages = nn.ModuleList(stage() for _ in range(2))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


class ClassBlock(Block):
    """Another class than the blocks before it."""


class ClassAttention(nn.Module):
    """A long list of blocks, and a short list of another kind behind it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.blocks = nn.ModuleList(Block() for _ in range(12))
        self.add_module(name, nn.ModuleList(ClassBlock() for _ in range(2)))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        for block in getattr(self, self.name):
            x = block(x)
        return self.head(x)


def tokens(samples: int = 16) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 16, (samples, 5), generator=generator)
    return DataLoader(TensorDataset(data, data[:, 0] % 2), batch_size=8)


class Adversarial(Trained):
    """A generator, and a discriminator that sees what it makes and what is real."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = Network(3, 8)
        self.discriminator = nn.Sequential(Block(), Block(), nn.Linear(8, 1))

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        made, real = self.generator(tokens), nn.functional.one_hot(targets, 8).float()
        return self.discriminator(made).mean() - self.discriminator(real).mean()


class SeesAndReads(nn.Module):
    """Images pass through a tower and a projection into the blocks of a language model, if there are images."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.projection, self.language = Decoder(3), nn.Linear(1, 8), Network()

    def forward(self, tokens: Tensor, images: Tensor | None = None) -> Tensor:
        x = self.language.embeddings(tokens)
        if images is not None:
            x = torch.cat([self.projection(self.vision(images)), x], 1)
        for block in self.language.blocks:
            x = block(x)
        return self.language.classifier(x.mean(1))
