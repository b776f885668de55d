"""Many small odd files of all kinds: each row is used as meant, or one error names the file and the first wrong row.

The generator writes down what each field means before it is written, so the test knows the right result.
"""

from __future__ import annotations

import csv
import json
import random
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tokenizer
from tokenizers.normalizers import BertNormalizer

from lightning_freeze.data import TextDataModule
from lightning_freeze.errors import ConfigurationError

WRONG = object()
"""The meaning of a field that must be refused."""
KINDS = ("csv", "tsv", "jsonl", "parquet", "saved")
TOKENIZER = make_tokenizer()


@dataclass
class Field:
    value: Any
    meaning: Any


def same(value: Any) -> Field:
    return Field(value, value)


# What fields of strings can hold; every kind of file can hold them.
STRING_TEXTS = [
    *map(same, ["good film", "a bad one", "5", "1e3", "[PAD] good", "[SEP]", "(good) \u0301 very so", "nan", "None"]),
    Field("", WRONG),
    Field("  ", WRONG),
    Field("\u200b\ufeff", WRONG),
]
STRING_CLASSES = [
    *(Field(text, "1") for text in ("1", "1.0", " 1 ", "1\u200b", "\ufeff1", "1.00")),
    *(Field(unicodedata.normalize(form, "ca\u00f1o"), "ca\u00f1o") for form in ("NFC", "NFD")),
    Field("True", "True"),
    Field("", WRONG),
    Field("\u200b", WRONG),
]
STRING_NUMBERS = [
    *(Field(text, float(text)) for text in ("1.5", "-2", " 3 ", "1e3", "\u0661")),
    *(Field(text, WRONG) for text in ("1e39", "nan", "inf", "1_000", "high", "", "True", "1,5")),
]
STRING_FLAGS = [
    *(Field(text, 1.0) for text in ("1", "1.0", "True", "true", " 1")),
    *(Field(text, 0.0) for text in ("0", "0.0", "False", "-0.0")),
    *(Field(text, WRONG) for text in ("2", "yes", "", "0.5")),
]
# What JSON can hold besides.
OBJECTS = [Field({"a": "good"}, WRONG), Field([["good"]], WRONG), Field(None, WRONG), Field("good \ud83d", WRONG)]
JSON_TEXTS = [
    Field(["good", "film"], "good film"),
    Field(["good film", "bad"], "good film bad"),
    Field(["in", 1984], "in 1984"),
    Field(7, "7"),
    Field(7.0, "7"),
    *(Field(value, WRONG) for value in (True, [], [1, 2], ["a", None], [None], float("nan"), float("inf"), ["a", {}])),
    *OBJECTS,
]
JSON_CLASSES = [
    *(Field(value, "1") for value in (1, 1.0, "1.0")),
    Field(True, "True"),
    *(Field(value, WRONG) for value in (["1"], [], [1, 0], float("nan"), {"a": 1})),
    *OBJECTS,
]
JSON_NUMBERS = [
    *map(same, [2.5, 3, -1e3]),
    *(Field(value, WRONG) for value in (1e39, 10**400, float("nan"), float("inf"), True, [1.0], {}, None)),
]
JSON_FLAGS = [
    Field(1, 1.0),
    Field(0.0, 0.0),
    Field(True, 1.0),
    Field(False, 0.0),
    *(Field(v, WRONG) for v in (2, [1], None)),
]
JSON_WORDS = [
    *map(same, [["good", "film"], ["a"] * 150, ["\u200b", "good", ""], ["films", "[PAD]", "bad"]]),
    Field([5, "good"], ["5", "good"]),
    *(Field(value, WRONG) for value in ([], "good film", ["a", None], [["a"]], [True], ["\udc00"], {"a": 1}, None)),
]
# Columns of Arrow hold values of one type.
ARROW_TEXTS = [
    [Field(b"good film", "good film"), Field("caf\u00e9".encode(), "caf\u00e9"), Field(b"\xff", WRONG)],
    [Field(["good", "film"], "good film"), Field(["a", None], WRONG), Field([], WRONG), Field(None, WRONG)],
    [Field({"title": "good"}, WRONG)],
    [Field(5, "5"), Field(None, WRONG)],
    [Field(2.5, "2.5"), Field(float("nan"), WRONG)],
    [Field(True, WRONG)],
    STRING_TEXTS,
]
ARROW_CLASSES = [
    [Field(b"pos", "pos"), Field(b"pos ", "pos"), Field(b"\xff", WRONG)],
    [Field(1, "1"), Field(0, "0"), Field(None, WRONG)],
    [Field(1.0, "1"), Field(0.5, "0.5"), Field(float("nan"), WRONG)],
    [Field(True, "True"), Field(False, "False")],
    [Field(["pos"], WRONG), Field([], WRONG)],
    [Field({"name": "pos"}, WRONG)],
    STRING_CLASSES,
]
ARROW_NUMBERS = [
    [same(1.5), Field(1e39, WRONG), Field(float("nan"), WRONG)],
    [same(3), Field(None, WRONG)],
    STRING_NUMBERS,
]
ARROW_FLAGS = [
    [Field(1.0, 1.0), Field(0.0, 0.0)],
    [Field(True, 1.0), Field(False, 0.0)],
    [Field(1, 1.0), Field(2, WRONG)],
]


