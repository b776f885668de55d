"""The callback that measures a test on texts of another domain too."""

import importlib.util
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_freeze import TextDataModule, TransformerModule

SCRIPT = Path(__file__).parents[2] / "experiments" / "out_of_domain" / "other_domain.py"


def write_texts(path: Path, topic: str) -> str:
    words = ["the", "film", "book", "plot", "is", "good", "bad"]
    rows = [f"{topic} {words[i % 7]} {words[i // 7 % 7]} {i},{('negative', 'positive')[i % 3 > 0]}" for i in range(60)]
    path.write_text("\n".join(["text,label", *rows]))
    return str(path)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_accuracy_on_the_other_domain_is_that_of_a_test_on_its_file(precision, tiny_bert_dir, tmp_path):
    spec = importlib.util.spec_from_file_location("other_domain", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    books, films = write_texts(tmp_path / "books.csv", "book"), write_texts(tmp_path / "films.csv", "film")
    same = {"tokenizer": str(tiny_bert_dir), "split_seed": 3, "batch_size": 8, "max_length": 16}
    data = TextDataModule(data=books, split=(0.5, 0.0, 0.5), **same)
    torch.manual_seed(1)
    model = TransformerModule(str(tiny_bert_dir), num_classes=2, labels=["negative", "positive"])
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[module.OtherDomain(films, "film", share=0.4)], precision=precision, **quiet)
    (found,) = trainer.test(model, data, verbose=False)
    elsewhere = TextDataModule(data=films, split=(0.6, 0.0, 0.4), **same)
    (expected,) = Trainer(precision=precision, **quiet).test(model, elsewhere, verbose=False)
    assert found["film_accuracy"] == pytest.approx(expected["test_accuracy"])
    assert found["film_majority"] == pytest.approx(elsewhere.majority)
    (alone,) = Trainer(precision=precision, **quiet).test(model, data, verbose=False)
    assert found["test_accuracy"] == pytest.approx(alone["test_accuracy"])
