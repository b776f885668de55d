"""Text data from files: reading, splitting, encoding, batching."""

from lightning_freeze.data.batching import Collator, LengthBucketSampler
from lightning_freeze.data.datamodule import TextDataModule
from lightning_freeze.data.readers import Table, read_table
from lightning_freeze.data.splitting import split_rows

__all__ = ["Collator", "LengthBucketSampler", "Table", "TextDataModule", "read_table", "split_rows"]
