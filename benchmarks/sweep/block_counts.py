"""How many blocks a model should have, by its configuration and by what transformers marks for checkpointing."""

from __future__ import annotations

from typing import Any

from sweep.known.block_counts import COUNTS
from torch import nn
from transformers import PreTrainedConfig

# A configuration with stage_num_blocks may keep depths that nothing reads.
_STAGED = ("stage_num_blocks", "depths", "num_block_repeats", "blocks_per_stage", "layers_per_stage")
_ENCODERS = ("encoder_layers", "num_encoder_layers", "encoder_num_hidden_layers", "n_encoder_layers", "encoder_depth")
_DECODERS = ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers", "n_decoder_layers", "decoder_depth")
_PLAIN = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth")


#: Depths of torchvision's and timm's residual networks, the backbones of detection models.
_RESIDUAL = {"resnet18": 8, "resnet50": 16, "resnet101": 33}


def configured(config: PreTrainedConfig) -> list[int]:
    """Blocks of every stack that a configuration asks for, those of the configurations in it included."""
    parts = [v for v in config.__dict__.values() if isinstance(v, PreTrainedConfig)]
    return [*(count for part in parts for count in configured(part)), *_own(config)]


def _own(config: PreTrainedConfig) -> list[int]:
    fields = config.__dict__
    if fields.get("backbone") in _RESIDUAL and config.model_type == "timm_backbone":
        return [_RESIDUAL[fields["backbone"]]]
    if isinstance(fields.get("block_sizes"), list | tuple):
        return [sum(fields["block_sizes"]), *[fields["num_decoder_layers"]] * bool(fields.get("num_decoder_layers"))]
    for name in _STAGED:
        if isinstance(fields.get(name), list | tuple) and all(isinstance(v, int) for v in fields[name]):
            return [sum(fields[name])]
    encoder = next((fields[n] for n in _ENCODERS if isinstance(fields.get(n), int)), 0)
    decoder = next((fields[n] for n in _DECODERS if isinstance(fields.get(n), int)), 0)
    plain = next((fields[n] for n in _PLAIN if isinstance(fields.get(n), int)), 0)
    if plain and decoder and not encoder:
        return [plain, decoder]
    return [count for count in (encoder, decoder) if count] or [plain] * bool(plain)


def marked(module: nn.Module) -> int:
    """Modules of the class that transformers makes the unit of gradient checkpointing, none inside another."""
    count = 0

    def visit(node: nn.Module, seen: set[int]) -> None:
        nonlocal count
        if id(node) in seen:
            return
        seen.add(id(node))
        if any(c.__name__ == "GradientCheckpointingLayer" for c in type(node).__mro__):
            count += 1
            return
        for child in node.children():
            visit(child, seen)

    visit(module, set())
    return count


def expected(module: Any, name: str = "") -> dict[str, Any]:
    """The answers that there are: what is known of the class, or else both of the generic ones."""
    if name in COUNTS:
        return {"its code": COUNTS[name].blocks(module.config)} if COUNTS[name].blocks else {}
    answers = {"config": sorted(configured(module.config)), "marked": marked(module)}
    return {k: v for k, v in answers.items() if v}


def compare(found: dict[str, int], answers: dict[str, Any]) -> tuple[str, str]:
    """Whether the stacks that were found have the sizes that the answers give.

    Args:
        found: Tower name to its number of blocks.
        answers: Source to a total, or to the sizes of single stacks.

    Returns:
        A verdict, ``""`` where the number is right, else ``"coarser"`` or ``"finer"``, and what to say about it.
    """
    total = sum(found.values())
    verdicts = [_verdict(found, total, answer) for answer in answers.values()]
    if not verdicts or "" in verdicts:
        return "", ""
    extra = next((v for v in verdicts if v.startswith("+")), "")
    if extra:
        return "", f"further stacks besides those of the configuration: {extra[1:]}"
    short = next((v for v in verdicts if v.startswith("-")), "")
    if short:
        return "coarser", f"stacks of {short[1:]} blocks are not told apart from what stands around them"
    wanted = " or ".join(f"{answer} ({source})" for source, answer in answers.items())
    sums = [sum(a) if isinstance(a, list) else a for a in answers.values()]
    return ("coarser" if total < min(sums) else "finer"), f"{total} blocks instead of {wanted}"


def _verdict(found: dict[str, int], total: int, answer: Any) -> str:
    if not isinstance(answer, list):
        return "" if total == answer else "other"
    if total == sum(answer):
        return ""
    left, missing = dict(found), []
    for count in answer:
        match = next((name for name, size in left.items() if size == count), None)
        if match is None:
            missing.append(count)
        else:
            del left[match]
    if not missing:
        return "+" + ", ".join(f"{name} ({size})" for name, size in left.items())
    return f"-{missing}" if len(missing) < len(answer) and max(missing) <= 2 else "other"
