"""Two weights have the same fingerprint exactly if dtype, shape and every bit are the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_freeze.checkpoints.fingerprint import fingerprint, has_plain_content

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_content_decides(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensor = (torch.randn(6, 5) * 3).relu().to(dtype)
    digest = fingerprint(tensor)
    assert len(digest) == 32 and int(digest, 16)
    assert digest == fingerprint(tensor.clone()) == fingerprint(nn.Parameter(tensor, requires_grad=False))
    assert digest == fingerprint(tensor.t().contiguous().t())  # the layout in memory does not matter
    changed = tensor.clone()
    changed[5, 4] = 0 if tensor[5, 4] else 1
    others = [changed, tensor.reshape(5, 6), tensor.t(), tensor[:5], tensor[:0], tensor[0, 0]]
    assert len({digest, *map(fingerprint, others)}) == len(others) + 1


def test_the_sign_of_zero_views_and_lazy_conjugates_are_told_apart() -> None:
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))
    assert fingerprint(torch.zeros(2, dtype=torch.int32)) != fingerprint(torch.zeros(2))
    numbers = torch.tensor([1 + 2j])
    assert fingerprint(numbers.conj()) == fingerprint(torch.tensor([1 - 2j])) != fingerprint(numbers)
    assert fingerprint(torch.tensor(float("nan"))) == fingerprint(torch.tensor(float("nan")))


def test_what_has_no_plain_content() -> None:
    class Own(torch.Tensor):
        pass

    assert has_plain_content(torch.ones(1)) and has_plain_content(nn.Parameter(torch.ones(1)))
    others = [torch.ones(1, device="meta"), torch.ones(2, 2).to_sparse(), nn.UninitializedParameter(), 1, None]
    assert not any(map(has_plain_content, [*others, torch.ones(1).as_subclass(Own)]))
