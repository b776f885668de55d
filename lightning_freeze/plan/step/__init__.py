"""The operations and the memory of one training step, measured on fake tensors.

May import ``rates`` and nothing else of the package. Begin reading with ``fake_step.py``.
"""
