"""Questions about the layers of a module that freezing and caching ask.

This room may import ``errors``, ``layers.discovery``, ``layers.layer`` and ``layers.wording``.

Begin reading with ``backward_extent.py``: how far backward runs through frozen layers. ``randomness.py`` finds what
stays random in frozen layers, ``quantised.py`` weights that cannot train, ``unused_copies.py`` parameters that nothing
uses, and those that PEFT keeps frozen.
"""
