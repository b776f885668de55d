"""Phases and triggers as pure functions, and the checks and state that a change of phase needs.

A schedule is a function of its phases and a small plain state. Nothing in ``phases.py`` and ``triggers.py`` touches a
model.

May import ``distributed``, ``layers``, ``checkpoints`` and ``errors``. Begin reading with ``phases.py`` and
``triggers.py``.
"""