def choices(strings: list[Field], objects: list[Field], columns: list[list[Field]], kind: str, rng: random.Random):
    """Return the fields that one column of this kind of file can hold."""
    if kind in ("csv", "tsv"):
        return strings
    if kind == "jsonl":
        return strings + objects
    return rng.choice(columns)


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"odd.{kind}"
    if kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            if kind == "csv":
                writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines("\t".join(map(str, line)) + "\n" for line in [rows[0], *(row.values() for row in rows)])
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        pytest.importorskip("datasets").Dataset.from_list(rows).save_to_disk(str(path))
    return path


TASKS: dict[str, tuple[Any, ...]] = {
    "classification": (STRING_CLASSES, JSON_CLASSES, ARROW_CLASSES, "neg", "pos"),
    "regression": (STRING_NUMBERS, JSON_NUMBERS, ARROW_NUMBERS, 0.5, 0.25),
    "multilabel": (STRING_FLAGS, JSON_FLAGS, ARROW_FLAGS, 0.0, 1.0),
}


def draw(rng: random.Random, task: str, kind: str) -> list[dict[str, Field]]:
    strings, objects, columns, first, second = TASKS[task]
    texts = choices(STRING_TEXTS, JSON_TEXTS, ARROW_TEXTS, kind, rng)
    labels = choices(strings, objects, columns, kind, rng)
    names = ["x", "y"] if task == "multilabel" else ["label"]
    fine = rng.random() < 0.5  # half of the files have nothing wrong

    def pick(fields: list[Field]) -> Field:
        allowed = [field for field in fields if not fine or field.meaning is not WRONG]
        return rng.choice(allowed or fields)

    rows = [{"text": pick(texts), **{name: pick(labels) for name in names}} for _ in range(rng.randint(1, 6))]
    if kind in ("csv", "tsv", "jsonl"):
        safe = [
            {"text": same("good film"), **{name: Field(str(label), label) for name in names}}
            for label in (first, second)
        ]
        rows = safe + rows
    return rows


def first_wrong(rows: list[dict[str, Field]]) -> int | None:
    """Return the row that an error names: texts are checked before labels."""
    in_text = (i for i, row in enumerate(rows) if row["text"].meaning is WRONG)
    in_label = (i for i, row in enumerate(rows) if any(field.meaning is WRONG for field in row.values()))
    return next(in_text, next(in_label, None))


