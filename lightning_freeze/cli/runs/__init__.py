"""What several commands do before, around and after a fit.

``checkpoint_file.py`` checks a checkpoint before the run, and ``divergence.py`` the losses after it. ``planned_fit.py``
plans a fit, and ``written_phases.py`` writes its phases. ``run_module.py`` builds the module of an earlier run.

May import ``cli.parsing`` and every room below ``cli``. Begin reading with ``planned_fit.py``.
"""
