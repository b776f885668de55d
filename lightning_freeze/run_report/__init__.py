"""FreezeReport: one page that shows what happened in a run, and scalars for its loggers.

May import every room but ``cli``. Begin reading with ``freeze_report.py``, the callback. ``recorder.py`` says what is
noted when; ``history/`` keeps it, ``measures/`` finds it out, and ``page/`` shows it.
"""

from lightning_freeze.run_report.freeze_report import FreezeReport

__all__ = ["FreezeReport"]
