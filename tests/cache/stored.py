"""Entries whose content follows from their key, so that any process can tell a right one from a wrong one."""

from __future__ import annotations

import hashlib
import multiprocessing

import pytest
import torch
from torch import Tensor

needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")

SPACE = b"n" * 16


def key(number: int) -> bytes:
    return hashlib.md5(str(number).encode()).digest()


def tensor(number: int, numel: int = 2000) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(number))


def is_right(number: int, found: Tensor | None, numel: int = 2000) -> bool:
    return found is not None and torch.equal(found, tensor(number, numel))
