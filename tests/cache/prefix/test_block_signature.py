"""What a skipped block returns in addition to hidden states, such as the position biases of T5's first block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_freeze.cache.prefix.block_signature import BlockSignature, signature_of


class Biased:
    """Returns hidden states and a bias that depends on their length and an offset, not on the samples."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, hidden: Tensor, mask: Tensor | None = None, offset: Tensor | None = None, past: Any = None
    ) -> Any:
        self.calls += 1
        start = 0 if offset is None else int(offset)
        start += past.get_seq_length() if past is not None else 0
        bias = torch.arange(start, start + hidden.shape[1], dtype=torch.float32)[None, None]
        return 2 * hidden, bias


class Past:
    """Keys and values of earlier tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


def learned(block: Biased) -> BlockSignature:
    hidden = torch.randn(3, 5, 4)
    return signature_of("block 0", (hidden,), {}, block(hidden))


def test_it_is_computed_once_for_each_length() -> None:
    block, earlier = Biased(), {}
    signature = learned(block)
    for length in (5, 7, 5, 7, 5):
        hidden = torch.randn(3, length, 4)
        stored, bias = signature.build(hidden, (hidden,), {}, block, earlier)
        assert stored is hidden
        assert torch.equal(bias, block(hidden)[1])
    assert block.calls == 1 + 5 + 2


def test_it_is_computed_again_if_anything_besides_the_samples_differs() -> None:
    block, earlier, hidden = Biased(), {}, torch.randn(3, 5, 4)
    signature = learned(block)
    build = lambda **kwargs: signature.build(hidden, (hidden,), kwargs, block, earlier)[1][0, 0, 0].item()  # noqa: E731
    assert [build(offset=torch.tensor([n])) for n in (0, 2, 0, 3)] == [0, 2, 0, 3]
    assert [build(past=Past(n)) for n in (0, 4, 1)] == [0, 4, 1]


def test_what_somebody_has_written_into_is_not_used_again() -> None:
    block, earlier, hidden = Biased(), {}, torch.randn(3, 5, 4)
    signature = learned(block)
    first = signature.build(hidden, (hidden,), {}, block, earlier)[1]
    first += 1
    assert torch.equal(signature.build(hidden, (hidden,), {}, block, earlier)[1], block(hidden)[1])


def test_nothing_is_kept_under_inference_mode_for_training() -> None:
    block, earlier, hidden = Biased(), {}, torch.randn(3, 5, 4)
    signature = learned(block)
    with torch.inference_mode():
        signature.build(hidden, (hidden,), {}, block, earlier)
    assert not signature.build(hidden, (hidden,), {}, block, earlier)[1].is_inference()


def test_what_may_depend_on_a_single_sample_is_computed_in_every_call() -> None:
    block, earlier, hidden = Biased(), {}, torch.randn(1, 5, 4)
    signature = signature_of("block 0", (hidden,), {}, block(hidden))
    for _ in range(3):
        signature.build(hidden, (hidden,), {}, block, earlier)
    assert block.calls == 1 + 3
    assert not earlier


def test_no_more_than_a_few_lengths_are_kept() -> None:
    block, earlier = Biased(), {}
    signature = learned(block)
    for length in range(1, 40):
        hidden = torch.randn(3, length, 4)
        signature.build(hidden, (hidden,), {}, block, earlier)
    assert len(earlier) <= 4
