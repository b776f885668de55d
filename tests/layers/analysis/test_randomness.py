"""Changes in frozen layers apart from parameters: found, stopped by a fit, and reported if they are not stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from layer_checks import function_calls, run
from layer_models import CASES, SEQ2SEQ, SPECIAL, SPEECH, WHISPER, ResNet, hf, image
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.data import DataLoader

from lightning_freeze import LayerFreezing
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.randomness import (
    RandomSource,
    active_random_sources,
    find_random_sources,
    random_source_lines,
)

SOUND = {**SPEECH, "mask_time_length": 2, "mask_time_prob": 0.5, "layerdrop": 0.9}
WHISPER_NOISY = {**WHISPER, "dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3}
SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2, "image_size": 32, "patch_size": 4}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "drop_path_rate": 0.5}


class Net(nn.Module):
    """Convolutions with batch normalisation, both styles of spectral and weight normalisation, and dropout."""

    def __init__(self, **norm: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layers = nn.ModuleList(self.block(kind, norm) for kind in ("new", "old", "new", "old"))
        self.fc = nn.Linear(8, 2)

    @staticmethod
    def block(kind: str, norm: Mapping[str, Any]) -> nn.Module:
        first, second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        if kind == "new":
            parametrizations.spectral_norm(first)
            parametrizations.weight_norm(second)
        else:
            spectral_norm(first)
            weight_norm(second)
        return nn.Sequential(first, nn.BatchNorm2d(8, **norm), nn.Dropout2d(0.3), second, nn.RReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean((2, 3)))


MODELS: dict[str, tuple[Any, Any, str]] = {
    "bert": (CASES["bert-classifier"].build, CASES["bert-classifier"].inputs, "embeddings,:2"),
    "resnet": (ResNet, lambda: {"x": image()}, "embeddings,:4"),
    "normalised weights": (Net, lambda: {"x": image()}, "embeddings,:2"),
    "cumulative statistics": (lambda: Net(momentum=None), lambda: {"x": image()}, "embeddings,:2"),
    "swin": (
        hf("SwinForImageClassification", "SwinConfig", drop_path_rate=0.5, **SWIN),
        CASES["vit"].inputs,
        "embeddings,:2",
    ),
    "convnext": (
        hf("ConvNextForImageClassification", "ConvNextConfig", **CONVNEXT),
        CASES["vit"].inputs,
        "embeddings,:2",
    ),
    "whisper": (
        hf("WhisperForConditionalGeneration", "WhisperConfig", encoder_layerdrop=0.9, **WHISPER_NOISY),
        CASES["whisper"].inputs,
        "embeddings,encoder",
    ),
    "wav2vec2": (
        hf("Wav2Vec2ForCTC", "Wav2Vec2Config", **{**SOUND, "layerdrop": 0.0, "mask_time_prob": 0.0}),
        CASES["wav2vec2"].inputs,
        "embeddings,:2",
    ),
    "hubert": (
        hf("HubertForCTC", "HubertConfig", **{**SOUND, "layerdrop": 0.0, "mask_time_prob": 0.0}),
        CASES["wav2vec2"].inputs,
        "embeddings,:2",
    ),
    "nn.Transformer": (
        CASES["nn.Transformer"].build,
        lambda: dict(zip(("src", "tgt"), CASES["nn.Transformer"].inputs(), strict=True)),
        "encoder,decoder.:2",
    ),
}


class Task(LightningModule):
    """Runs a model on a few batches, all of the same inputs."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        output = self.model(**self.inputs)
        if not isinstance(output, Tensor):
            output = output.logits
        return output.float().pow(2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.is_floating_point()], lr=1e-3)


class Outputs(Callback):
    """The outputs of the top frozen block in each batch, and whether any frozen module was in train mode."""

    def __init__(self, stack: LayerStack, selector: str) -> None:
        selected = stack.select(selector)
        self.modules = selected.modules
        top = [layer for layer in selected.layers if layer.is_block][-1]
        self.module = stack.module.get_submodule(top.prefixes[0])
        self.seen: list[Tensor] = []
        self.awake: list[nn.Module] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.handle = self.module.register_forward_hook(self._note)

    def on_train_batch_end(self, *_: Any) -> None:
        self.handle.remove()

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.seen.append((output if isinstance(output, Tensor) else output[0]).detach().clone())
        self.awake += [m for m in self.modules if m.training]


def train(name: str, frozen_eval: bool = True) -> tuple[LayerStack, str, dict[str, Tensor], Outputs]:
    """Fit a model of the list with its prefix frozen: its layers, the selector, its state before, its outputs."""
    torch.manual_seed(0)
    build, inputs, selector = MODELS[name]
    task = Task(build(), inputs())
    stack = LayerStack(task)
    before = {key: value.clone() for key, value in task.state_dict().items()}
    outputs = Outputs(stack, selector)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.callbacks += [LayerFreezing(selector, frozen_eval=frozen_eval, verbose=False), outputs]
    trainer.fit(task, DataLoader(torch.zeros(3, 1)))
    return stack, selector, before, outputs


