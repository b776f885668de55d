"""What a run says about itself: the table of layers and the line at each change of phase.

Tables and lines are made from plain records (``layer_rows.py``), not from callbacks.

May import ``session``, ``diagnostics`` and the rooms below them. Begin reading with ``printed.py``.
"""
