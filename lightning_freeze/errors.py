"""The one error that this package raises for a wrong set-up."""

from __future__ import annotations

from lightning.fabric.utilities.exceptions import MisconfigurationException


class ConfigurationError(MisconfigurationException, ValueError):
    """A wrong set-up: Lightning's ``MisconfigurationException``, and a ``ValueError`` because some value is wrong."""
