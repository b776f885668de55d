"""Lightning's two import names, ``lightning.pytorch`` and ``pytorch_lightning``: separate copies of the same classes.

Every other room asks here whenever the class of one of the user's objects decides.

May import nothing else of the package. Begin reading with ``both.py``.
"""

from lightning_freeze.namespaces.both import (
    Callback,
    LightningDataModule,
    LightningModule,
    Misconfiguration,
    either,
    overrides,
)

__all__ = ["Callback", "LightningDataModule", "LightningModule", "Misconfiguration", "either", "overrides"]
