"""What no constructor of a public class accepts in silence: what has no effect, and what cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_freeze import FrozenPrefixCache, TextDataModule, TransformerModule
from lightning_freeze.errors import ConfigurationError

ROWS = {"tokenizer": "./tiny", "data": "rows.csv"}
FILES = {"tokenizer": "./tiny", "train": "rows.csv"}
MODEL = {"encoder": "./tiny", "task": "classification", "num_classes": 2}


@pytest.mark.parametrize(
    ("cls", "arguments", "words"),
    [
        (FrozenPrefixCache, {"max_disk": "1GiB"}, "has no effect without cache_dir"),
        (FrozenPrefixCache, {"cache_dir": ""}, "expected a folder, or None"),
        (TransformerModule, {**MODEL, "labels": []}, "labels is empty"),
        (TextDataModule, {**FILES, "split": (0.6, 0.2, 0.2)}, "has no effect without data"),
        (TextDataModule, {**ROWS, "task": "regression", "labels": ["a", "b"]}, "data.labels has no effect"),
        (TextDataModule, {**ROWS, "labels": []}, "expected a list of class names"),
        (TextDataModule, {**ROWS, "text": ""}, "A column has an empty name"),
        (TextDataModule, {**ROWS, "label": ""}, "A column has an empty name"),
        (TextDataModule, {**ROWS, "label": "text"}, "The column 'text' is given twice"),
        (TextDataModule, {**ROWS, "text_pair": "text"}, "The column 'text' is given twice"),
        (TextDataModule, {**ROWS, "batch_size": 10**20}, "expected at most 2,147,483,647"),
    ],
)
def test_refused(cls: type, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        cls(**arguments)


def test_a_default_that_is_given_is_accepted() -> None:
    TextDataModule(**FILES, split=[0.8, 0.1, 0.1])
    FrozenPrefixCache(max_disk=None)
