"""What can be wrong with learning rates, seen while a fit runs.

May import the rooms that ``diagnostics`` may import. Begin reading with ``decayed_rate.py``, which steps copies of the
schedulers to see the rates ahead.
"""
