"""Single fits of a race: how one is trained and scored, and how scores are kept.

May import the candidates, and the rooms that advice may import. Begin reading with ``single_fit.py``.
"""
