"""Arguments in Python are checked as the command line checks options: against their annotations, in one place.

Constructors of public classes call ``check_arguments`` first. Ranges, and what depends on data or a model, stay with
the class that knows them.

May import ``errors`` and nothing else of the package. Begin reading with ``checking.py``.
"""

from lightning_freeze.arguments.checking import check_arguments

__all__ = ["check_arguments"]
