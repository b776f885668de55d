"""TextDataModule: text files into batches."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lightning_freeze.arguments import check_arguments
from lightning_freeze.data.batching import Collator
from lightning_freeze.data.columns import Columns, GivenColumns
from lightning_freeze.data.encoding import Example, encode, token_limit
from lightning_freeze.data.files import Splitting, TextFiles
from lightning_freeze.data.labels import (
    class_names,
    count_unlabelled_tags,
    encode_labels,
    given_class_names,
    is_multi_hot,
    majority_share,
    near_duplicates,
    training_labels,
)
from lightning_freeze.data.language_models.packing import PackedCollator, pack
from lightning_freeze.data.language_models.packing_check import check_packing
from lightning_freeze.data.loaders import LoaderFactory, ResumableLoader, check_sizes
from lightning_freeze.data.model_limits import ModelLimits, model_limits
from lightning_freeze.data.reading.table import Table
from lightning_freeze.data.tokenizer import checked_tokenizer, load_tokenizer
from lightning_freeze.errors import ConfigurationError, listing
from lightning_freeze.module.tasks import TaskName, get_task
from lightning_freeze.namespaces import LightningDataModule

_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class TextDataModule(LightningDataModule):
    """Texts from CSV, TSV, JSONL or Parquet files, or from a Hugging Face dataset on disk.

    Give one file (``data``) that is split, or a file for each split (``train``, ``val``, ``test``). Everything that
    can be wrong with them is checked before training starts, in all splits. Batches are dicts with ``input_ids``,
    ``attention_mask`` (and ``token_type_ids``), ``labels`` and ``index``, the row's position in its split.

    A field means the same in every kind of file: ``1``, ``1.0`` and ``"1"`` are one class, bytes are UTF-8 text, and a
    list of words or sentences is a text. Rows without a label (-1, as in hidden test sets) are left out, and one line
    says so. On several devices, each row of validation and test data counts once.

    Args:
        tokenizer: A local folder or hub name, or a tokenizer of transformers. The CLI takes the model's encoder.
        task: What the data is for; ``classification`` by default. The CLI takes the model's task.
        data: One file or saved dataset, to be split. A saved dataset that has splits keeps them; a split named
            ``validation_matched`` or ``dev`` is found too.
        split: Shares of training, validation and test rows of ``data``, summing to at most 1.
        split_seed: Seed of the split. It has nothing to do with the seed of a run, so runs share one split.
        group_column: Rows with the same value in this column stay in the same split.
        train: Training file.
        val: Validation file.
        test: Test file.
        predict: File to make predictions for; it needs no labels.
        text: Column of the text; by default ``text``, ``tokens`` for token classification (lists), ``source`` for
            sequence-to-sequence models. A causal language model learns all of it, its end included.
        text_pair: Column of the second text, for tasks with pairs.
        label: Column of the label, of any strings or numbers; by default ``label``, ``tags`` for token classification
            (lists, in which -100 leaves a word out, and -1 beside
            classes that are numbered from 0 on), ``target`` for sequence-to-sequence models. For multi-label data
            several columns of 0 and 1, or one that holds lists of class names or of zeros and ones.
        labels: Class names in the order of their indices; by default the sorted values of the training rows, or 0, 1
            and so on for lists of zeros and ones.
        empty_text: Whether a row with an empty text is an error or is left out.
        batch_size: Examples per batch and process.
        max_length: Texts are cut to so many tokens, and lists of words into overlapping windows of so many, so that
            every word has its tag; by default what the tokenizer and the model allow, at most 512.
        num_workers: Worker processes that make batches. The texts are already tokenised, so 0 is usually best; at most
            64, or four for each CPU of the machine if that is more.
        bucket_batches: Training examples are sorted by length within so many batches, which saves padding; 0 for
            plain shuffling.
        seed: Seed of the order of training examples; by default the one given to ``seed_everything``, else 0.
        prompt: Column of what a causal language model reads before its response, in place of ``text``; by default
            ``prompt`` where the file has no column ``text``. Prompt and response are joined as they are, so a space or
            line between them must be part of one of them.
        response: Column of what it learns to write; by default ``response``. The loss counts the response and its end
            token only: all other labels are -100. Where a row is too long, the beginning of its prompt is left out.
        messages: Column of conversations, in place of both: lists of ``{"role": ..., "content": ...}``, written by the
            chat template of the tokenizer. All messages of the assistant are responses. By default ``messages`` where
            the file has neither ``text`` nor ``prompt``.
        packing: Whether training examples of a causal language model are joined into rows of ``max_length`` tokens, so
            that nearly no padding is computed. Each example is computed as if it were alone, by ``position_ids`` and a
            block-diagonal attention; a model that cannot do so is refused. ``batch_size`` counts rows.

    Raises:
        ConfigurationError: An argument or a file is wrong; the message names the file and the line.
    """

    checks_input_limits = True
    """``setup`` checks that the model can take the examples, so that ``TransformerModule`` need not."""

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        task: TaskName | None = None,
        data: str | None = None,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        group_column: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        text: str | None = None,
        text_pair: str | None = None,
        label: str | list[str] | None = None,
        labels: list[str] | None = None,
        empty_text: Literal["error", "drop"] = "error",
        batch_size: int = 32,
        max_length: int | None = None,
        num_workers: int = 0,
        bucket_batches: int = 50,
        seed: int | None = None,
        prompt: str | None = None,
        response: str | None = None,
        messages: str | None = None,
        packing: bool = False,
    ) -> None:
        needs = {"group_column": "data", "split": "data", "split_seed": "data"}
        check_arguments(TextDataModule, locals(), needs=needs, own=("task", "empty_text"))
        super().__init__()
        self.task = get_task(task or "classification")
        self.tokenizer_name = os.fspath(tokenizer) if isinstance(tokenizer, (str, os.PathLike)) else None
        if tokenizer is not None and not isinstance(tokenizer, (str, os.PathLike)):
            self.tokenizer = checked_tokenizer(tokenizer, self.task)  # replaces the cached property
        given = {"train": train, "val": val, "test": test, "predict": predict}
        self.files = {name: os.fspath(file) for name, file in given.items() if file is not None}
        self.data = os.fspath(data) if data is not None else None
        self.split = tuple(split)
        self.split_seed = split_seed
        self.given_labels = given_class_names(labels) if labels is not None else None
        self.group_column = group_column
        self.given_columns = GivenColumns(text, text_pair, label, prompt, response, messages)
        self.empty_text = empty_text
        self.batch_size = batch_size
        self.max_length = max_length
        self.num_workers = num_workers
        self.bucket_batches = bucket_batches
        self.seed = seed
        self.packing = packing
        self.encoded: dict[str, list[Example]] = {}
        self.packed: list[Example] = []
        self._train_loader: ResumableLoader | None = None
        self._stopped: dict[str, int] | None = None
        self._check_arguments()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded when it is first needed."""
        if self.tokenizer_name is None:
            raise ConfigurationError(
                "TextDataModule has no tokenizer: expected tokenizer=<the folder or name of the model's encoder>."
            )
        return load_tokenizer(self.tokenizer_name, self.task)

    @cached_property
    def _files(self) -> TextFiles:
        return self._text_files()

    def _text_files(self) -> TextFiles:
        splitting = Splitting(self.split, self.split_seed, self.group_column)
        given = self.given_columns, self.given_labels, self.empty_text
        return TextFiles(self.data, self.files, splitting, self.task, *given)

    @property
    def columns(self) -> Columns:
        """The columns of texts and labels."""
        return self._files.columns

    @property
    def tables(self) -> dict[str, Table]:
        """The rows of each split that there is: ``train``, ``val``, ``test``, ``predict``."""
        return self._files.tables

    @cached_property
    def labels(self) -> list[str] | None:
        """The class names in the order of their indices; None where the task has no classes or no file shows them."""
        if not self.task.has_classes or self.given_labels is not None:
            return self.given_labels
        if "train" not in self.tables:
            return None
        train = self.tables["train"]
        labels = training_labels(self.task.name, self.task.target, train, self.columns.label)
        for names in near_duplicates(labels) if len(self.columns.label) == 1 else ():
            rank_zero_warn(
                f"{train.name}: the classes {listing(names)} are almost the same name. If they are one class, correct "
                f"the file; if not, name all classes with data.labels."
            )
        unlabelled = count_unlabelled_tags(train, self.columns.label[0], labels) if self.task.target == "token" else 0
        if unlabelled:
            rank_zero_info(
                f"{train.name}: {unlabelled} words have the tag -1, which is read as no label. If it is a class, name "
                "all classes with data.labels."
            )
        return labels

    @property
    def num_classes(self) -> int | None:
        """The number of classes, known before any text is tokenised; None where the task has none."""
        return len(self.labels) if self.task.has_classes and self.labels is not None else None

    @cached_property
    def majority(self) -> float | None:
        """The share of the most frequent training class in the test rows: what a constant guess would score."""
        if self.task.target != "class" or not {"train", "test"} <= set(self.tables):
            return None
        column = self.columns.label[0]
        return majority_share(class_names(self.tables["train"], column), class_names(self.tables["test"], column))

    def setup(self, stage: str) -> None:
        """Check all files, then tokenise what the stage needs.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """
        if stage == "fit":
            self._train_loader = self._stopped = None
        wanted = _STAGES[stage]
        if wanted[0] not in self.tables:
            raise ConfigurationError(
                f"There are no rows for {TrainerFn(stage).value!r}: expected the argument {wanted[0]!r}"
                f"{', or data with a split fraction above 0' if wanted[0] != 'predict' else ''}; there are "
                f"{listing(self.tables) or 'no files'}."
            )
        labels = self._encoded_labels()
        limits = self._limits()
        for name in wanted:
            if name not in self.tables:
                continue
            if name not in self.encoded:
                self._encode(name, labels.get(name), limits)
            limits.check(self.tables[name], self.encoded[name], self.tokenizer)
        if self.packing and stage == "fit":
            self._pack(limits)

    def check_packed(self, model: nn.Module) -> None:
        """Check that a model computes packed examples as if each were alone; without ``packing`` nothing is checked.

        Args:
            model: The module that trains, or its teacher.

        Raises:
            ConfigurationError: It does not.
        """
        if self.packing:
            check_packing(model, self.encoded["train"], self.batch_size)

    def train_dataloader(self) -> ResumableLoader:
        """Return batches of similar length in an order that changes each epoch."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
        examples = self.encoded["train"]
        collator: Collator | PackedCollator = self._collator(training=True)
        if self.packing:
            examples, collator = self.packed, PackedCollator(self.tokenizer.pad_token_id, self._packed_length)
        self._train_loader = self._loaders().train(examples, collator, seed, self.bucket_batches, self._batches_done)
        if self._stopped is not None:
            self._train_loader.load_state_dict(self._stopped)
        return self._train_loader

    # Lightning restores the state of a loader only where nothing has asked for the length of the run before, as a
    # learning rate schedule does.
    def state_dict(self) -> dict[str, Any]:
        """Return how far the training data has been read, for a run that is resumed in mid-epoch."""
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run has stopped.

        Args:
            state_dict: As :meth:`state_dict` returned it.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return  # a test of a checkpoint
        self._stopped = state_dict
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict)

    def _batches_done(self) -> int | None:
        """Return how many batches of the epoch the run that is resumed has had; None without a Trainer."""
        if self.trainer is None:
            return None
        loop = self.trainer.fit_loop
        # Lightning counts batches that a step has completed, also where an exception has ended the one after them.
        return loop.epoch_loop.batch_progress.current.ready if self.trainer.training and loop.is_resuming else 0

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the validation batches, the longest first; nothing where there is no validation data."""
        return self._loaders().evaluate(self.encoded["val"], self._collator()) if "val" in self.encoded else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test batches, the longest first."""
        return self._loaders().evaluate(self.encoded["test"], self._collator())

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the batches to predict, in the order of the file."""
        loaders, table = self._loaders(), self.tables["predict"]
        if len(table) < loaders.num_replicas:
            raise ConfigurationError(
                f"{table.name} has {len(table)} rows for {loaders.num_replicas} processes: expected at least one row "
                f"for each, or trainer.devices of at most {len(table)}."
            )
        # A decoder continues at the end of a text, so there must be no padding.
        side = "left" if self.task.target == "next-token" else "right"
        return loaders.predict(self.encoded["predict"], self._collator(side))

    def _check_arguments(self) -> None:
        check_sizes(self.batch_size, self.num_workers, self.bucket_batches)
        if self.max_length is not None and self.max_length < 3:
            raise ConfigurationError(f"data.max_length is {self.max_length}: expected at least 3 tokens.")
        self._text_files().check()
        if self.given_labels is not None and not self.task.has_classes:
            raise ConfigurationError(f"data.labels has no effect: the task {self.task.name!r} has no classes.")
        if self.packing and self.task.target != "next-token":
            raise ConfigurationError(
                f"data.packing is for the task 'causal-lm': expected data.packing=False for {self.task.name!r}."
            )

    def _encoded_labels(self) -> dict[str, list[Any]]:
        """Encode the labels of all splits, also those that the stage does not use, so that errors show up at once."""
        if self.task.is_language_model:
            return {}
        if self.task.has_classes and self.labels is None:
            return {}
        labels = self.labels or []
        tables = {name: table for name, table in self.tables.items() if name != "predict"}
        shown = [tables["train"]] if "train" in tables else list(tables.values())
        multi_hot = self.task.target == "multilabel" and all(is_multi_hot(t, self.columns.label[0]) for t in shown)
        return {
            name: encode_labels(self.task.target, table, self.columns.label, labels, multi_hot)
            for name, table in tables.items()
        }

    def _encode(self, name: str, labels: list[Any] | None, limits: ModelLimits) -> None:
        module = self.trainer.lightning_module if self.trainer is not None else None
        prompts = name == "predict" and self.task.target == "next-token"
        unread: dict[int, list[int]] = {}
        examples = encode(
            self.tables[name],
            self.tokenizer,
            self.task,
            self.columns,
            self.max_length,
            labels,
            for_prediction=name == "predict",
            positions=limits.prompt_positions(module) if prompts else limits.positions,
            unread=unread,
        )
        self.encoded[name] = examples
        if self.labels is not None:
            tag = "O" if "O" in self.labels else None
            fixed = {row: dict.fromkeys(words, tag) for row, words in unread.items()}
            self.tables[name] = replace(self.tables[name], fixed_tags=fixed)

    def _pack(self, limits: ModelLimits) -> None:
        if self.trainer is not None:
            self.check_packed(self.trainer.lightning_module)
        self._packed_length = token_limit(self.tokenizer, self.max_length, limits.positions)
        self.packed = pack(self.encoded["train"], self._packed_length)

    def _loaders(self) -> LoaderFactory:
        processes = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return LoaderFactory(self.batch_size, self.num_workers, **(processes or {}))

    def _collator(self, side: str = "right", training: bool = False) -> Collator:
        pad, pad_type = self.tokenizer.pad_token_id, self.tokenizer.pad_token_type_id
        limits = self._limits()
        shortest = limits.shortest_training if training else limits.shortest
        return Collator(pad, not self.task.pooled, side, pad_type, shortest)

    def _limits(self) -> ModelLimits:
        return model_limits(self.trainer.lightning_module if self.trainer is not None else None)
