"""Where backward stops: what the structure says against what autograd shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from layer_checks import function_calls, run
from layer_models import CASES, COMMON, SPECIAL, VISION, ResNet, hf, ids, image
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_freeze.diagnostics.backward_watch import BackwardWatch
from lightning_freeze.layers import Layer, LayerStack
from lightning_freeze.layers.analysis.backward_extent import Leak, backward_leaks


def freeze(stack: LayerStack, layers: Iterable[Layer] = (), selector: str = "") -> None:
    for parameter in stack.module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    chosen = stack.select(selector).parameters if selector else [p for layer in layers for p in layer.parameters()]
    for parameter in chosen:
        parameter.requires_grad_(False)


def frozen(name: str, selector: str) -> LayerStack:
    stack = LayerStack(CASES[name].build())
    freeze(stack, selector=selector)
    return stack


def through_blocks(stack: LayerStack) -> list[Leak]:
    return [leak for leak in backward_leaks(stack) if any(stack[name].is_block for name in leak.layers)]


def watched(stack: LayerStack, inputs: Any) -> list[Leak]:
    watch = BackwardWatch(stack)
    run(stack.module, inputs)
    return watch.close()


def layers_of(leaks: Iterable[Leak]) -> set[str]:
    return {name for leak in leaks for name in leak.layers}


@pytest.mark.fast_cases(21)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_structure_says_what_autograd_shows(name: str, training: bool) -> None:
    torch.manual_seed(0)
    stack = LayerStack(CASES[name].build())
    if hasattr(stack.module, "config"):
        stack.module.config.layerdrop = 0.0  # a block that is skipped shows nothing
    inputs = CASES[name].inputs()
    layers = [layer for layer in stack if layer.parameters()]
    choices = [[layer for layer in layers if layer is not trains] for trains in layers]
    choices.append(list(stack.blocks)[: max(1, len(stack.blocks) // 2)])
    choices.append([layer for layer in layers if layer.index % 2])
    for choice in choices:
        freeze(stack, choice)
        if any(p.requires_grad for p in stack.module.parameters()):
            stack.module.train(training)
            leaks = backward_leaks(stack)
            seen = watched(stack, inputs)
            certain = layers_of(leak for leak in leaks if leak.is_certain)
            assert certain <= layers_of(seen) <= layers_of(leaks), [layer.name for layer in choice]
            blamed = {name for leak in leaks for name in leak.parameters}
            assert {name for leak in seen for name in leak.parameters} <= blamed


def test_a_frozen_prefix_with_its_embeddings_has_no_leak() -> None:
    stack = frozen("bert-classifier", "embeddings,:2")
    assert backward_leaks(stack) == []
    assert "backward" not in stack.describe()


def test_the_common_mistake_is_named_with_what_to_freeze() -> None:
    stack = frozen("bert-classifier", ":2")
    (leak,) = backward_leaks(stack)
    assert leak.layers == ("0", "1")
    assert leak.sources == ("embeddings",)
    assert leak.fix == "embeddings"
    assert leak.is_certain
    assert set(leak.parameters) == {name for name, _ in stack["embeddings"].named_parameters()}
    assert "backward runs through frozen 0, 1: embeddings below trains (" in stack.describe()
    freeze(stack, selector=f"{leak.fix},:2")
    assert backward_leaks(stack) == []


def test_a_single_parameter_left_trainable_by_a_glob_is_named() -> None:
    stack = frozen("bert", "*embeddings.*.weight,:2")
    (leak,) = backward_leaks(stack)
    assert leak.parameters == ("embeddings.LayerNorm.bias",)
    stack = frozen("deberta-v3", "deberta.embeddings.*,deberta.encoder.LayerNorm.*,:2")
    (leak,) = backward_leaks(stack)
    assert leak.parameters == ("deberta.encoder.rel_embeddings.weight",)


def test_biases_and_adapters_all_through_the_model_are_no_leak() -> None:
    stack = LayerStack(CASES["bert"].build())
    freeze(stack, selector="*.weight")
    assert backward_leaks(stack) == []
    model = get_peft_model(CASES["bert-classifier"].build(), LoraConfig(r=2, target_modules=["query"]))
    assert through_blocks(LayerStack(model)) == []


def test_each_leak_has_its_own_cause() -> None:
    stack = frozen("bert-classifier", "0,2,head")
    assert [(leak.layers, leak.sources) for leak in backward_leaks(stack)] == [
        (("0",), ("embeddings",)),
        (("2",), ("embeddings", "1")),
        (("head",), ("embeddings", "1", "3")),
    ]


def test_towers_that_run_side_by_side_do_not_feed_one_another() -> None:
    stack = frozen("clip", "text.embeddings,text.:2")
    assert through_blocks(stack) == []
    stack = frozen("clip", "text.:2")
    assert [(leak.layers, leak.sources) for leak in through_blocks(stack)] == [
        (("text.0", "text.1"), ("text.embeddings",))
    ]
    stack = frozen("clip", "embeddings,text,vision.:2")
    assert through_blocks(stack) == []


def test_a_trainable_decoder_does_not_run_through_the_encoder_but_the_reverse_holds() -> None:
    stack = frozen("whisper", "embeddings,encoder")
    assert "model.decoder.embed_tokens.weight" in {n for n, p in stack.module.named_parameters() if p.requires_grad}
    assert backward_leaks(stack) == []
    stack = frozen("whisper", "decoder")
    (leak,) = through_blocks(stack)
    assert leak.layers == ("decoder.0", "decoder.1", "decoder.2", "decoder.3")
    assert leak.sources == ("embeddings", "encoder.0", "encoder.1", "encoder.2")


@pytest.mark.parametrize(("name", "shared"), [("t5", "shared.weight"), ("bart", "shared.weight")])
def test_a_table_that_both_towers_read_feeds_both(name: str, shared: str) -> None:
    stack = LayerStack(CASES[name].build())
    freeze(stack, [layer for layer in stack if layer.name != "embeddings"])
    assert stack["encoder.0"].name in layers_of(backward_leaks(stack))
    assert stack["decoder.1"].name in layers_of(backward_leaks(stack))
    assert any(shared in leak.parameters for leak in backward_leaks(stack))


def test_a_tied_head_keeps_backward_running_through_everything() -> None:
    stack = frozen("gpt2-lm-tied", ":,transformer.wpe.weight")
    (leak,) = through_blocks(stack)
    assert leak.parameters == ("transformer.wte.weight",)
    assert leak.layers == ("0", "1", "2", "3")


def llava() -> nn.Module:
    text = {"model_type": "llama", "num_key_value_heads": 4, **COMMON, **SPECIAL}
    vision = {"model_type": "clip_vision_model", "projection_dim": 16, **VISION}
    settings = {"text_config": text, "vision_config": vision, "image_token_index": 99, "vision_feature_layer": -1}
    return hf("LlavaForConditionalGeneration", "LlavaConfig", **settings)()


def test_token_embeddings_do_not_run_through_the_vision_tower() -> None:
    stack = LayerStack(llava())
    tokens = ids(24)
    tokens[:, 2:18] = 99
    inputs = {"input_ids": tokens, "pixel_values": image()}
    table = next(n for n, _ in stack.module.named_parameters() if n.endswith("embed_tokens.weight"))
    for parameter in stack.module.parameters():
        parameter.requires_grad_(False)
    stack.module.get_parameter(table).requires_grad_(True)
    blocks = {layer.name for layer in stack.blocks if layer.tower == "text"}
    assert {layer.tower for layer in stack.blocks} == {"text", "vision"}
    assert {n for n in layers_of(backward_leaks(stack)) if stack[n].is_block} == blocks
    assert {n for n in layers_of(watched(stack, inputs)) if stack[n].is_block} == blocks


def test_only_what_feeds_the_tower_is_to_be_frozen() -> None:
    stack = LayerStack(llava())
    freeze(stack, selector="vision.:2")
    (leak,) = through_blocks(stack)
    assert leak.layers == ("vision.0", "vision.1")
    assert leak.sources == ("embeddings",)
    assert not any("language_model" in name for name in leak.parameters)
    assert leak.fix == "model.vision_tower.embeddings.*,model.vision_tower.pre_layrnorm.*"
    freeze(stack, selector=f"{leak.fix},vision.:2")
    assert through_blocks(stack) == []
    assert stack.module.get_parameter("model.language_model.embed_tokens.weight").requires_grad


def test_a_text_tower_that_need_not_attend_to_images_is_not_certain_to_leak() -> None:
    text = {**COMMON, **SPECIAL, "encoder_hidden_size": 32, "projection_dim": 16}
    stack = LayerStack(hf("BlipModel", "BlipConfig", text_config=text, vision_config=dict(VISION), projection_dim=16)())
    freeze(stack, [layer for layer in stack if layer.tower == "text"])
    assert [leak.is_certain for leak in through_blocks(stack)] == [False]
    inputs = {"input_ids": ids(), "pixel_values": image()}
    assert not any(stack[name].is_block for name in layers_of(watched(stack, inputs)))


def test_no_data_is_needed() -> None:
    with torch.device("meta"):
        stack = LayerStack(CASES["bert-classifier"].build())
    freeze(stack, selector=":2")
    assert layers_of(backward_leaks(stack)) == {"0", "1"}


def test_a_set_of_parameters_may_stand_for_the_present_one() -> None:
    stack = LayerStack(CASES["bert-classifier"].build())
    trainable = stack.select("embeddings,2:,head").parameters
    assert layers_of(backward_leaks(stack, trainable)) == {"0", "1"}
    assert backward_leaks(stack) == []
    assert all(p.requires_grad for p in stack.module.parameters())


def test_inputs_that_are_made_to_require_grad_are_named() -> None:
    stack = frozen("bert-classifier", "embeddings,:2")
    stack.module.enable_input_require_grads()
    (leak,) = through_blocks(stack)
    assert "bert.embeddings.word_embeddings is made to require grad" in leak.reason
    assert (leak.parameters, leak.sources, leak.fix) == ((), (), "")
    seen = watched(stack, CASES["bert-classifier"].inputs())
    assert {"0", "1"} <= layers_of(seen)
    assert all("enable_input_require_grads" in leak.reason for leak in seen)
    stack.module.disable_input_require_grads()
    assert backward_leaks(stack) == []


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-final-norm"])
def test_speech_encoders_ask_for_input_gradients_in_train_mode_only(name: str) -> None:
    stack = frozen(name, "embeddings,:2")
    stack.module.config.layerdrop = 0.0
    (leak,) = backward_leaks(stack.module.train() and stack)
    assert leak.layers == ("embeddings", "0", "1")
    assert leak.reason.endswith("feature_extractor makes its own input require grad while it is in train mode")
    (seen,) = watched(stack, CASES[name].inputs())
    assert (set(seen.layers), seen.reason, seen.parameters) == ({"embeddings", "0", "1"}, leak.reason, ())
    for module in stack.select("embeddings,:2").modules:
        module.training = False
    assert backward_leaks(stack) == watched(stack, CASES[name].inputs()) == []


def test_an_explicit_map_is_certain_only_once_it_has_been_seen() -> None:
    groups = {"stem": ["conv1", "bn1"], "low": ["layer1", "layer2"], "top": ["layer3", "layer4", "fc"]}
    stack = LayerStack(ResNet(), groups=groups)
    freeze(stack, selector="low")
    (leak,) = backward_leaks(stack)
    assert (leak.layers, leak.sources, leak.is_certain) == (("low",), ("stem",), False)
    assert "backward may run through frozen low" in stack.describe()
    groups = {"low": ["layer1.0", "layer2.0"], "top": ["layer3", "layer4", "fc"]}
    stack = LayerStack(ResNet(), groups=groups)
    freeze(stack, selector="low")
    assert backward_leaks(stack) == []
    (leak,) = watched(stack, (image(),))
    assert leak.sources == ()
    assert {"conv1.weight", "layer1.1.conv1.weight"} <= set(leak.parameters)


class Recurrent(nn.Module):
    """What the last block makes goes through the first one again."""

    def __init__(self, detach: bool = False) -> None:
        super().__init__()
        self.detach = detach
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in [*self.layers, *self.layers]:
            x = layer(x).detach() if self.detach and layer is self.layers[0] else layer(x)
        return x


def test_a_watched_pass_shows_what_no_structure_tells() -> None:
    stack = LayerStack(Recurrent())
    freeze(stack, selector="0,1")
    assert backward_leaks(stack) == []
    (leak,) = watched(stack, (torch.rand(2, 4),))
    assert (leak.layers, leak.sources, leak.parameters) == (("0", "1"), ("2",), ("layers.2.weight", "layers.2.bias"))


def test_a_detached_layer_is_seen_not_to_leak() -> None:
    stack = LayerStack(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)))
    freeze(stack, selector="1")
    assert layers_of(backward_leaks(stack)) == {"1"}
    first: Callable[..., torch.Tensor] = stack.module[0].forward
    stack.module[0].forward = lambda x: first(x).detach()
    assert watched(stack, (torch.rand(2, 4),)) == []


def test_a_watch_leaves_nothing_behind() -> None:
    stack = frozen("bert-classifier", ":2")
    seen: list[str] = []
    watch = BackwardWatch(stack, seen.append)
    inputs = CASES["bert-classifier"].inputs()
    run(stack.module, inputs)
    run(stack.module, inputs)
    assert seen == ["0", "1"]
    watch.close()
    assert not any(module._forward_hooks for module in stack.module.modules())
    assert watch.close() == []


def test_work_of_the_structural_answer_grows_in_proportion_to_the_number_of_modules() -> None:
    calls = {}
    for blocks in (45, 90):
        block = nn.TransformerEncoderLayer(16, 2, 16)
        stack = LayerStack(nn.TransformerEncoder(block, blocks, enable_nested_tensor=False))
        freeze(stack, selector=f"{blocks // 2}:{blocks - 5}")
        calls[blocks] = function_calls(lambda stack=stack: backward_leaks(stack))
        assert calls[blocks] < 60 * len(list(stack.module.modules()))
    assert calls[90] < 2.4 * calls[45]


def test_more_than_half_of_what_freezing_saves_is_lost_by_the_mistake() -> None:
    model = hf("BertForSequenceClassification", "BertConfig", **{**COMMON, "num_hidden_layers": 8})()
    stack = LayerStack(model)

    def operations(selector: str) -> int:
        freeze(stack, selector=selector)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids(16), labels=torch.zeros(2, dtype=torch.long)).loss.backward()
        return counter.get_total_flops()

    everything, mistaken, right = operations("embeddings"), operations(":6"), operations("embeddings,:6")
    assert (everything - mistaken) < 0.5 * (everything - right)
