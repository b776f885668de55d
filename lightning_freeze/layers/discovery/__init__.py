"""From a module to the specification of its layers: blocks, towers, data flow, ownership of parameters.

This room may import ``errors`` and ``layers.forward_source``. It never runs the module and reads no weights.

Begin reading with ``discover`` in ``discover.py``. It builds the module tree (``module_tree.py``), sets apart the
networks that take no part in training (``networks/``), finds the stacks of blocks (``blocks.py``), lays them out along
the data flow (``data_flow.py``), and assigns everything else to a layer (``placement.py``).
"""
