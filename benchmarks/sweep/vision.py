"""One model of every family in timm, and the image models of torchvision."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from sweep.rows import LARGEST, Row, judge, parameters_of, short
from torch import nn

#: timm module to the model taken from it, where the smallest by name does not do.
_MODELS: dict[str, str] = {}
#: timm model to settings that make it small enough, where even the smallest of its module is large.
_SETTINGS: dict[str, dict[str, Any]] = {
    "deepseek_vit_412m": {"depth": 6, "embed_dim": 128, "num_heads": 4},
    "gemma4_vit_167m": {"depth": 6, "embed_dim": 192, "num_heads": 3, "intermediate_size": 384},
    "mobilenetv5_300m": {"channel_multiplier": 0.25},
    # A map of 64 x 64 places, as at full size, does not fit into memory with its gradients.
    "samvit_base_patch16": {"img_size": 256, "embed_dim": 192, "num_heads": 6},
    # The width of its first linear layer; all convolutions stay.
    "vgg11": {"mlp_ratio": 0.25},
}
_SMALL = (
    "atto",
    "femto",
    "pico",
    "nano",
    "xxtiny",
    "xx_small",
    "xxs",
    "tiny",
    "_xs",
    "t0",
    "mini",
    "small",
    "_s",
    "b0",
    "18",
    "26",
    "_0",
    "_t",
)

#: torchvision model to settings and the number of blocks that its paper's table or its settings give (0: no claim).
TORCHVISION: dict[str, tuple[dict[str, Any], int]] = {
    "vit_b_16": (
        {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 48},
        4,
    ),
    "swin_t": ({}, 12),
    "swin_v2_t": ({}, 12),
    "maxvit_t": ({}, 10),
    "resnet18": ({}, 8),
    "resnet50": ({}, 16),
    "wide_resnet50_2": ({}, 16),
    "resnext50_32x4d": ({}, 16),
    "convnext_tiny": ({}, 18),
    "efficientnet_b0": ({}, 16),
    "efficientnet_v2_s": ({}, 40),
    "regnet_y_400mf": ({}, 16),
    "regnet_x_400mf": ({}, 22),
    "mobilenet_v2": ({}, 17),
    "mobilenet_v3_small": ({}, 11),
    "mnasnet0_5": ({}, 0),
    "densenet121": ({}, 58),
    "shufflenet_v2_x0_5": ({}, 16),
    "squeezenet1_1": ({}, 8),
    "googlenet": ({"aux_logits": False, "init_weights": False}, 9),
    "inception_v3": ({"aux_logits": False, "init_weights": False}, 11),
    "alexnet": ({}, 0),
    "vgg11": ({}, 0),
    "vgg11_bn": ({}, 0),
    "fcn_resnet50": ({"weights_backbone": None}, 16),
    "deeplabv3_resnet50": ({"weights_backbone": None}, 16),
    "lraspp_mobilenet_v3_large": ({"weights_backbone": None}, 0),
    "r3d_18": ({}, 8),
    "swin3d_t": ({}, 12),
    "mvit_v1_b": ({}, 16),
    "s3d": ({}, 0),
    "raft_small": ({}, 0),
}
_VIDEO = {"r3d_18", "swin3d_t", "mvit_v1_b", "s3d"}


class Timm:
    """timm, one model for each of its modules."""

    @staticmethod
    def catalogue() -> Iterator[tuple[str, str, str]]:
        timm = _installed("timm")
        for family in timm.list_modules() if timm else ():
            names = [n for n in timm.list_models(module=family) if not n.startswith("test_")]
            if names:
                yield "timm", family, _MODELS.get(family) or min(names, key=lambda n: (_smallness(n), len(n), n))

    @staticmethod
    def examine(kind: str, name: str) -> Row:
        import timm

        row = Row("timm", kind, name)
        try:
            settings = _SETTINGS.get(name, {})
            size = parameters_of(lambda: timm.create_model(name, **settings))
            if size > LARGEST:
                row.outcome, row.reason = "not built", f"too large to be given weights: {size:,} parameters"
                return row
            torch.manual_seed(0)
            module = timm.create_model(name, **settings)
        except Exception as error:
            row.outcome, row.reason = "not built", short(error)
            return row
        channels, *shape = module.default_cfg.get("input_size", (3, 224, 224))
        shape = [settings["img_size"]] * 2 if "img_size" in settings else shape
        sizes = [shape] if module.default_cfg.get("fixed_input_size") else [[64, 64], [96, 96], [128, 128], shape]
        judge(row, module, _images(sizes, channels), _groups(module))
        return row


def _smallness(name: str) -> int:
    return next((i for i, word in enumerate(_SMALL) if word in name), len(_SMALL))


def _groups(module: Any) -> dict[str, int]:
    """Blocks by timm's own table for layer-wise learning rates, which each of its models brings."""
    try:
        from timm.models import group_parameters

        groups = group_parameters(module, module.group_matcher(coarse=False))
        stages = group_parameters(module, module.group_matcher(coarse=True))
        held = sum(len(m) for n, m in module.named_modules() if n.endswith("blocks") and hasattr(m, "__len__"))
        # Without the groups for the stem, the head and the final norm.
        answers = {f"timm's groups less {n}": len(groups) - n for n in (1, 2, 3)}
        answers |= {"timm's coarse groups less 2": len(stages) - 2, "its lists of blocks": held}
        return {k: v for k, v in answers.items() if v > 0}
    except Exception:
        return {}


def _images(sizes: list[list[int]], channels: int = 3) -> Iterator[tuple[str, Any]]:
    for size in sizes:
        yield f"{size[0]}x{size[1]}", (torch.rand(2, channels, *size),)


class Torchvision:
    """torchvision's models."""

    @staticmethod
    def catalogue() -> Iterator[tuple[str, str, str]]:
        if _installed("torchvision"):
            for name in TORCHVISION:
                yield "torchvision", name.split("_")[0].rstrip("0123456789"), name

    @staticmethod
    def examine(kind: str, name: str) -> Row:
        import torchvision

        row = Row("torchvision", kind, name)
        settings, blocks = TORCHVISION[name]
        torch.manual_seed(0)
        try:
            if name == "vit_b_16":
                module: nn.Module = torchvision.models.VisionTransformer(**settings)
            else:
                module = torchvision.models.get_model(name, weights=None, **settings)
        except Exception as error:
            row.outcome, row.reason = "not built", short(error)
            return row
        runs = list(_images([[32, 32]] if name == "vit_b_16" else [[64, 64], [96, 96], [128, 128], [224, 224]]))
        if name in _VIDEO:
            runs = [("video", (torch.rand(1, 3, n, s, s),)) for n, s in ((4, 64), (16, 64), (16, 224))]
        if name == "raft_small":
            runs = [("pair", (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)))]
        judge(row, module, runs, {"its table": blocks} if blocks else {})
        return row


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
