"""Writes predictions to a file beside the logs of the run."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from lightning_freeze.data.columns import Columns
from lightning_freeze.data.language_models.messages import read_messages
from lightning_freeze.data.reading.table import Table
from lightning_freeze.data.reading.values import each, text_value
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.tasks import Task


def prediction_rows(table: Table, task: Task, columns: Columns, outputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield one record for each predicted row: its position, its text, the prediction and its probability.

    A row that is longer than the model reads comes as several windows, one after the other, whose tags are joined.
    Words that the tokenizer drops have a fixed tag.

    Args:
        table: The rows that were predicted.
        task: What was predicted.
        columns: Where the texts stand.
        outputs: What ``TransformerModule.predict_step`` returned, batch by batch.
    """
    pending: dict[str, Any] | None = None
    before = -1
    for output in outputs:
        values = output.get("labels", output.get("text", output["predictions"]))
        for i, index in enumerate(output["index"].tolist()):
            value = values[i].tolist() if hasattr(values[i], "tolist") else values[i]
            if pending is not None and index == before:
                pending["prediction"] = [*pending["prediction"], *value]
                continue
            if pending is not None:
                yield _with_fixed_tags(pending, table, before)
            pending, before = {**_record(table, index, columns), "prediction": value}, index
            pending.update(_probabilities(task, output, i))
    if pending is not None:
        yield _with_fixed_tags(pending, table, before)


def write_predictions(folder: Path, name: str, records: Iterable[dict[str, Any]]) -> Path:
    """Write records to a new CSV file, or a JSONL file where they hold lists.

    The file appears once it is complete.

    Args:
        folder: Where to write; made if it is not there.
        name: File name without its extension.
        records: At least one record; all have the same fields.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    rows = list(records)
    nested = any(isinstance(value, list) for row in rows for value in row.values())
    path = folder / f"{name}{'.jsonl' if nested else '.csv'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In a shared folder, another user may have created a link with a predictable name.
        descriptor, unfinished = tempfile.mkstemp(prefix=f".{name}-", suffix=".part", dir=folder)
        try:
            with open(descriptor, "w", encoding="utf-8", newline="") as file:
                _write(file, rows, nested)
            os.chmod(unfinished, 0o666 & ~_umask())
            os.replace(unfinished, path)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(
            f"The predictions cannot be written to {str(path)!r}: {error.strerror or error}."
        ) from error
    return path


def _record(table: Table, index: int, columns: Columns) -> dict[str, Any]:
    row = table.rows[index]
    record: dict[str, Any] = {table.unit: table.numbers[index]}
    for column in columns.inputs:
        value = row[column]
        if column == columns.messages:
            record[column] = read_messages(value)
        else:
            record[column] = each(text_value, value) if isinstance(value, (list, tuple)) else text_value(value)
    return record


def _probabilities(task: Task, output: Any, i: int) -> dict[str, Any]:
    probabilities = output.get("probabilities")
    if probabilities is not None and task.target == "class":
        return {"probability": round(float(probabilities[i].max()), 4)}
    if probabilities is not None and task.target == "multilabel":
        return {"probabilities": [round(p, 4) for p in probabilities[i].tolist()]}
    return {}


def _with_fixed_tags(record: dict[str, Any], table: Table, index: int) -> dict[str, Any]:
    for word, tag in sorted(table.fixed_tags.get(index, {}).items()):
        record["prediction"].insert(word, tag)
    return record


def _write(file: TextIO, rows: list[dict[str, Any]], nested: bool) -> None:
    if nested:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _umask() -> int:
    mask = os.umask(0o077)  # the only way to read it
    os.umask(mask)
    return mask