def check(data: TextDataModule, path: Path, kind: str, task: str, rows: list[dict[str, Field]]) -> bool:
    wrong = first_wrong(rows)
    try:
        data.setup("fit")
    except ConfigurationError as error:
        message = str(error)
        assert path.name in message and "\n" not in message, message
        if wrong is None:
            # Right fields may still be too few classes.
            assert "classes in 'label'" in message, (message, rows)
        else:
            place = {"csv": wrong + 2, "tsv": wrong + 2, "jsonl": wrong + 1}.get(kind, wrong + 1)
            assert f"{'row' if kind in ('parquet', 'saved') else 'line'} {place}:" in message, (message, rows)
        return False
    assert wrong is None, (rows, kind)
    for row, example in zip(rows, data.encoded["train"], strict=True):
        text = row["text"].meaning
        assert example["input_ids"].tolist() == TOKENIZER(text, split_special_tokens=True)["input_ids"], text
        meanings = [field.meaning for name, field in row.items() if name != "text"]
        labels = example["labels"].tolist()
        if task == "classification":
            assert data.labels is not None and [data.labels[labels]] == meanings
        else:
            assert (labels if isinstance(labels, list) else [labels]) == pytest.approx(meanings)
    return True


@pytest.mark.fast_cases(7)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
def test_rows_are_used_as_meant_or_the_first_wrong_one_is_named(tmp_path: Path, kind: str, task: str) -> None:
    rng = random.Random(f"{kind} {task}")
    accepted = 0
    count = 15 if kind == "saved" else 60
    for i in range(count):
        rows = draw(rng, task, kind)
        folder = tmp_path / str(i)
        folder.mkdir()
        path = write(folder, kind, [{name: field.value for name, field in row.items()} for row in rows])
        label = ["x", "y"] if task == "multilabel" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            accepted += check(TextDataModule(TOKENIZER, task, train=str(path), label=label), path, kind, task, rows)
    assert 0 < accepted < count


def test_words_are_used_as_meant_or_the_first_wrong_row_is_named(tmp_path: Path) -> None:
    rng = random.Random(0)
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = BertNormalizer()  # drops zero-width spaces
    accepted = 0
    for i in range(120):
        fine = rng.random() < 0.5
        fields = [field for field in JSON_WORDS if not fine or field.meaning is not WRONG]
        rows = [rng.choice(fields) for _ in range(rng.randint(1, 5))]
        tags = [[rng.choice(["O", "X", -100]) for _ in field.value or ""] for field in rows]
        broken = None if fine or rng.random() < 0.5 else rng.randrange(len(rows))
        if broken is not None and tags[broken]:
            tags[broken][-1] = rng.choice([None, ["O"], {}, float("nan"), "", "\ud800"])
        else:
            broken = None
        path = tmp_path / f"{i}.jsonl"
        safe = {"tokens": ["good", "bad"], "tags": ["O", "X"]}
        written = [{"tokens": field.value, "tags": row} for field, row in zip(rows, tags, strict=True)]
        path.write_text("\n".join(map(json.dumps, [safe, *written])))
        wrong = next((j for j, field in enumerate(rows) if field.meaning is WRONG), broken)
        data = TextDataModule(tokenizer, "token-classification", train=str(path))
        try:
            data.setup("fit")
        except ConfigurationError as error:
            assert wrong is not None, (str(error), written)
            assert f"{path.name}, line {wrong + 2}:" in str(error), (str(error), written)
            continue
        assert wrong is None, written
        accepted += 1
        for j, field in enumerate(rows, start=1):
            examples = [example for example in data.encoded["train"] if example["index"] == j]
            counted = [label for example in examples for label in example["labels"].tolist() if label != -100]
            readable = zip(field.meaning, tags[j - 1], strict=True)
            assert counted == ["OX".index(tag) for word, tag in readable if word.strip("\u200b") and tag != -100]
            assert all(len(example["input_ids"]) <= 64 for example in examples)
    assert 20 < accepted < 100


