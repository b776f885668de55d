"""Arguments in Python are checked against their annotations."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from torch import nn

import lightning_freeze
from lightning_freeze import (
    L2SP,
    LISA,
    AnyTrigger,
    AutoFreeze,
    BlockCoordinate,
    ChainThaw,
    DiscriminativeLR,
    DynamicFreezing,
    EpochTrigger,
    FisherUnfreezing,
    Forgetting,
    FreezeOut,
    FreezeReport,
    FrozenPrefixCache,
    GradualUnfreezing,
    GrowingPrefix,
    LargestFisherNext,
    LargestUpdates,
    LayerFreezing,
    LinearProbeThenFineTune,
    OneLayerAtATime,
    Phase,
    PhasedFineTuning,
    PlateauTrigger,
    RandomLayers,
    ReinitTopLayers,
    RelativeGradientLR,
    SlimFit,
    SpectrumFreezing,
    StepTrigger,
    TextDataModule,
    TransformerModule,
    ULMFiT,
)
from lightning_freeze.arguments import check_at_least, check_distinct, check_share, check_unused
from lightning_freeze.arguments.annotations import described, fits
from lightning_freeze.errors import ConfigurationError

PUBLIC = (
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
    OneLayerAtATime,
    RandomLayers,
    ReinitTopLayers,
    RelativeGradientLR,
    SlimFit,
    SpectrumFreezing,
    ULMFiT,
    AnyTrigger,
    DiscriminativeLR,
    EpochTrigger,
    Forgetting,
    FreezeReport,
    FrozenPrefixCache,
    GradualUnfreezing,
    LayerFreezing,
    PhasedFineTuning,
    PlateauTrigger,
    StepTrigger,
    TextDataModule,
    TransformerModule,
)
PHASES = [Phase("head", EpochTrigger(1)), Phase("all")]


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (int, [0, -3, np.int64(3)], [True, 1.0, "1", None, np.float32(1)]),
        (float, [0, 0.5, np.float32(1)], [True, "0.5", None, [1]]),
        (bool, [True, False, np.bool_(True)], [0, 1, "False", "true", None]),
        (str, ["a", Path("a")], [1, None, b"a", ["a"]]),
        (int | None, [1, None], ["1", False]),
        (Literal["min", "max"], ["min"], ["mean", None, 1]),
        (Literal[1, 2], [1], [True, 1.0, "1"]),
        (list[str], [["a"], ("a",), np.array(["a"]), []], ["a", [1], {"a": 1}, (x for x in "a")]),
        (Sequence[int], [[1]], ["1", [True]]),
        (tuple[float, float], [(1, 2.0), [1, 2]], [(1,), (1, 2, 3), ("1", 2)]),
        (Mapping[str, float], [{"a": 1}, {}], [{"a": "1"}, {1: 1}, [("a", 1)], "a"]),
        (dict[str, Any], [{"a": object()}], [{1: 2}, 3]),
        (Callable[[Iterable[Any]], Any], [len, int], [3, "len"]),
        (nn.Module, [nn.ReLU()], [nn.ReLU, "x"]),
        (Any, [1, None, "x"], []),
    ],
)
def test_value_fits_an_annotation(annotation: Any, right: list[Any], wrong: list[Any]) -> None:
    assert [value for value in right if not fits(value, annotation)] == []
    assert [value for value in wrong if fits(value, annotation)] == []


def test_annotations_in_words() -> None:
    assert described(int | None) == "a whole number or None"
    assert described(Literal["min", "max"] | None) == "'min' or 'max' or None"
    assert described(tuple[float, float, float]) == "a list of 3, each a number"
    assert described(list[str] | None) == "a list with items that are text or None"
    assert described(Mapping[str, float]) == "a map from text to a number"
    assert described(str | nn.Module) == "text or a Module"


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: TransformerModule("x", pooling="max"), "TransformerModule(pooling='max'): expected 'mean' or 'cls' or "),
    (lambda: TransformerModule("x", labels="positive"), "TransformerModule(labels='positive'): expected a list"),
    (lambda: TransformerModule("x", pretrained="False"), "TransformerModule(pretrained='False'): expected True or"),
    (lambda: TransformerModule("x", task="clasification"), "Did you mean 'classification'?"),
    (lambda: TransformerModule("x", num_classes=2.0), "TransformerModule(num_classes=2.0): expected a whole number or"),
    (lambda: TransformerModule("x", optimizer="Adam"), "TransformerModule(optimizer='Adam'): expected a function"),
    (lambda: TransformerModule("x", warmup_ratio=0.3, lr_scheduler=len), "has no effect beside lr_scheduler"),
    (lambda: TextDataModule(batch_size="8"), "TextDataModule(batch_size='8'): expected a whole number."),
    (lambda: TextDataModule(batch_size=True), "TextDataModule(batch_size=True): expected a whole number."),
    (lambda: TextDataModule(split=(0.8, 0.2)), "TextDataModule(split=(0.8, 0.2)): expected a list of 3, each a"),
    (lambda: TextDataModule(data="x.csv", empty_text="skip"), "data.empty_text is 'skip'"),
    (lambda: TextDataModule(labels="positive"), "TextDataModule(labels='positive'): expected a list"),
    (lambda: TextDataModule(train="a.csv", group_column="author"), "has no effect without data"),
    (lambda: LayerFreezing("0", frozen_eval="False"), "LayerFreezing(frozen_eval='False'): expected True or False."),
    (lambda: LayerFreezing(3), "LayerFreezing(layers=3): expected text."),
    (lambda: GradualUnfreezing(layers_per_phase="2"), "GradualUnfreezing(layers_per_phase='2'): expected a whole"),
    (lambda: GradualUnfreezing(trigger=1), "GradualUnfreezing(trigger=1): expected a Trigger."),
    (lambda: GradualUnfreezing(monitor="val_loss"), "GradualUnfreezing(monitor='val_loss') has no effect without"),
    (lambda: GradualUnfreezing(restore_best="no"), "GradualUnfreezing(restore_best='no'): expected True or False."),
    (lambda: PhasedFineTuning(PHASES, warmup_steps=0.5), "PhasedFineTuning(warmup_steps=0.5): expected a whole"),
    (lambda: PhasedFineTuning(PHASES, mode="max"), "PhasedFineTuning(mode='max') has no effect without restore_best"),
    (lambda: DiscriminativeLR(decay="0.9"), "DiscriminativeLR(decay='0.9'): expected a number."),
    (lambda: DiscriminativeLR(factors=[1]), "DiscriminativeLR(factors=[1]): expected a map from text to a number"),
    (lambda: DiscriminativeLR(factors={0: 1.0}), "DiscriminativeLR(factors={0: 1.0}): expected a map from text to a"),
    (lambda: FrozenPrefixCache(verify=True), "FrozenPrefixCache(verify=True): expected a whole number."),
    (lambda: FrozenPrefixCache(trim_padding="yes"), "FrozenPrefixCache(trim_padding='yes'): expected True or False."),
    (lambda: FreezeReport(every_n_steps=2.5), "FreezeReport(every_n_steps=2.5): expected a whole number or None."),
    (lambda: FreezeReport(log="False"), "FreezeReport(log='False'): expected True or False. Did you mean False?"),
    (lambda: EpochTrigger("1"), "EpochTrigger(n='1'): expected a whole number."),
    (lambda: StepTrigger(1.0), "StepTrigger(n=1.0): expected a whole number."),
    (lambda: PlateauTrigger("val_loss", mode="mean"), "PlateauTrigger(mode='mean'): expected 'min' or 'max'."),
    (lambda: PlateauTrigger("val_loss", min_delta="1"), "PlateauTrigger(min_delta='1'): expected a number."),
    (lambda: AnyTrigger([1]), "AnyTrigger"),
    (lambda: Forgetting("a.txt", max_texts="9"), "Forgetting(max_texts='9'): expected a whole number or"),
    (lambda: LISA("2"), "LISA(activated_layers='2'): expected a whole number."),
    (lambda: BlockCoordinate(order="up"), "BlockCoordinate(order='up'): expected"),
    (lambda: DynamicFreezing(lambda layers, turn: layers), "expected a Policy."),
    (lambda: ChainThaw(trigger=1), "ChainThaw(trigger=1): expected a Trigger."),
    (lambda: AutoFreeze("10"), "AutoFreeze(num_intervals='10'): expected a whole number."),
    (lambda: FreezeOut(how_scale="cube"), "FreezeOut(how_scale='cube'): expected"),
    (lambda: ULMFiT(factor="2.6"), "ULMFiT(factor='2.6'): expected a number."),
]  # fmt: skip


@pytest.mark.parametrize(("build", "words"), WRONG, ids=[words[:50] for _, words in WRONG])
def test_wrong_argument_is_named(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        build()
    assert words in str(error.value)


def test_numpy_numbers_and_paths_are_taken(reviews_csv: Path) -> None:
    data = TextDataModule(data=reviews_csv, batch_size=np.int64(4))  # type: ignore[arg-type]
    assert data.data == str(reviews_csv)
    assert EpochTrigger(np.int64(2)).n == 2  # type: ignore[arg-type]
    assert DiscriminativeLR(decay=np.float64(0.5), factors={"head": np.float32(2)}).decay == 0.5


def test_defaults_are_right() -> None:
    for cls in PUBLIC:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
        for name, parameter in inspect.signature(cls).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                assert fits(parameter.default, hints[name]), (cls, name)


def test_no_public_class_is_left_out() -> None:
    # Phases are checked by what takes them; a policy is for others to write; plans and results are made by functions,
    # and statistics by a run.
    left_out = {"Layer", "LayerStack", "MeasuringPolicy", "Phase", "Policy", "Statistics", "TrainingPlan", "Trigger"}
    left_out |= {"Advice", "Comparison", "RuleOfThumb", "ForgettingResult", "TaskForgetting"}
    public = [name for name in lightning_freeze.__all__ if inspect.isclass(getattr(lightning_freeze, name))]
    assert {cls.__name__ for cls in PUBLIC} == set(public) - left_out


@pytest.mark.parametrize(
    ("build", "nearest"),
    [
        (lambda: TransformerModule("x", pretrained="False"), "Did you mean False?"),
        (lambda: LayerFreezing("0", frozen_eval="true"), "Did you mean True?"),
        (lambda: TextDataModule(batch_size="8"), "Did you mean 8?"),
        (lambda: DiscriminativeLR(decay="0.9"), "Did you mean 0.9?"),
        (lambda: TransformerModule("x", pooling="men"), "Did you mean 'mean'?"),
    ],
)
def test_text_that_spells_a_value_names_it(build: Callable[[], object], nearest: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        build()
    assert str(error.value).endswith(nearest)


def test_a_set_has_no_order() -> None:
    assert not fits({"a", "b"}, list[str])
    with pytest.raises(ConfigurationError, match="expected a list"):
        TransformerModule("x", labels={"neg", "pos"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_at_least("n", 0, 1), "n is 0: expected at least 1."),
        (lambda: check_at_least("n", float("nan"), 0), "n is nan: expected at least 0."),
        (lambda: check_share("r", 1.0), "r is 1.0: expected a share of at least 0 and below 1."),
        (lambda: check_share("r", float("nan")), "r is nan: expected a share of at least 0 and below 1."),
        (lambda: check_distinct("labels", ["a", "b", "a"]), "labels holds 'a' twice: expected a different name for"),
        (lambda: check_unused("reason", [("n", 2, 1)]), "n=2 has no effect: reason. Leave it out."),
    ],
)
def test_what_annotations_cannot_say(check: Callable[[], None], message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        check()
    assert str(error.value).startswith(message)
    check_at_least("n", None, 1)
    check_share("r", 0)
    check_distinct("labels", None)
    check_unused("reason", [("n", 1, 1)])
