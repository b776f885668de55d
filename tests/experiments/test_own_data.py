"""The data modules that experiments bring along: what they draw, and that they draw the same again."""

import csv
import importlib
from pathlib import Path

import pytest
import torch

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(autouse=True)
def repository_root(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS.parent)


@pytest.fixture
def texts(tmp_path) -> Path:
    """Forty texts, a quarter of them positive."""
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"number {i}", "negative" if i % 4 else "positive"] for i in range(40))
    return path


def few_examples(texts: Path, folder: Path, examples: int, seed: int = 0):
    cls = importlib.import_module("experiments.few_shot.few_examples").FewExamples
    data = cls(examples, seed, train=str(texts), test=str(texts), tokenizer=str(folder))
    data.setup("fit")
    return data


def drawn(data) -> list[str]:
    return [row["text"] for row in data.tables["train"].rows]


def test_few_examples_are_balanced_and_grow_with_their_number(texts, tiny_bert_dir):
    four, eight = (few_examples(texts, tiny_bert_dir, count) for count in (4, 8))
    assert [row["label"] for row in eight.tables["train"].rows].count("positive") == 4
    assert len(drawn(four)) == 4 and set(drawn(four)) < set(drawn(eight))
    assert len(four.tables["test"]) == 40


def test_few_examples_depend_on_the_seed_alone(texts, tiny_bert_dir):
    first, again, other = (few_examples(texts, tiny_bert_dir, 8, seed) for seed in (1, 1, 2))
    assert drawn(first) == drawn(again) != drawn(other)


def parts(data) -> list[torch.Tensor]:
    data.setup("fit")
    return [part.tensors[0] for part in (data.train, data.val, data.test)]


def test_digits_of_the_split_are_different_images_of_the_wanted_classes():
    pytest.importorskip("sklearn")
    cls = importlib.import_module("experiments.vision.digits").Digits
    train, val, test = parts(cls([5, 7], train_images=50))
    assert (len(train), len(val)) == (50, 100) and len(test) > 150
    again = parts(cls([5, 7], train_images=50))
    assert all(torch.equal(*pair) for pair in zip((train, val, test), again, strict=True))
    assert not torch.equal(train, parts(cls([5, 7], train_images=50, split_seed=1))[0])


def test_vowels_to_train_on_depend_on_the_seed_and_those_of_the_test_do_not():
    cls = importlib.import_module("experiments.audio.vowels").Vowels
    first, again, other = (parts(cls(["hid", "hud"], train_sounds=10, split_seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert torch.equal(first[2], other[2])
    assert first[2].std(dim=1).allclose(torch.ones(500))
