"""Keeps the score of every fit in a file, so that a race that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_freeze.advice.fits.single_fit import FitScore

_VALUES = 64
_ADDRESS = re.compile(" at 0x[0-9a-f]+")


class FitStore:
    """Scores by what was trained. Each is written as soon as it is known, as one line of JSON.

    A line that cannot be read, such as one that was cut off, counts as absent.

    Args:
        path: The file; ``None`` keeps the scores in memory.
        about: What all fits share; scores that were stored with anything else are not used.
    """

    def __init__(self, path: Path | None, about: str) -> None:
        self._path, self._about = path, about
        self._found: dict[str, FitScore] = {}
        self.reused = 0
        """How many fits were read instead of run."""
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)

    def get(self, facts: Mapping[str, Any], fit: Callable[[], FitScore]) -> FitScore:
        """The score of a fit: from the file if it is there, else by running it.

        Args:
            facts: What tells the fit apart, as plain data.
            fit: Runs it.
        """
        key = hashlib.sha256(json.dumps([self._about, facts], sort_keys=True).encode()).hexdigest()
        if key in self._found:
            self.reused += 1
            return self._found[key]
        score = self._found[key] = fit()
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                # A leading newline ends a line that an earlier process did not.
                file.write("\n" * self._is_cut() + json.dumps({"key": key, "fit": facts, **asdict(score)}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return score

    def _is_cut(self) -> bool:
        assert self._path is not None
        text = self._path.read_bytes() if self._path.is_file() else b""
        return bool(text) and not text.endswith(b"\n")

    def _read(self, line: str) -> None:
        try:
            stored = json.loads(line)
            self._found[stored["key"]] = FitScore(
                float(stored["score"]),
                tuple(map(float, stored["examples"])),
                float(stored["seconds"]),
                tuple(map(str, stored["warnings"])),
            )
        except (ValueError, KeyError, TypeError):
            return


def fingerprint(module: LightningModule, datamodule: LightningDataModule, settings: Any) -> str:
    """Tell one set-up from another: the module, its data, and further settings.

    All examples of a :class:`~lightning_freeze.TextDataModule` are read; of any other data module the first batch for
    training and for validation.

    Args:
        module: The module before training. Its structure, its hyperparameters and the first values of each tensor are
            read.
        datamodule: The data, which has been set up.
        settings: Anything whose ``repr`` says what it is.
    """
    found = hashlib.sha256(_without_addresses([settings, module, dict(module.hparams)]))
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(repr(tensor.detach().flatten()[:_VALUES].float().tolist()).encode())
    encoded = getattr(datamodule, "encoded", None)
    if isinstance(encoded, dict):
        for examples in encoded.values():
            for example in examples:
                found.update(repr(example).encode())
    else:
        for loader in (datamodule.train_dataloader(), datamodule.val_dataloader()):
            for leaf in tree_leaves(next(iter(loader), None)):
                found.update(_without_addresses(leaf.tolist() if isinstance(leaf, Tensor) else leaf))
    return found.hexdigest()


def _without_addresses(value: Any) -> bytes:
    return _ADDRESS.sub("", repr(value)).encode()
