"""Text data from files: read, checked, split, tokenised and batched.

This room turns the files of a user into batches, or reports in one message which file and row is wrong. It may
import ``module`` (for the tasks), ``namespaces`` and ``errors``; it knows nothing of layers, callbacks or the cache.

Begin reading with ``datamodule.py``. It calls the others in this order: ``files.py`` has ``reading/`` read each split
into a table and ``splitting.py`` divide a table without splits, ``columns.py`` checks the texts, ``unlabelled.py``
leaves out rows without a label, ``labels.py`` turns labels into numbers, ``tokenizer.py``, ``encoding.py``,
``words.py`` and ``language_models/`` turn texts into token ids, ``model_limits.py`` checks them against the model, and
``loaders.py`` and ``batching.py`` make batches. ``predictions.py`` writes what a model predicted.
"""

from lightning_freeze.data.batching import Collator, LengthBucketSampler
from lightning_freeze.data.datamodule import TextDataModule
from lightning_freeze.data.reading.readers import read_table
from lightning_freeze.data.reading.table import Table
from lightning_freeze.data.splitting import split_rows

__all__ = ["Collator", "LengthBucketSampler", "Table", "TextDataModule", "read_table", "split_rows"]
