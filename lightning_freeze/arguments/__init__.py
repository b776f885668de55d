"""Arguments in Python are checked as the command line checks options: against their annotations, in one place.

Begin reading with :func:`~lightning_freeze.arguments.checking.check_arguments`, which constructors of public classes call
first. Ranges, and what depends on data or a model, stay with the class that knows them.

The room may import ``lightning_freeze.errors`` and nothing else of the package.
"""

from lightning_freeze.arguments.checking import check_arguments

__all__ = ["check_arguments"]
