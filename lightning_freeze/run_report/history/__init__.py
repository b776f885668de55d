"""What a report remembers of a run: plain records of bounded number, which a checkpoint can hold.

May import ``schedule``. Begin reading with ``records.py``, then ``history.py``.
"""
