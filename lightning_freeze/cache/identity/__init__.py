"""What makes two inputs, or two frozen prefixes, the same.

Begin reading with ``keys`` (the content key of each sample of a call) and ``fingerprint`` (the identity of a prefix).
``module_settings`` reads plain attributes: ``attribute_watch`` notices their changes in each forward pass,
``setting_values`` describes them. ``environment`` says what else the arithmetic depends on, ``cached_towers`` finds the
towers, ``values`` reads attributes and outputs.

May import ``errors``, ``layers`` and ``cache.store``.
"""
