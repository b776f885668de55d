"""A comparison as text, a picture, a page and files.

May import the records of a comparison and ``pages``. Begin reading with ``columns.py``, which words every number.
"""
