"""The warnings of a fit that hold a given text."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import LightningModule
from toys import fit, loader, trainer

from lightning_freeze.run_warnings.record import warnings_of


def said(text: str, module: LightningModule, *callbacks: Any, samples: int | None = None, **options: Any) -> list[str]:
    """Fit a toy and return the warnings with ``text`` in them, which the list for the report must hold too.

    ``samples`` is the number of validation samples, 8 by default.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if samples is None:
            the_trainer = fit(module, *callbacks, **options)
        else:
            ckpt_path = options.pop("ckpt_path", None)
            the_trainer = trainer(*callbacks, **options)
            the_trainer.fit(module, loader(4), loader(samples // 4, seed=2), ckpt_path=ckpt_path)
    shown = [str(w.message) for w in caught if text in str(w.message)]
    assert [w.message for w in warnings_of(the_trainer) if text in w.message] == shown
    assert not any("\n" in message for message in shown)
    return shown
