"""The history of a run as one HTML page: figures, each with its table, and sentences.

May import ``history``, ``facts``, ``plan_file`` and ``pages``. Begin reading with ``page.py``. Every chart is made by one
file; ``view.py`` is what they all look at.
"""
