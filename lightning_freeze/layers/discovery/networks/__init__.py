"""The networks and towers of a module: which feed which, which take part in training, how far each is from the output.

This room may import ``layers.forward_source`` and the files of ``layers.discovery`` that describe a module
(``module_tree.py``, ``block_lists.py``, ``structure.py``).

Begin reading with ``connections.py``; ``bystanders.py`` finds the networks that take no part.
"""
