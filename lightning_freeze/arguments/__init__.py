"""Arguments in Python are checked as the command line checks options: against their annotations, in one place.

Constructors of public classes call ``check_arguments`` first. ``conditions.py`` has the checks of what annotations
cannot say; what depends on data or a model stays with the class that knows it.

May import ``errors`` and nothing else of the package. Begin reading with ``checking.py``.
"""

from lightning_freeze.arguments.checking import check_arguments
from lightning_freeze.arguments.conditions import check_at_least, check_distinct, check_share, check_unused

__all__ = ["check_arguments", "check_at_least", "check_distinct", "check_share", "check_unused"]
