"""The command ``lightning-freeze``, one file for each command.

The commands are ``trainer_commands.py`` (fit, validate, test, predict), ``plan.py``, ``compare.py``, ``layers.py``,
``cache.py`` and ``merge_checkpoint.py``. ``parsing/`` reads options and config files. ``checkpoint_file.py`` and
``divergence.py`` check a checkpoint before the run, and the losses after it. The processes of ``compare`` run
``comparison_worker.py``, which measures a fit with ``measured_fit.py``; ``run_module.py`` builds the module of an
earlier run.

The room stands on top of the package: it may import every other room, and none imports it. Begin reading with
``command_line.py``, which picks the command and turns errors into messages.
"""

from lightning_freeze.cli.command_line import main

__all__ = ["main"]
