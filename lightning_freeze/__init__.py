"""lightning-freeze: freeze, unfreeze and pace the layers of any transformer in PyTorch Lightning."""

from lightning_freeze.advice import Advice, RuleOfThumb, advise, rule_of_thumb
from lightning_freeze.callbacks import (
    DiscriminativeLR,
    FrozenPrefixCache,
    GradualUnfreezing,
    LayerFreezing,
    PhasedFineTuning,
)
from lightning_freeze.data import TextDataModule
from lightning_freeze.layers import Layer, LayerStack
from lightning_freeze.module import TransformerModule
from lightning_freeze.plan import TrainingPlan, plan_training
from lightning_freeze.run_report import FreezeReport
from lightning_freeze.schedule.phases import Phase
from lightning_freeze.schedule.triggers import AnyTrigger, EpochTrigger, PlateauTrigger, StepTrigger, Trigger
from lightning_freeze.strategies import (
    L2SP,
    LISA,
    BlockCoordinate,
    ChainThaw,
    DynamicFreezing,
    LinearProbeThenFineTune,
    OneLayerAtATime,
    Policy,
    RandomLayers,
    ReinitTopLayers,
    RelativeGradientLR,
    ULMFiT,
)

__all__ = [
    "L2SP",
    "LISA",
    "Advice",
    "AnyTrigger",
    "BlockCoordinate",
    "ChainThaw",
    "DiscriminativeLR",
    "DynamicFreezing",
    "EpochTrigger",
    "FreezeReport",
    "FrozenPrefixCache",
    "GradualUnfreezing",
    "Layer",
    "LayerFreezing",
    "LayerStack",
    "LinearProbeThenFineTune",
    "OneLayerAtATime",
    "Phase",
    "PhasedFineTuning",
    "PlateauTrigger",
    "Policy",
    "RandomLayers",
    "ReinitTopLayers",
    "RelativeGradientLR",
    "RuleOfThumb",
    "StepTrigger",
    "TextDataModule",
    "TrainingPlan",
    "TransformerModule",
    "Trigger",
    "ULMFiT",
    "advise",
    "plan_training",
    "rule_of_thumb",
]
