"""Plans x seeds on one data module: which plan wins, at what cost, and how sure that is.

May import every room but ``cli``, which its worker processes run as a command. Begin reading with ``comparing.py``.
``settings.py`` reads a comparison file, ``fits.py`` tells fits apart, ``engines/`` run them, ``statistics.py`` tests
the results and ``output/`` shows them.
"""

from lightning_freeze.comparison.comparing import compare
from lightning_freeze.comparison.comparison import Comparison

__all__ = ["Comparison", "compare"]
