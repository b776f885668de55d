"""What one training step computes and keeps, found out on fake tensors.

May import nothing else of the package. Begin reading with ``fake_step.py``.
"""
