"""A file whose rows repeat is not evaluated on what it trains on unnoticed."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from reviews import save_csv
from tiny_models import make_tokenizer

from lightning_freeze.cli.command_line import main
from lightning_freeze.data import TextDataModule

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


@pytest.mark.parametrize(("repeats", "is_said"), [(3, True), (1, False)])
def test_repeated_texts_in_the_rows_that_are_evaluated_are_said(repeats: int, is_said: bool, tmp_path: Path) -> None:
    rows = [{"text": f"good film number {i}", "label": "yes" if i % 2 else "no", "id": i} for i in range(60)] * repeats
    path = save_csv(tmp_path / "rows.csv", rows)

    def warnings_of(**settings: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _ = TextDataModule(make_tokenizer(), data=str(path), split=(0.6, 0.2, 0.2), **settings).tables
        return [str(each.message) for each in caught if "also in the training rows" in str(each.message)]

    found = warnings_of()
    assert bool(found) is is_said
    if found:
        counts = r"rows.csv: \d\d of 36 val rows and \d\d of 36 test rows have a text"
        assert re.search(f"{counts} that is also in the training rows, .* data.group_column", *found)
    assert not warnings_of(group_column="id")


@pytest.mark.slow
def test_the_command_line_says_it_for_language_models_too(
    tiny_gpt2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_csv(tmp_path / "rows.csv", [{"text": f"good film {i} of many"} for i in range(30)] * 3)
    model = [f"--model.encoder={tiny_gpt2_dir}", "--model.task=causal-lm", "--data.data=rows.csv"]
    with pytest.warns(UserWarning, match="have a text that is also in the training rows"):
        main(["fit", *model, "--data.split=[0.6,0.2,0.2]", "--trainer.max_steps=1", *QUIET])
