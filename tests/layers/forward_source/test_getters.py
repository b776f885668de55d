"""Parts that a module returns from a method or a property, and units that several towers share."""

from __future__ import annotations

from typing import Any

import torch
from layer_checks import gradient_errors, leak_errors, order_errors, partition_errors
from layer_models import small_block
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.forward_source.getters import getter_path
from lightning_freeze.layers.forward_source.reader import use_order

TOKENS = torch.arange(3)[None]


def prefixes(stack: LayerStack) -> dict[str, list[str]]:
    return {layer.name: list(layer.prefixes) for layer in stack}


def holds(stack: LayerStack, *inputs: Any) -> bool:
    return partition_errors(stack) + order_errors(stack, inputs) + gradient_errors(stack, inputs) == []


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(8, 32)
        self.layers = nn.ModuleList([small_block() for _ in range(2)])

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels)
        for layer in self.layers:
            x = layer(x)
        return x


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(9, 32), nn.LayerNorm(32)

    def forward(self, tokens: Tensor | None = None, vectors: Tensor | None = None) -> Tensor:
        return self.norm(self.tokens(tokens) if vectors is None else vectors)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Table()
        self.layers = nn.ModuleList([small_block() for _ in range(2)])

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.tokens

    def forward(self, tokens: Tensor | None = None, vectors: Tensor | None = None) -> Tensor:
        x = self.embeddings(tokens=tokens, vectors=vectors)
        for layer in self.layers:
            x = layer(x)
        return x


class Reads(nn.Module):
    """Embeds its tokens before the images are seen, with a table that the text tower hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model, self.connector, self.text_model = Vision(), nn.Linear(32, 32), Text()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        vectors = self.get_input_embeddings()(tokens)
        seen = self.connector(self.vision_model(pixels))
        return self.text_model(vectors=torch.cat([vectors, seen], 1))


class Looks(Reads):
    """The same, the other way round."""

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        seen = self.connector(self.vision_model(pixels))
        table = self.text_model.get_input_embeddings()
        return self.text_model(vectors=torch.cat([table(tokens), seen], 1))


def test_a_table_that_a_getter_returns_runs_where_it_is_used() -> None:
    stack = LayerStack(Reads())
    assert prefixes(stack)["embeddings"] == ["text_model.embeddings.tokens"]
    assert prefixes(stack)["text.embeddings"] == ["text_model.embeddings.norm"]
    assert holds(stack, TOKENS, torch.rand(1, 4, 8))
    assert leak_errors(stack, (TOKENS, torch.rand(1, 4, 8))) == []


def test_a_table_that_a_getter_returns_late_belongs_to_its_tower() -> None:
    stack = LayerStack(Looks())
    assert "embeddings" not in stack.names
    assert holds(stack, TOKENS, torch.rand(1, 4, 8))


def test_what_getters_return() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8))
    assert getter_path(model, "get_input_embeddings", called=True) == ["transformer", "wte"]
    assert getter_path(model, "get_input_embeddings", called=False) is None
    assert getter_path(Reads(), "get_input_embeddings", called=True) == ["text_model", "embeddings", "tokens"]
    assert getter_path(Reads(), "forward", called=True) is None


class Mergers(nn.Module):
    """Feeds what some of its blocks give to one of a list that a property hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = [0, 2]
        self.merger_list = nn.ModuleList([nn.Linear(32, 2) for _ in self.taken])
        self.patch_embed = nn.Linear(8, 32)
        self.blocks = nn.ModuleList([small_block() for _ in range(3)])

    @property
    def mergers(self) -> nn.ModuleList:
        return self.merger_list

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.patch_embed(x), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.taken:
                found.append(self.mergers[self.taken.index(number)](x))
        return found


def test_a_list_that_a_property_returns() -> None:
    stack = LayerStack(Mergers())
    assert prefixes(stack)["embeddings"] == ["patch_embed"]
    assert prefixes(stack)["0"] == ["blocks.0", "merger_list.0"]
    assert holds(stack, torch.rand(1, 4, 8))


class Clips(nn.Module):
    """Two towers that share a projector, and a language model that takes up both."""

    def __init__(self) -> None:
        super().__init__()
        self.image_tower, self.video_tower = Vision(), Vision()
        self.projector = nn.Linear(32, 32)
        self.language_model = Text()

    def forward(self, image: Tensor, video: Tensor) -> Tensor:
        seen = [self.projector(self.image_tower(image)), self.projector(self.video_tower(video))]
        return self.language_model(vectors=torch.cat(seen, 1))


class Frames(Clips):
    """The projector works for one tower only, although two methods lead to it."""

    def look(self, pixels: Tensor) -> Tensor:
        return self.projector(self.image_tower(pixels))

    def forward(self, image: Tensor, video: Tensor) -> Tensor:
        seen = [self.look(image), self.look(video), self.video_tower(video)]
        return self.language_model(vectors=torch.cat(seen, 1))


