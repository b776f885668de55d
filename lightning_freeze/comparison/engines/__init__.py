"""Where the fits of a comparison run: in processes of this machine, or on a Ray cluster.

May import the records and tasks of a comparison. Begin reading with ``worker_process.py``: either engine ends there.
"""
