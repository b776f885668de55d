"""The ordered layers of any module, and the selectors that name them."""

from lightning_freeze.layers.layer import Layer
from lightning_freeze.layers.selectors import Selection
from lightning_freeze.layers.stack import LayerStack

__all__ = ["Layer", "LayerStack", "Selection"]
