"""What can be wrong with learning rates, seen while a fit runs.

May import the rooms that ``diagnostics`` may import. Begin reading with ``rates_ahead.py``, which steps copies of the
schedulers to the end of the run.
"""
