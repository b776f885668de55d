"""What a user's optimizer is and does: whether it runs hooks, drives other optimizers, or takes one rate per layer.

``step_hooks.py`` puts hooks right around a step, ``driven_optimizers.py`` finds the optimizers behind a wrapper,
``trial_step.py`` tries a step on a copy (``optimizer_copy.py``), and ``optimizer_checks.py`` refuses optimizers whose
rates cannot be scaled. ``group_values.py`` copies and compares the values of parameter groups.

May import ``errors`` only. Begin reading with ``optimizer_checks.py``.
"""
