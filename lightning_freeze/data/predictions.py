"""Predictions into a file beside the run's logs."""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_freeze.data.encoding import Columns
from lightning_freeze.data.readers import Table
from lightning_freeze.module.tasks import Task


def prediction_rows(table: Table, task: Task, columns: Columns, outputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield one record for each predicted row: where it stands, its text, what was predicted and how surely.

    Args:
        table: The rows that were predicted.
        task: What was predicted.
        columns: Where the texts stand.
        outputs: What ``TransformerModule.predict_step`` returned, batch by batch.
    """
    for output in outputs:
        values = output.get("labels", output.get("text", output["predictions"]))
        probabilities = output.get("probabilities")
        for i, index in enumerate(output["index"].tolist()):
            row = table.rows[index]
            record = {table.unit: table.numbers[index], columns.text: row[columns.text]}
            if columns.text_pair is not None:
                record[columns.text_pair] = row[columns.text_pair]
            value = values[i]
            record["prediction"] = value.tolist() if hasattr(value, "tolist") else value
            if probabilities is not None and task.target == "class":
                record["probability"] = round(float(probabilities[i].max()), 4)
            elif probabilities is not None and task.target == "multilabel":
                record["probabilities"] = [round(p, 4) for p in probabilities[i].tolist()]
            yield record


def write_predictions(folder: Path, name: str, records: Iterable[dict[str, Any]]) -> Path:
    """Write records to a new CSV file, or a JSONL file where they hold lists.

    The file appears once it is complete.

    Args:
        folder: Where to write; made if it is not there.
        name: File name without its extension.
        records: At least one record; all have the same fields.

    Returns:
        The path of the file.
    """
    rows = list(records)
    nested = any(isinstance(value, list) for row in rows for value in row.values())
    path = folder / f"{name}{'.jsonl' if nested else '.csv'}"
    folder.mkdir(parents=True, exist_ok=True)
    # In a folder that others can write to, a link may wait under any name that can be guessed.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    with unfinished.open("x", encoding="utf-8", newline="") as file:
        if nested:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    os.replace(unfinished, path)
    return path