class Compares(Clips):
    """Nothing takes up what the towers give."""

    def forward(self, image: Tensor, video: Tensor) -> Tensor:
        return self.projector(self.image_tower(image)) @ self.projector(self.video_tower(video)).mT


def test_a_projector_between_the_towers_and_what_consumes_them() -> None:
    inputs = (torch.rand(1, 4, 8), torch.rand(1, 4, 8))
    for model, shared in ((Clips(), True), (Frames(), False)):
        stack = LayerStack(model)
        assert prefixes(stack)["image.head"] == ["projector"]
        assert order_errors(stack, inputs) == []
        said = "projector works for several of them and counts as image.head"
        assert any(said in line for line in stack.assumptions) is shared


def test_a_projector_that_ends_both_towers_counts_as_head() -> None:
    model = Compares()
    del model.language_model
    stack = LayerStack(model)
    assert prefixes(stack)["head"] == ["projector"]
    assert any("projector works for several of them and counts as head" in line for line in stack.assumptions)


class Detects(nn.Module):
    """A language model that runs behind the image tower, on inputs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.language_backbone, self.vision_model, self.image_model = Text(), Vision(), Vision()

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        seen = self.vision_model(pixels) + self.image_model(pixels)
        return self.language_backbone(tokens) @ seen.mT


def test_the_tokens_of_a_language_model_that_runs_later_stand_with_it() -> None:
    stack = LayerStack(Detects())
    assert prefixes(stack)["language_backbone.embeddings"] == ["language_backbone.embeddings"]
    assert holds(stack, TOKENS, torch.rand(1, 4, 8))


class Once(nn.Module):
    """Embeds special tokens and what the tower sees with the same module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.image_tower, self.video_tower = nn.Linear(32, 32), Vision(), Vision()
        self.language_model = Text()

    def forward(self, x: Tensor, image: Tensor, video: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.embed(self.image_tower(image)) + self.video_tower(video)
        return self.language_model(vectors=x)


class Chooses(Once):
    """Uses it once, in one of two branches."""

    def forward(self, x: Tensor, image: Tensor, video: Tensor) -> Tensor:
        if video is None:
            x = self.embed(x)
        else:
            x = x + self.video_tower(video)
            x = self.embed(x)
        return self.language_model(vectors=x + self.image_tower(image))


def test_what_runs_once_more_on_later_layers_is_said() -> None:
    said = "embed: run once more behind layers that come later: where they run first counts"
    assert said in LayerStack(Once()).assumptions
    assert not any("once more" in line for line in LayerStack(Chooses()).assumptions)


class Levels(nn.Module):
    """Goes through levels backwards, and through the blocks of each by number."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 2
        self.stem = nn.Linear(8, 32)
        self.up = nn.ModuleList()
        for _ in range(3):
            level = nn.Module()
            level.block = nn.ModuleList([small_block() for _ in range(self.depth)])
            level.norms = nn.ModuleList([nn.LayerNorm(32) for _ in range(self.depth)])
            level.sample = nn.Linear(32, 32)
            self.up.append(level)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for level in self.up[::-1]:
            for number in range(self.depth):
                x = level.norms[number](level.block[number](x))
            x = level.sample(x)
        return x


class Down(Levels):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(3):
            for j in range(self.depth):
                x = self.up[i].norms[j](self.up[i].block[j](x))
            x = self.up[i].sample(x)
        return x


def test_loops_in_loops_run_each_block_once() -> None:
    assert use_order(Levels()).steps[1:5] == ["up.2.block.0", "up.2.norms.0", "up.2.block.1", "up.2.norms.1"]
    for model in (Levels(), Down()):
        stack = LayerStack(model)
        assert all(layer.repeats == 1 for layer in stack)
        assert holds(stack, torch.rand(1, 4, 8))


class Answers(nn.Module):
    """Leaves early for each input that is missing; only the whole way tells where all parts run."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_head, self.video_head, self.both = nn.Linear(8, 2), nn.Linear(8, 2), nn.Linear(8, 8)

    def forward(self, audio: Tensor | None = None, video: Tensor | None = None) -> Any:
        if video is None:
            return self.audio_head(audio)
        if audio is None:
            x = self.video_head(video)
            return self.audio_head(x)
        x = self.both(audio + video)
        return self.video_head(x), self.audio_head(x)


def test_several_early_returns() -> None:
    assert use_order(Answers()).order == ["both", "video_head", "audio_head"]


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Linear(8, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(small_block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(x)


def states(model: Any, x: Tensor) -> list[Tensor]:
    return [x := part(x) for part in (model.stem, *model.blocks)]


class Wrapper(nn.Module):
    """One branch runs methods of its child, the other one the child itself."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()

    def forward(self, x: Tensor, everything: bool = False) -> Tensor:
        if everything:
            return self.model.head(states(self.model, x)[-1])
        return self.model(x)


def test_a_call_of_the_child_says_more_than_calls_of_its_methods() -> None:
    stack = LayerStack(Wrapper())
    assert [layer.name for layer in stack] == ["embeddings", "0", "1", "2", "head"]
    assert stack["head"].prefixes == ("model.fc",)
