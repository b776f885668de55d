"""Labels become numbers in one way, and a bad one is named with its row."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_freeze.data.labels import encode_labels, majority_share, near_duplicates, sorted_names, training_labels
from lightning_freeze.data.reading.readers import Table


def table(*labels: Any, column: str = "label") -> Table:
    return Table("a.csv", (column,), [{column: label} for label in labels], range(2, len(labels) + 2))


def test_numbers_sort_by_value_and_names_by_spelling() -> None:
    assert sorted_names(["10", "9", "-1"]) == ["-1", "9", "10"]
    assert sorted_names(["b", "10", "9"]) == ["10", "9", "b"]
    assert sorted_names(["nan", "2", "1"]) == ["1", "2", "nan"]


def test_one_is_the_same_class_as_text_and_as_number() -> None:
    rows = table("1", 1, 1.0, 0)
    labels = training_labels("classification", "class", rows, ["label"])
    assert labels == ["0", "1"]
    assert encode_labels("class", rows, ["label"], labels) == [1, 1, 1, 0]


def test_multilabel_from_columns_and_from_lists() -> None:
    rows = Table("a.csv", ("x", "y"), [{"x": "1", "y": "false"}, {"x": 0, "y": True}], [2, 3])
    assert training_labels("multilabel", "multilabel", rows, ["x", "y"]) == ["x", "y"]
    assert encode_labels("multilabel", rows, ["x", "y"], ["x", "y"]) == [[1.0, 0.0], [0.0, 1.0]]
    lists = table(["b", "a"], [], ["a"])
    labels = training_labels("multilabel", "multilabel", lists, ["label"])
    assert labels == ["a", "b"]
    assert encode_labels("multilabel", lists, ["label"], labels) == [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]


def test_regression_targets() -> None:
    assert encode_labels("value", table("1.5", 2), ["label"], []) == [1.5, 2.0]


@pytest.mark.parametrize(
    ("target", "labels", "value", "message"),
    [
        ("class", ["neg", "pos"], "poss", r"a\.csv, line 3: the label 'poss' does not occur.*Did you mean 'pos'"),
        ("class", ["neg", "pos"], " ", r"line 3: the label 'label' is empty"),
        ("class", ["neg", "pos"], None, r"line 3: the label 'label' is empty"),
        ("token", ["neg", "pos"], ["loc"], r"line 3: the label 'loc' does not occur"),
        ("token", ["neg", "pos"], "pos", r"line 3: 'label' is 'pos', expected a list"),
    ],
)
def test_bad_classes(target: str, labels: list[str], value: Any, message: str) -> None:
    good = ["pos"] if target == "token" else "pos"
    with pytest.raises(MisconfigurationException, match=message):
        encode_labels(target, table(good, value), ["label"], labels)


@pytest.mark.parametrize("value", ["nan", float("nan"), "inf", None, "", "high"])
def test_bad_regression_target(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"line 3: 'label' is .*, expected a finite number"):
        encode_labels("value", table("1", value), ["label"], [])


def test_bad_multilabel_flag() -> None:
    rows = Table("a.csv", ("x", "y"), [{"x": "1", "y": "2"}], [2])
    with pytest.raises(MisconfigurationException, match=r"line 2: 'y' is '2', expected 0 or 1"):
        encode_labels("multilabel", rows, ["x", "y"], ["x", "y"])


def test_too_few_and_too_many_classes() -> None:
    with pytest.raises(MisconfigurationException, match=r"1 classes in 'label' \('a'\): expected at least 2"):
        training_labels("classification", "class", table("a", "a"), ["label"])
    with pytest.raises(MisconfigurationException, match=r"50 different values.*'regression'"):
        training_labels("classification", "class", table(*range(50)), ["label"])


def test_majority_is_the_training_class() -> None:
    assert majority_share(["a", "a", "b"], ["b", "b", "a", "b"]) == 0.25


def test_lists_of_zeros_and_ones_are_one_place_for_each_class() -> None:
    rows = table([1, 0, 1], [0.0, 1.0, 0.0], [False, False, True])
    labels = training_labels("multilabel", "multilabel", rows, ["label"])
    assert labels == ["0", "1", "2"]
    expected = [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert encode_labels("multilabel", rows, ["label"], labels) == expected
    assert encode_labels("multilabel", rows, ["label"], ["a", "b", "c"]) == expected
    assert encode_labels("multilabel", table([0, 1]), ["label"], ["a", "b"], multi_hot=True) == [[0.0, 1.0]]


@pytest.mark.parametrize("value", [[1, 0], [1, 0, 2], [1, 0, None], None, "1 0 1", [[1], 0, 1]])
def test_a_bad_list_of_zeros_and_ones(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"a\.csv, line 3: 'label' is "):
        encode_labels("multilabel", table([1, 0, 1], value), ["label"], ["a", "b", "c"], multi_hot=True)


def test_lists_of_class_numbers_are_names() -> None:
    rows = table([0], [1, 0], [])
    labels = training_labels("multilabel", "multilabel", rows, ["label"])
    assert labels == ["0", "1"]
    assert encode_labels("multilabel", rows, ["label"], labels) == [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("value", [["a", None], ["a", float("nan")], ["a", ""], ["a", ["b"]], [b"\xff"], ["\udc00"]])
@pytest.mark.parametrize("target", ["token", "multilabel"])
def test_a_bad_item_of_a_list_is_named(target: str, value: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"a\.csv, line 3: 'label' .*whose item \d "):
        encode_labels(target, table(["a"], value), ["label"], ["a"])


@pytest.mark.parametrize("value", [["pos"], {"a": 1}, b"\xff", [1, 0], [0.1, 0.9]])
def test_what_is_no_single_class(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"a\.csv, line 4: 'label' is "):
        training_labels("classification", "class", table("pos", "neg", value), ["label"])


def test_given_names_are_found_in_any_spelling() -> None:
    assert encode_labels("class", table("1", 1.0, 2), ["label"], ["2.0", "1.0"]) == [1, 1, 0]
    assert encode_labels("class", table("caf\u00e9"), ["label"], ["x", "cafe\u0301"]) == [1]


def test_words_that_do_not_count_are_no_class() -> None:
    rows = table(["O", -100, "X"], ["-100", "O"])
    labels = training_labels("token-classification", "token", rows, ["label"])
    assert labels == ["O", "X"]
    assert encode_labels("token", rows, ["label"], labels) == [[0, -100, 1], [-100, 0]]


@pytest.mark.parametrize("mark", [-1, "-1", -1.0])
def test_a_tag_of_minus_one_beside_numbered_classes_is_no_label(mark: Any) -> None:
    rows = table([0, mark, 1], [mark, 2, -100])
    labels = training_labels("token-classification", "token", rows, ["label"])
    assert labels == ["0", "1", "2"]
    assert encode_labels("token", rows, ["label"], labels) == [[0, -100, 1], [-100, 2, -100]]
    assert encode_labels("token", rows, ["label"], ["-1", *labels]) == [[1, 0, 2], [0, 3, -100]]


@pytest.mark.parametrize("row", [["O", "-1", "X"], [-2, -1, 0, 1], [-1, 0], [-1, 0.0, "O"]])
def test_a_tag_of_minus_one_beside_other_classes_is_a_class(row: Any) -> None:
    rows = table(row)
    labels = training_labels("token-classification", "token", rows, ["label"])
    assert "-1" in labels
    assert -100 not in encode_labels("token", rows, ["label"], labels)[0]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["Pos", "pos", "neg"], [["Pos", "pos"]]),
        (["not spam", "not_spam", "not-spam", "spam"], [["not spam", "not-spam", "not_spam"]]),
        (["01", "1", "2"], [["01", "1"]]),
        (["1.5", "1.50", "15"], [["1.5", "1.50"]]),
        (["\uff21", "A"], [["A", "\uff21"]]),
        (["a\u200bb", "ab"], [["ab", "a\u200bb"]]),
        (["B-PER", "I-PER", "O", "-", "_", ".", ",", "``", "''", "+1", "-1", "cafe", "caf\u00e9"], []),
    ],
)
def test_near_duplicates(names: list[str], groups: list[list[str]]) -> None:
    assert near_duplicates(names) == groups
