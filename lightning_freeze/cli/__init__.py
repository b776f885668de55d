"""The command ``lightning-freeze``, one file for each command.

The commands are ``trainer_commands.py`` (fit, validate, test, predict), ``plan.py``, ``advise.py``, ``compare.py``,
``layers.py``, ``cache.py`` and ``merge_checkpoint.py``. The processes of ``compare`` run ``comparison_worker.py``,
which measures a fit with ``measured_fit.py``. ``parsing/`` reads options and config files, and ``runs/`` has what
several commands do around a fit.

The room stands on top of the package: it may import every other room, and none imports it. Begin reading with
``command_line.py``, which picks the command and turns errors into messages.
"""

from lightning_freeze.cli.command_line import main

__all__ = ["main"]
