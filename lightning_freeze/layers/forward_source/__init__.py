"""What the source code of a module says about the order and the connections of its children.

This room may import ``errors`` only. Source code is parsed, never run.

Begin reading with ``use_order`` in ``reader.py``: the order in which a module uses its children. ``value_flow/``
tells which child feeds which, ``side_by_side.py`` which lists are no chain, ``optimized.py`` what the optimizers hold.
"""
