"""What a report measures in a running fit. Nothing here changes the run, and nothing communicates between processes.

May import ``history`` and the rooms that ``run_report`` may import. Begin reading with ``run_layers.py``.
"""
