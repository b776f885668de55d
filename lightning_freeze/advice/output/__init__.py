"""Advice as text, as a config, and as a page.

May import the records of advice, and the rooms that advice may import. Begin reading with ``sentences.py``.
"""
