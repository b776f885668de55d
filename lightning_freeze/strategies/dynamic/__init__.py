"""Dynamic freezing: other layers train in each turn of a few optimizer steps, as a policy chooses.

A policy is a pure function of its settings, the layers, the number of the turn and what was measured so far. The runner
puts its choices into effect, measures what it asks for, and keeps both in checkpoints.

May import every room that ``strategies`` may. Begin reading with ``policies.py``, then ``dynamic_freezing.py`` (the
callback), ``dynamic_runner.py`` (a run) and ``measuring/``; the other callbacks are cases of it.
"""