def frozen_state(stack: LayerStack, selector: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers of the frozen layers."""
    layers = {layer.name for layer in stack.select(selector).layers}
    modules = dict(stack.module.named_modules())
    owners = {key: stack.layer_of_module(modules[key.rpartition(".")[0]]) for key in state}
    return {key: value for key, value in state.items() if (owner := owners[key]) is not None and owner.name in layers}


def changed(stack: LayerStack, selector: str, before: Mapping[str, Tensor]) -> list[str]:
    after = stack.module.state_dict()
    return [key for key, value in frozen_state(stack, selector, before).items() if not torch.equal(value, after[key])]


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", MODELS)
def test_a_fit_leaves_frozen_layers_still(name: str) -> None:
    stack, selector, before, outputs = train(name)
    assert frozen_state(stack, selector, before)
    assert changed(stack, selector, before) == []
    assert outputs.awake == []
    assert len(outputs.seen) == 6
    assert all(torch.equal(outputs.seen[0], seen) for seen in outputs.seen[1:])


@pytest.mark.fast_cases(3)
@pytest.mark.filterwarnings("ignore:LayerFreezing.* makes its own input require grad")
@pytest.mark.parametrize(
    "name", [name for name in MODELS if name != "resnet"]
)  # the same batch has the same statistics
def test_without_frozen_eval_they_are_not_still(name: str) -> None:
    _, _, _, outputs = train(name, frozen_eval=False)
    assert outputs.awake
    skipped = len(outputs.seen) < 6
    assert skipped or not all(torch.equal(outputs.seen[0], seen) for seen in outputs.seen[1:])


@pytest.mark.parametrize("name", ["resnet", "normalised weights", "cumulative statistics"])
def test_without_frozen_eval_statistics_move(name: str) -> None:
    stack, selector, before, _ = train(name, frozen_eval=False)
    buffers = {key.rpartition(".")[2] for key in changed(stack, selector, before)}
    assert "running_mean" in buffers
    assert name == "resnet" or {"weight_u", "_u"} <= buffers


# ------------------------------------------------------------------------------------------------------------- finding


def kinds(stack: LayerStack, layer: str) -> set[str]:
    return {noise.kind for noise in find_random_sources(stack) if layer in noise.layers and not noise.is_shared}


def shared(stack: LayerStack) -> dict[tuple[str, str], RandomSource]:
    return {(noise.kind, noise.name): noise for noise in find_random_sources(stack) if noise.is_shared}


def test_kinds_that_modules_have_themselves() -> None:
    stack = LayerStack(Net())
    assert kinds(stack, "0") == {"spectral norm", "BatchNorm statistics", "dropout", "RReLU"}
    assert kinds(stack, "0") == kinds(stack, "1")
    assert kinds(LayerStack(CASES["resnet"].build()), "3") == {"BatchNorm statistics"}
    assert kinds(LayerStack(MODELS["swin"][0]()), "3") == {"drop path"}
    assert kinds(LayerStack(MODELS["convnext"][0]()), "3") == {"drop path"}
    assert kinds(LayerStack(CASES["nn.TransformerEncoder"].build()), "0") == {"dropout"}


@pytest.mark.parametrize("off", [True, False])
def test_functional_dropout_counts_where_its_rate_is_not_zero(off: bool) -> None:
    rates = {"attention_dropout": 0.0, "dropout": 0.0, "activation_dropout": 0.0}
    stack = LayerStack(
        hf("BartModel", "BartConfig", **{**SEQ2SEQ, **(rates if off else {**rates, "attention_dropout": 0.2})})()
    )
    found = {(noise.name, noise.rate) for noise in find_random_sources(stack)}
    assert found == (
        set()
        if off
        else {(f"encoder.layers.{i}.self_attn", 0.2) for i in range(3)}
        | {(f"decoder.layers.{i}.{part}", 0.2) for i in range(4) for part in ("self_attn", "encoder_attn")}
    )


def test_layer_drop_and_spec_augment_hang_on_containers() -> None:
    stack = LayerStack(hf("Wav2Vec2ForCTC", "Wav2Vec2Config", **SOUND)())
    found = shared(stack)
    assert set(found) == {("SpecAugment", "wav2vec2"), ("layer drop", "wav2vec2.encoder")}
    assert found["layer drop", "wav2vec2.encoder"].layers == ("0", "1", "2", "3")
    assert found["layer drop", "wav2vec2.encoder"].rate == 0.9
    stack.module.config.apply_spec_augment = False
    stack.module.config.layerdrop = 0.0
    assert shared(stack) == {}
    whisper = LayerStack(hf("WhisperModel", "WhisperConfig", encoder_layerdrop=0.2, **WHISPER)())
    assert set(shared(whisper)) == {("layer drop", "encoder")}
    assert shared(whisper)["layer drop", "encoder"].layers == ("encoder.0", "encoder.1", "encoder.2")


def test_checkpointing_in_train_mode_is_no_noise() -> None:
    settings = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 100,
        "dropout_rate": 0,
    }
    assert find_random_sources(LayerStack(hf("T5Model", "T5Config", **settings)())) == []


# ------------------------------------------------------------------------------------------------- what does not rest


@pytest.mark.parametrize("model", ["wav2vec2", "hubert"])
def test_what_a_container_does_to_frozen_layers_is_told(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    cls, config = {"wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config"), "hubert": ("HubertForCTC", "HubertConfig")}[model]
    torch.manual_seed(0)
    task = Task(hf(cls, config, **SOUND)(), CASES["wav2vec2"].inputs())
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[LayerFreezing("embeddings,:2")],
        enable_model_summary=False,
    )
    trainer.fit(task, DataLoader(torch.zeros(3, 1)))
    printed = capsys.readouterr().out.splitlines()
    assert f"Not still in frozen 0, 1: layer drop (0.9), which follows the mode of model.{model}.encoder." in printed
    assert (
        f"Not still in frozen embeddings, 0, 1: SpecAugment (0.5), which follows the mode of model.{model}." in printed
    )
    assert not [line for line in printed if "in train mode" in line]


def test_a_container_of_which_nothing_trains_rests_with_its_layers() -> None:
    stack = LayerStack(hf("Wav2Vec2ForCTC", "Wav2Vec2Config", **SOUND)())
    selected = stack.select("embeddings,:")
    for parameter in selected.parameters:
        parameter.requires_grad_(False)
    stack.module.train()
    for module in selected.modules:
        module.training = False
    assert active_random_sources(stack) == []
    inputs = CASES["wav2vec2"].inputs()
    assert torch.equal(run(stack.module.wav2vec2, inputs)[0], run(stack.module.wav2vec2, inputs)[0])
    assert "not still" not in stack.describe()


def test_batch_statistics_that_are_never_stored_do_not_rest() -> None:
    stack = LayerStack(Net(track_running_stats=False))
    selected = stack.select("embeddings,:2")
    for parameter in selected.parameters:
        parameter.requires_grad_(False)
    for module in selected.modules:
        module.eval()
    assert "not still in frozen 0, 1: batch statistics, in eval mode too: no running ones are kept" in stack.describe()
    stack = LayerStack(Net(momentum=None).eval())
    stack.module.requires_grad_(False)
    assert active_random_sources(stack) == []


def test_nothing_is_told_of_layers_that_train() -> None:
    stack = LayerStack(CASES["wav2vec2"].build().train())
    assert active_random_sources(stack) == []
    assert random_source_lines(stack, active_random_sources(stack)) == []


def test_a_dropout_between_groups_rests_with_the_container_around_it() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.dropout, self.high = nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.5)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.high(self.dropout(self.low(x)))

    stack = LayerStack(nn.Sequential(Body(), nn.Linear(4, 2)), {"low": "0.low", "high": "0.high", "head": "1"})
    dropout = stack.module[0].dropout[0]
    assert dropout in stack.select("low,high").modules
    assert dropout not in stack.select("low").modules
    for parameter in stack.select("low").parameters:
        parameter.requires_grad_(False)
    (noise,) = active_random_sources(stack)
    assert (noise.kind, noise.name, noise.layers) == ("dropout", "0.dropout.0", ("low",))


@pytest.mark.parametrize("name", CASES)
def test_a_prefix_is_deterministic_unless_something_is_told_of(name: str) -> None:
    torch.manual_seed(0)
    stack = LayerStack(CASES[name].build())
    blocks = list(stack.blocks)
    if not blocks:
        return
    top = blocks[(len(blocks) - 1) // 2]
    names = ",".join(layer.name for layer in stack.layers[: top.index + 1])
    if all(n.isdigit() for n in names.split(",")):
        names = f":{top.index + 1}"
    selected = stack.select(names)
    stack.module.train()
    for parameter in selected.parameters:
        parameter.requires_grad_(False)
    for module in selected.modules:
        module.training = False
    seen: list[Any] = []
    handle = stack.module.get_submodule(top.prefixes[0]).register_forward_hook(lambda *args: seen.append(args[2]))
    inputs = CASES[name].inputs()
    for _ in range(4):
        run(stack.module, inputs)
    handle.remove()
    firsts = [x if isinstance(x, Tensor) else x[0] for x in seen]
    still = len(firsts) == 4 * top.repeats and all(
        torch.equal(a, b) for a, b in zip(firsts, firsts[top.repeats :], strict=False)
    )
    assert still or active_random_sources(stack)
    assert active_random_sources(stack) == [] or name in {"wav2vec2", "wav2vec2-final-norm", "bart"}


def test_it_needs_no_data_and_work_in_proportion_to_the_number_of_modules() -> None:
    calls = {}
    for blocks in (20, 40):
        sizes = {**SEQ2SEQ, **SPECIAL, "encoder_layers": blocks}
        with torch.device("meta"):
            stack = LayerStack(hf("BartForConditionalGeneration", "BartConfig", **sizes)())
        find_random_sources(stack)  # what is read from source once is kept
        calls[blocks] = function_calls(lambda stack=stack: find_random_sources(stack))
        assert calls[blocks] < 60 * len(list(stack.module.modules()))
    assert len(list(stack.module.modules())) > 500
    assert calls[40] < 2.2 * calls[20]
