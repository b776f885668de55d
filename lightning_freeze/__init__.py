"""lightning-freeze: freeze, unfreeze and pace the layers of any transformer in PyTorch Lightning."""

from lightning_freeze.advice import Advice, RuleOfThumb, advise, rule_of_thumb
from lightning_freeze.callbacks import (
    DiscriminativeLR,
    FrozenPrefixCache,
    GradualUnfreezing,
    LayerFreezing,
    PhasedFineTuning,
)
from lightning_freeze.comparison import Comparison, compare
from lightning_freeze.data import TextDataModule
from lightning_freeze.forgetting import Forgetting, ForgettingResult, TaskForgetting, task_forgetting
from lightning_freeze.layers import Layer, LayerStack
from lightning_freeze.module import TransformerModule
from lightning_freeze.plan import TrainingPlan, plan_training
from lightning_freeze.run_report import FreezeReport
from lightning_freeze.schedule.phases import Phase
from lightning_freeze.schedule.triggers import AnyTrigger, EpochTrigger, PlateauTrigger, StepTrigger, Trigger
from lightning_freeze.strategies import (
    L2SP,
    LISA,
    AutoFreeze,
    BlockCoordinate,
    ChainThaw,
    DynamicFreezing,
    FisherUnfreezing,
    FreezeOut,
    GrowingPrefix,
    LargestFisherNext,
    LargestUpdates,
    LinearProbeThenFineTune,
    MeasuringPolicy,
    OneLayerAtATime,
    Policy,
    RandomLayers,
    ReinitTopLayers,
    RelativeGradientLR,
    SlimFit,
    SpectrumFreezing,
    Statistics,
    ULMFiT,
)

__all__ = [
    "L2SP",
    "LISA",
    "Advice",
    "AnyTrigger",
    "AutoFreeze",
    "BlockCoordinate",
    "ChainThaw",
    "Comparison",
    "DiscriminativeLR",
    "DynamicFreezing",
    "EpochTrigger",
    "FisherUnfreezing",
    "Forgetting",
    "ForgettingResult",
    "FreezeOut",
    "FreezeReport",
    "FrozenPrefixCache",
    "GradualUnfreezing",
    "GrowingPrefix",
    "LargestFisherNext",
    "LargestUpdates",
    "Layer",
    "LayerFreezing",
    "LayerStack",
    "LinearProbeThenFineTune",
    "MeasuringPolicy",
    "OneLayerAtATime",
    "Phase",
    "PhasedFineTuning",
    "PlateauTrigger",
    "Policy",
    "RandomLayers",
    "ReinitTopLayers",
    "RelativeGradientLR",
    "RuleOfThumb",
    "SlimFit",
    "SpectrumFreezing",
    "Statistics",
    "StepTrigger",
    "TaskForgetting",
    "TextDataModule",
    "TrainingPlan",
    "TransformerModule",
    "Trigger",
    "ULMFiT",
    "advise",
    "compare",
    "plan_training",
    "rule_of_thumb",
    "task_forgetting",
]
