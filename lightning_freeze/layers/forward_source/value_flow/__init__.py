"""Which children of a module feed which, read from the source of its code and never run.

This room may import ``errors`` and the other files of ``layers.forward_source``.

Begin reading with ``ValueFlow`` in ``flow.py``: what is known in the end. ``interpreter.py`` follows the statements,
``expressions.py`` and ``part_calls.py`` find what expressions stand for, ``state.py`` holds the names at one place.
"""
