"""Checks of a run: where backward stops, which gradients are missing, and (``learning_rates``) which rates are wrong.

Each check watches the first batches of a phase and warns at most once in a fit.

May import ``session``, ``compatibility`` and the rooms below them. Begin reading with ``wasted_backward.py``,
which says when to check; ``avoidable_backward.py`` decides what is a mistake, ``wasted_backward_message.py`` words the
warning.
"""
