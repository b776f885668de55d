"""One learning rate per layer under the user's own optimizer and scheduler, by groups that exist only within a step.

``optimizer_rates.py`` is all that other rooms use. ``step_groups.py`` replaces the parameter groups within a step, and
``split_group.py`` keeps what an optimizer writes into them.

May import ``errors`` and ``optimizers``. Begin reading with ``optimizer_rates.py``.
"""
