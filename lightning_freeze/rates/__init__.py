"""One learning rate per layer under the user's own optimizer and scheduler, by groups that exist only within a step.

``optimizer_rates.py`` is all that other rooms use. ``step_groups.py`` replaces the parameter groups within a step,
``split_group.py`` and ``group_values.py`` keep what an optimizer writes into them, ``step_hooks.py`` finds the right
moment; ``optimizer_checks.py``, ``trial_step.py`` and ``driven_optimizers.py`` deal with unusual optimizers.

May import ``errors`` only. Begin reading with ``optimizer_rates.py``.
"""
