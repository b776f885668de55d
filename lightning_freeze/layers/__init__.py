"""The ordered layers of any module, and the selectors that name them.

This room may import ``errors`` only. Inside it, from bottom to top: ``forward_source`` (what a module's code says),
``discovery`` (from a module to the specification of its layers), ``layer.py``, ``wording.py`` and ``analysis``
(questions about layers), ``selectors.py``, ``modes.py`` and ``table.py``, and ``stack.py`` on top.

Begin reading with ``stack.py``: :class:`LayerStack` is what the rest of the package uses.
"""

from lightning_freeze.layers.layer import Layer
from lightning_freeze.layers.selectors import Selection
from lightning_freeze.layers.stack import LayerStack

__all__ = ["Layer", "LayerStack", "Selection"]
