"""The warnings of a fit that hold a given text."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import LightningModule
from toys import fit

from lightning_freeze.run_warnings.record import warnings_of


def said(text: str, module: LightningModule, *callbacks: Any, **options: Any) -> list[str]:
    """Fit a toy and return the warnings with ``text`` in them, which the list for the report must hold too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        the_trainer = fit(module, *callbacks, **options)
    shown = [str(w.message) for w in caught if text in str(w.message)]
    assert [w.message for w in warnings_of(the_trainer) if text in w.message] == shown
    assert not any("\n" in message for message in shown)
    return shown
