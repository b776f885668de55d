"""Evaluates and predicts in two processes and in one, and saves what each measures.

Usage: evaluation_script.py OUT, with tests/ and tests/distributed/ on PYTHONPATH.
"""

import json
import random
import sys
import warnings
from pathlib import Path

import transformers
from distributed_processes import run_ranks
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from reviews import make_reviews
from tiny_models import make_tokenizer

from lightning_freeze import TextDataModule, TransformerModule
from lightning_freeze.data.predictions import prediction_rows
from lightning_freeze.errors import ConfigurationError

TOKENIZER = make_tokenizer()
CASES = [("classification", rows, size) for rows in (1, 3, 5, 9) for size in (1, 2, 4)]
CASES += [("regression", 7, 2), ("token-classification", 7, 2), ("multilabel", 7, 2), ("causal-lm", 5, 2)]
GENERATION = {"causal-lm": {"generate_kwargs": {"max_new_tokens": 2}}}


def save_rows(path, task, count):
    rng = random.Random(count)
    rows = make_reviews(count, seed=count)
    for row in rows:
        if task == "regression":
            row["label"] = rng.random()
        elif task == "multilabel":
            row["label"] = rng.choice([["neg"], ["pos"], ["neg", "pos"], []])
        elif task == "token-classification":
            words = row["text"].split() * rng.choice([1, 30])
            row.update(tokens=words, tags=["X" if word == "good" else "O" for word in words])
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def tiny_model(task, labels):
    if task == "causal-lm":
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64, "pad_token_id": 0, "eos_token_id": 3}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(TOKENIZER), **sizes))
    config = transformers.BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=64,
        num_labels=len(labels or "1"),
    )
    head = "TokenClassification" if task == "token-classification" else "SequenceClassification"
    return getattr(transformers, f"BertFor{head}")(config)


def measure(folder, task, count, size, strategy):
    seed_everything(0, verbose=False)
    names = ["neg", "pos"]
    labels = {"classification": names, "multilabel": names, "token-classification": ["O", "X"]}.get(task)
    file = save_rows(folder / f"{task}-{count}.jsonl", task, count)
    module = TransformerModule(tiny_model(task, labels), task, labels=labels, **GENERATION.get(task, {}))
    files = dict.fromkeys(("train", "val", "test", "predict"), file)
    data = TextDataModule(TOKENIZER, task, labels=labels, batch_size=size, **files)
    trainer = Trainer(
        accelerator="cpu",
        devices=2 if strategy else 1,
        strategy=DDPStrategy(process_group_backend="gloo") if strategy else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        limit_train_batches=1,
        inference_mode=False,
    )
    result = {"case": [task, count, size]}
    for stage in ("validate", "test"):
        result.update(getattr(trainer, stage)(module, data, verbose=False)[0])
    try:
        outputs = trainer.predict(module, data)
        records = prediction_rows(data.tables["predict"], data.task, data.columns, outputs)
        result["predictions"] = {record["line"]: record["prediction"] for record in records}
    except ConfigurationError as error:
        result["error"] = str(error)
    if count > 2:  # the validation of a fit leaves both processes in step
        trainer.fit(module, data)
        result["fitted"] = float(trainer.callback_metrics["val_loss"])
    return result


def main(out):
    def work(name, strategy):
        warnings.simplefilter("ignore")
        folder = Path(out) / str(name)
        folder.mkdir()
        results = [measure(folder, *case, strategy) for case in CASES]
        (Path(out) / f"{name}.json").write_text(json.dumps(results))

    run_ranks(lambda rank: work(rank, True), lambda: work("alone", False))


if __name__ == "__main__":
    main(*sys.argv[1:])
