"""What is true of a run: where backward really stops, and which gradients are missing.

Each check watches the first batches of a phase and warns at most once in a fit.

May import ``session``, ``compatibility`` and the rooms below them. Begin reading with ``wasted_backward.py``: when it
looks; ``avoidable_backward.py`` decides what is a mistake, ``wasted_backward_message.py`` says what to do.
"""
