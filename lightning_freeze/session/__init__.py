"""The one run that all callbacks of a fit share: what is held frozen, and when things happen.

The first callback passes Lightning's hooks on to the session. The session lets the schedules decide what trains, keeps
what is frozen frozen, and tells each observer of each moment once, in a fixed order.

May import ``schedule``, ``rates``, ``distributed``, ``layers`` and ``errors``. Begin reading with ``observer.py`` (the
moments), then ``moments.py`` (who is told when), ``session.py`` (the state), ``holds.py`` (who holds what frozen) and
``phase_runner.py`` (a schedule at work).
"""
