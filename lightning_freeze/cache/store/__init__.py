"""Where cached tensors are kept: on the accelerator, in RAM and on disk, behind one small interface.

Begin reading with :mod:`~lightning_freeze.cache.store.store`: ``open_store`` returns a ``Store`` with ``get`` and
``put``.

- ``accelerator.py``, ``memory.py`` (with ``index.py``) and ``disk.py`` are the tiers, the fastest first.
- ``disk.py`` uses ``folder.py`` (what lies in a cache folder), ``lmdb_environment.py`` and ``lmdb_header.py`` (one LMDB
  file) and ``writer.py`` (the thread that writes). ``plain_files.py`` keeps all of them from following links.
  ``network_folder.py`` names the local folder that is used where LMDB must not be.
- ``entry.py`` is one entry as bytes, ``sizes.py`` reads and shows sizes.

The room stores tensors under keys; it does not know what they are. It may import ``lightning_freeze.errors`` and
nothing else of the package.
"""
