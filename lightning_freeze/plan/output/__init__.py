"""A plan as text, pictures, a page and files.

May import the records of a plan, and the rooms that a plan may import. Begin reading with ``table.py``.
"""
