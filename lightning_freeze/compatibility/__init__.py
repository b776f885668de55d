"""Other features of a run: compile, activation checkpointing, finders, weight averaging, early stopping.

Each combination either works beside frozen layers or is refused at the start with one message that says what to do.

May import ``session`` and the rooms below it. Begin reading with ``observer.py``, which calls all the others.
"""
