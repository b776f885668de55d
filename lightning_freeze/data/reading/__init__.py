"""From files to tables: CSV, TSV, JSONL, Parquet and data sets on disk, with the place of each row in its file.

A field means the same in every kind of file (``values.py``), or is refused with its file and row.

May import ``errors`` only. Begin reading with ``readers.py``, which picks the reader of a file, and ``table.py``, which
all of them return.
"""
