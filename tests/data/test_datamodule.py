"""TextDataModule from file to batch, and the errors for wrong files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from reviews import make_reviews, save_csv
from transformers import AutoTokenizer

from lightning_freeze.data import TextDataModule

Write = Callable[[str, str], Path]


def test_one_file_is_split_by_group(reviews_csv: Path, tiny_bert_dir: Path) -> None:
    data = TextDataModule(str(tiny_bert_dir), data=str(reviews_csv), group_column="author", split=(0.6, 0.2, 0.2))
    authors = [{row["author"] for row in data.tables[name].rows} for name in ("train", "val", "test")]
    assert not authors[0] & authors[1] and not authors[0] & authors[2] and not authors[1] & authors[2]
    assert sum(len(table) for table in data.tables.values()) == 60


def test_classes_are_known_before_any_text_is_tokenised(reviews_csv: Path) -> None:
    data = TextDataModule(data=str(reviews_csv))  # there is no tokenizer to tokenise with
    assert data.labels == ["neg", "pos"]
    assert data.num_classes == 2
    majority = data.majority
    assert majority is not None
    test = [row["label"] for row in data.tables["test"].rows]
    assert majority == test.count("pos") / len(test)


def test_batches(reviews_csv: Path, tiny_bert_dir: Path) -> None:
    data = TextDataModule(str(tiny_bert_dir), data=str(reviews_csv), batch_size=8)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert set(batch) >= {"input_ids", "attention_mask", "labels", "index"}
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    row = data.tables["train"].rows[int(batch["index"][0])]
    assert data.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == row["text"]
    assert ["neg", "pos"][int(batch["labels"][0])] == row["label"]
    assert "test" not in data.encoded


def test_same_seed_same_batches(reviews_csv: Path, tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(**settings: Any) -> list[list[int]]:
        data = TextDataModule(str(tiny_bert_dir), data=str(reviews_csv), batch_size=4, **settings)
        data.setup("fit")
        return [batch["index"].tolist() for batch in data.train_dataloader()]

    assert batches(seed=1) == batches(seed=1) != batches(seed=2)
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert batches() == batches(seed=2)


def test_files_of_each_split_and_saved_splits_agree(tmp_path: Path, tiny_bert_dir: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"train": make_reviews(20, 1), "val": make_reviews(8, 2), "test": make_reviews(8, 3)}
    files = {name: str(save_csv(tmp_path / f"{name}.csv", part)) for name, part in rows.items()}
    saved = datasets.DatasetDict(
        {"validation" if name == "val" else name: datasets.Dataset.from_list(part) for name, part in rows.items()}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    from_files = TextDataModule(str(tiny_bert_dir), **files)
    from_saved = TextDataModule(str(tiny_bert_dir), data=str(tmp_path / "saved"))
    from_one = TextDataModule(str(tiny_bert_dir), train=str(tmp_path / "saved"), val=str(tmp_path / "saved"))
    assert {k: list(t.rows) for k, t in from_files.tables.items()} == {
        k: list(t.rows) for k, t in from_saved.tables.items()
    }
    assert list(from_one.tables["val"].rows) == rows["val"]


def test_tsv_and_numeric_labels(tmp_path: Path, tiny_bert_dir: Path) -> None:
    rows = [{"text": "good film", "label": i % 3 + 9} for i in range(30)]
    data = TextDataModule(str(tiny_bert_dir), data=str(save_csv(tmp_path / "a.tsv", rows, "\t")))
    assert data.labels == ["9", "10", "11"]


def test_prediction_needs_no_labels_and_keeps_the_order(write: Write, tiny_bert_dir: Path) -> None:
    path = write("new.csv", "text\ngood\nthe film is so very good\nbad\n")
    data = TextDataModule(str(tiny_bert_dir), predict=str(path), batch_size=2)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [index for batch in batches for index in batch["index"].tolist()] == [0, 1, 2]
    assert all("labels" not in batch for batch in batches)
    assert data.labels is None and data.num_classes is None


def test_decoders_are_padded_on_the_left_for_prediction(write: Write, tiny_gpt2_dir: Path) -> None:
    path = write("a.csv", "text\ngood\nthe film is so very good\n")
    data = TextDataModule(str(tiny_gpt2_dir), "causal-lm", train=str(path), predict=str(path), batch_size=2)
    data.setup("predict")
    data.setup("fit")
    assert next(iter(data.predict_dataloader()))["attention_mask"][0, 0] == 0
    mask = next(iter(data.train_dataloader()))["attention_mask"]
    assert mask[:, 0].all() and not mask.all()


def test_regression_targets(tmp_path: Path, tiny_bert_dir: Path) -> None:
    rows = [{"text": "good film", "label": i / 10} for i in range(30)]
    data = TextDataModule(str(tiny_bert_dir), "regression", data=str(save_csv(tmp_path / "a.csv", rows)))
    data.setup("fit")
    labels = next(iter(data.train_dataloader()))["labels"]
    assert labels.dtype == torch.float and data.num_classes is None and data.majority is None


def test_multilabel_columns(tmp_path: Path, tiny_bert_dir: Path) -> None:
    rows = [{"text": "good film", "fun": i % 2, "sad": i % 3 == 0} for i in range(12)]
    path = save_csv(tmp_path / "a.csv", rows)
    data = TextDataModule(str(tiny_bert_dir), "multilabel", train=str(path), label=["fun", "sad"], batch_size=12)
    data.setup("fit")
    assert data.labels == ["fun", "sad"]
    assert next(iter(data.train_dataloader()))["labels"].sum(0).tolist() == [6.0, 4.0]


def test_a_tokenizer_object_will_do(reviews_csv: Path, tiny_bert_dir: Path) -> None:
    data = TextDataModule(AutoTokenizer.from_pretrained(tiny_bert_dir), data=str(reviews_csv))
    data.setup("test")
    assert len(list(data.test_dataloader())) == 1


def test_empty_texts_can_be_left_out(write: Write, tiny_bert_dir: Path) -> None:
    path = write("a.csv", "text,label\ngood,pos\n ,neg\nbad,neg\n")
    data = TextDataModule(str(tiny_bert_dir), train=str(path), empty_text="drop")
    assert list(data.tables["train"].numbers) == [2, 4]


GOOD = "text,label\ngood,pos\nbad,neg\n"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("text,label\ngood,pos\n,neg\n", GOOD, r"train\.csv, line 3: the text 'text' is empty.*empty_text='drop'"),
        ("text,label\ngood,pos\nbad,\n", GOOD, r"train\.csv, line 3: the label 'label' is empty"),
        ("txt,label\ngood,pos\nbad,neg\n", GOOD, r"train\.csv has no column 'text'.*Did you mean 'txt'"),
        ("text,labels\ngood,pos\nbad,neg\n", GOOD, r"no column 'label' \(data\.label\).*Did you mean 'labels'"),
        (GOOD, "text,label\ngood,pos\nbad,negg\n", r"test\.csv, line 3: the label 'negg' .*Did you mean 'neg'"),
        (GOOD, "text,label\ngood,pos\n,neg\n", r"test\.csv, line 3: the text"),
        ("text,label\n,pos\n,neg\n", GOOD, r"train\.csv, line 2: the text"),
    ],
)
def test_bad_rows_of_any_split_show_before_training(
    write: Write, tiny_bert_dir: Path, train: str, test: str, message: str
) -> None:
    data = TextDataModule(str(tiny_bert_dir), train=str(write("train.csv", train)), test=str(write("test.csv", test)))
    with pytest.raises(MisconfigurationException, match=message):
        data.setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "a.csv", "batch_size": 0}, r"data\.batch_size is 0: expected at least 1"),
        ({"data": "a.csv", "num_workers": -1}, r"data\.num_workers is -1"),
        ({"data": "a.csv", "num_workers": 99999}, r"data\.num_workers is 99999: expected at most \d+"),
        ({"data": "a.csv", "max_length": 0}, r"data\.max_length is 0"),
        ({"data": "a.csv", "split": (0.9, 0.2, 0.1)}, r"data\.split .* sums to 1\.2"),
        ({"data": "a.csv", "split": (0.9, -0.2, 0.1)}, r"data\.split gives val the fraction -0\.2"),
        ({"data": "a.csv", "train": "b.csv"}, r"data\.data='a\.csv' and data\.train='b\.csv' are both given"),
        ({}, r"There are no files"),
        ({"data": "a.csv", "task": "clasification"}, r"Unknown task 'clasification'.*Did you mean 'classification'"),
        ({"data": "a.csv", "task": "pair-classification"}, r"needs two texts: expected data\.text_pair"),
        ({"data": "a.csv", "label": ["x", "y"]}, r"expected one column .*'multilabel'"),
        ({"data": "a.csv", "labels": "positive"}, r"labels='positive'\): expected a list"),
        ({"data": "a.csv", "labels": ["1", 1.0]}, r"labels=\['1', 1\.0\]\): expected a list"),
        ({"data": "a.csv", "labels": ["a", ["b"]]}, r"labels=\['a', \['b'\]\]\): expected a list"),
        ({"data": "a.csv", "empty_text": "skip"}, r"data\.empty_text is 'skip'"),
    ],
)
def test_wrong_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        TextDataModule(**settings)


def test_missing_group_column_and_too_few_groups(reviews_csv: Path, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"no column 'autor' \(data\.group_column\).*'author'"):
        _ = TextDataModule(data=str(reviews_csv), group_column="autor").tables
    one = save_csv(tmp_path / "one.csv", [{"who": "a", "text": "good", "label": i % 2} for i in range(20)])
    with pytest.raises(MisconfigurationException, match=r"one\.csv: data\.split .*1 groups leaves"):
        _ = TextDataModule(data=str(one), group_column="who").tables


def test_a_stage_without_rows(reviews_csv: Path, tiny_bert_dir: Path) -> None:
    data = TextDataModule(str(tiny_bert_dir), train=str(reviews_csv))
    with pytest.raises(MisconfigurationException, match=r"no rows for 'test': expected the argument 'test'"):
        data.setup("test")


def test_no_tokenizer(reviews_csv: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"has no tokenizer"):
        TextDataModule(data=str(reviews_csv)).setup("fit")


def test_json_rows_may_lack_a_field(write: Write, tiny_bert_dir: Path) -> None:
    path = write("a.jsonl", json.dumps({"text": "good", "label": 1}) + "\n" + json.dumps({"text": "bad"}))
    with pytest.raises(MisconfigurationException, match=r"line 2: the label 'label' is empty"):
        TextDataModule(str(tiny_bert_dir), train=str(path)).setup("fit")


def test_almost_equal_classes_are_named_in_a_warning(write: Write, tiny_bert_dir: Path) -> None:
    path = write("a.csv", "text,label\ngood,Pos\nfine,pos\nbad,neg\n")
    with pytest.warns(UserWarning, match=r"a\.csv: the classes 'Pos', 'pos' are almost the same name"):
        assert TextDataModule(str(tiny_bert_dir), train=str(path)).labels == ["Pos", "neg", "pos"]
    data = TextDataModule(str(tiny_bert_dir), train=str(path), labels=["Pos", "neg", "pos"])
    data.setup("fit")  # named on purpose: no warning


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet"])
def test_one_class_in_all_files_whatever_its_spelling(tmp_path: Path, tiny_bert_dir: Path, extension: str) -> None:
    names = ["1", "1.0", "1\u200b", "caf\u00e9", "cafe\u0301", " caf\u00e9"]
    rows = [{"text": "good film", "label": name} for name in names]
    path = tmp_path / f"a.{extension}"
    if extension in ("csv", "tsv"):
        save_csv(path, rows, "," if extension == "csv" else "\t")
    elif extension == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    data = TextDataModule(str(tiny_bert_dir), train=str(path))
    data.setup("fit")
    assert data.labels == ["1", "caf\u00e9"]
    assert [int(example["labels"]) for example in data.encoded["train"]] == [0, 0, 0, 1, 1, 1]
