"""The history of a run as one HTML page: figures, each with its table, and sentences.

May import ``history``, ``facts``, ``plan_file`` and ``pages``. Begin reading with ``page.py``. What all charts look at
is in ``view.py``, what they consist of in ``chart.py``.
"""