def mutated(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data)) if data else 0
        change: Callable[[], None] = rng.choice(
            [
                lambda place=place: data.__setitem__(slice(place, place + 1), bytes([rng.randrange(256)])),
                lambda place=place: data.__delitem__(slice(place, place + rng.randint(1, 40))),
                lambda place=place: data.__setitem__(slice(place, place), rng.choice(INSERTS)),
                lambda place=place: data.__delitem__(slice(place, None)),
            ]
        )
        change()
    return bytes(data)


INSERTS = [
    b'"',
    b"\n",
    b"\r",
    b"\x00",
    b",",
    b"\t",
    b"[" * 3000,
    b"9" * 5000,
    b"\xff\xfe",
    b"{",
    b"NaN",
    b'{"a": 1, "a": 2}',
]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_one_error_that_names_the_file(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    rows = [{"text": f"good film {i}", "label": "pos" if i % 2 else "neg"} for i in range(8)]
    sound = write(tmp_path, kind, rows)
    files = [sound] if sound.is_file() else sorted(file for file in sound.rglob("*") if file.is_file())
    contents = {file: file.read_bytes() for file in files}
    for _ in range(60):
        file = rng.choice(files)
        file.write_bytes(mutated(contents[file], rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                TextDataModule(TOKENIZER, data=str(sound)).setup("fit")
        except ConfigurationError as error:
            assert sound.name in str(error) and "\n" not in str(error)
        file.write_bytes(contents[file])


@pytest.mark.parametrize("rows", [[["1", "0"], ["0", "1"]], [["0.0", "1.0"], ["1.0", "0.0"]], [["False", "True"]] * 2])
def test_zeros_and_ones_as_text_are_no_class_names(rows: list[list[str]], write: Any) -> None:
    file = write("a.jsonl", "\n".join(json.dumps({"text": "good", "label": row}) for row in rows))
    data = TextDataModule(make_tokenizer(), "multilabel", train=str(file))
    data.setup("fit")
    expected = [[float(item in ("1", "1.0", "True")) for item in row] for row in rows]
    assert [example["labels"].tolist() for example in data.encoded["train"]] == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1, 0.5], [1, 0, 0]], r"line 1: 'label' is \[0, 1, 0\.5\], whose item 3 is 0\.5, expected the name or"),
        ([[0, 1, 0], [1, 0]], r"line 1: 'label' is \[0, 1, 0\], expected each class once, or lists of zeros and ones"),
        ([[0, 2], [3, 3]], r"line 2: 'label' is \[3, 3\], expected each class once"),
    ],
)
def test_lists_of_numbers_that_name_no_classes(rows: list[Any], message: str, write: Any) -> None:
    file = write("a.jsonl", "\n".join(json.dumps({"text": "good", "label": row}) for row in rows))
    with pytest.raises(ConfigurationError, match=message):
        TextDataModule(make_tokenizer(), "multilabel", train=str(file)).setup("fit")


def test_true_and_one_are_near_duplicates(write: Any) -> None:
    file = write("a.csv", "text,label\ngood,1\nbad,True\nfilm,0\n")
    with pytest.warns(UserWarning, match="the classes '1', 'True' are almost the same name"):
        TextDataModule(make_tokenizer(), train=str(file)).setup("fit")


def test_invisible_characters_around_column_names(write: Any) -> None:
    data = TextDataModule(make_tokenizer(), train=str(write("a.csv", "text\u200b,\u00a0label\ngood,a\nbad,b\n")))
    data.setup("fit")
    assert data.labels == ["a", "b"]


def test_a_file_in_utf16_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\ngood,a\n".encode("utf-16"))
    with pytest.raises(ConfigurationError, match="iconv -f UTF-16 -t UTF-8"):
        TextDataModule(make_tokenizer(), train=str(tmp_path / "a.csv")).setup("fit")
