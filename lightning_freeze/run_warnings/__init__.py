"""The warnings of a run, given on rank zero and kept for a report.

Imports nothing of this package. Begin reading with ``record.py``.
"""
