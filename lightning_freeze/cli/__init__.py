"""The command ``lightning-freeze``, one file for each command.

Begin with :mod:`~lightning_freeze.cli.command_line`, which picks the command and turns errors into messages. The
commands are ``trainer_commands.py`` (fit, validate, test, predict), ``layers.py`` and ``cache.py``. What serves the
first four:

- ``parser.py`` and ``parser_messages.py``: options and configs, and what is said when one is wrong;
- ``config_files.py``, ``expected_text.py``, ``known_classes.py``, ``class_defaults.py``: how YAML and classes are read;
- ``given_options.py``, ``user_errors.py``: which error a user has caused, and by which option;
- ``checkpoint_file.py``, ``divergence.py``: a look into a checkpoint before the run, and at the losses after it.

The room stands on top of the package: it may import every other room, and none imports it.
"""

from lightning_freeze.cli.command_line import main

__all__ = ["main"]
