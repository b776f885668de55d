"""Text data from files: read, checked, split, tokenised and batched.

This package turns the files that a user has into batches, or says in one message which file and row is wrong. It knows
tasks (:mod:`lightning_freeze.module.tasks`) and the package's errors, and nothing of layers, callbacks or the cache.

Begin reading at ``datamodule.py``, which calls the others in this order: ``splits.py`` and ``splitting.py`` decide
which rows belong to which split, ``readers.py`` and ``arrow.py`` make a ``Table`` (``table.py``) of each,
``unlabelled.py`` leaves out rows without a label, ``labels.py`` makes numbers of labels, ``tokenizer.py``,
``encoding.py`` and ``words.py`` make token ids of texts, ``model_limits.py`` checks them against the model, and
``batching.py`` makes batches. ``values.py`` says what a single field means, the same for all kinds of files;
``predictions.py`` writes what a model predicted.
"""

from lightning_freeze.data.batching import Collator, LengthBucketSampler
from lightning_freeze.data.datamodule import TextDataModule
from lightning_freeze.data.readers import read_table
from lightning_freeze.data.splitting import split_rows
from lightning_freeze.data.table import Table

__all__ = ["Collator", "LengthBucketSampler", "Table", "TextDataModule", "read_table", "split_rows"]
