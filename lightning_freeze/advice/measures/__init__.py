"""Measurements as pure functions: what features tell about a task, and what gradients want to change.

Takes tensors and returns numbers; may import nothing of the package but ``errors``. Begin reading with ``probes.py``.
"""
