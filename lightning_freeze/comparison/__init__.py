"""Plans x seeds on one data module: which plan wins, at what cost, and how sure that is.

May import every room but ``cli``. Begin reading with ``records.py``, which says what is measured of each fit.
"""
