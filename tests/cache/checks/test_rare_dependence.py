"""Networks in which a sample depends on its batch only sometimes: the cached fit equals the one without the cache."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cached_fits import Examples, MemoryStore, Plain, assert_same, both, loader, make_cache
from encoders import Block, Classifier, Encoder, check_equal, frozen
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_freeze.cache.checks.cross_sample import find_dependence, groups

Mix = Callable[[Tensor, Tensor, int], Tensor]


class Mixing(Encoder):
    """An encoder that computes something across the samples between its embeddings and its blocks.

    Args:
        mix: Takes the embeddings, the tokens and a modulus, which says how rare the dependence is.
        modulus: About one of so many samples depends on others.
    """

    def __init__(self, mix: Mix, modulus: int = 7) -> None:
        super().__init__()
        self.mix = mix
        self.modulus = modulus

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run(self.mix(self.embeddings(input_ids), input_ids, self.modulus))[-1]  # type: ignore[no-any-return]


def is_rare(ids: Tensor, modulus: int) -> Tensor:
    return ids.sum(1) % modulus == 0


def scale_of_others(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    """A scaler as in forecasting: a window without observations takes the scale of the batch."""
    observed = (~is_rare(ids, modulus))[:, None, None].float()
    own = (x * observed).abs().mean((1, 2), keepdim=True)
    default = (own * observed).sum(0) / observed.sum(0).clamp(min=1)
    return x / torch.where(observed > 0, own, default).clamp(min=1e-3)


def scale_if_any_is_missing(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    missing = is_rare(ids, modulus)
    if missing.any():
        x = torch.where(missing[:, None, None], x - x.mean(0), x)
    return x


def pooled_over_the_batch(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    pooled = x.amax(0, keepdim=True)
    return torch.where((ids.amax() % modulus == 0), x + pooled, x)


def routed_with_capacity(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    """One expert takes so many tokens of the whole batch, in order; the others pass by."""
    chosen = (ids % modulus == 0).flatten()
    fits = (chosen.cumsum(0) <= max(2, chosen.numel() // 4)) & chosen
    return x + fits.view(*ids.shape, 1) * torch.tanh(x.flip(-1))


def branch_on_the_size(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    return x - x.mean(0) if len(x) in (2, 3) else x


def ranked(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    """A rare sample is moved by its rank in the batch."""
    rank = ids.sum(1).argsort().argsort()
    return x + 0.1 * (rank * is_rare(ids, modulus))[:, None, None]


def place_in_the_batch(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    return x + 0.1 * (torch.arange(len(x)) * is_rare(ids, modulus))[:, None, None]


def median_in_numpy(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    rare = is_rare(ids, modulus).numpy()
    return x * float(1 + rare.mean())


def nearest_neighbour(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    flat = x.mean(1)
    nearest = torch.cdist(flat, flat).fill_diagonal_(1e9).argmin(1)
    return torch.where(is_rare(ids, modulus)[:, None, None], x[nearest], x)


def mean_written_into_a_buffer(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    table = torch.zeros(2, 32)
    table[1] += x.mean((0, 1))
    return x + table[is_rare(ids, modulus).long()][:, None]


def mirror_image(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    return torch.where(is_rare(ids, modulus)[:, None, None], x.flip(0), x)


def place_among_the_rare(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    """The second rare sample of a batch, and those after it, are moved."""
    return x + 0.1 * (is_rare(ids, modulus).cumsum(0) >= 2)[:, None, None]


def scale_of_padded_windows(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    """Windows with a large mean, padding included, are scaled."""
    scale = x.abs().mean((1, 2), keepdim=True)
    return torch.where(scale > 0.8, x * 1.1, x)


def parity_of_the_padded_sum(x: Tensor, ids: Tensor, modulus: int) -> Tensor:
    rare = (x.abs().sum((1, 2)) * 100).long() % modulus == 0
    return x * (1 + 0.1 * rare)[:, None, None]


KINDS = [
    scale_of_others, scale_if_any_is_missing, pooled_over_the_batch, routed_with_capacity, branch_on_the_size, ranked,
    place_in_the_batch, median_in_numpy, nearest_neighbour, mean_written_into_a_buffer,
    mirror_image, place_among_the_rare, scale_of_padded_windows, parity_of_the_padded_sum,
]  # fmt: skip


@pytest.mark.fast_cases(17)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mix", KINDS)
def test_rare_dependence_changes_nothing(mix: Mix, seed: int) -> None:
    choose = random.Random(f"{mix.__name__} {seed}")
    count, size = choose.choice([23, 26, 31]), choose.choice([4, 5, 6])
    least = choose.choice([3, 6])
    data = lambda: loader(Examples(count, least, 6, seed=seed), size, shuffle=True)  # noqa: E731
    # As if an earlier run had stored some of the samples, or the store were too small for all of them.
    cache = make_cache(Forgetful(choose.choice([count // 2, 10_000])))
    module = Plain(Classifier(Mixing(mix, choose.choice([5, 7, 11]))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, cached, _ = both(module, frozen(), cache=cache, data=data, epochs=4)
    assert_same(plain, cached, exact=False)
    assert cache.hit_rate == 0 or not cache.reasons


@pytest.mark.parametrize("count", range(2, 16))
@pytest.mark.parametrize("size", [5, 7])
def test_the_common_sample_has_other_neighbours_in_each_group(count: int, size: int) -> None:
    first, second = groups(count, 1, size)
    assert first[0] == second[-1] == 1
    around = {first[1], first[-1]}
    assert around.isdisjoint({second[0], second[-2]})


@pytest.mark.parametrize(("scan", "dim", "mixes"), [
    (torch.cumsum, 0, True), (torch.cumsum, 1, False), (torch.cummax, 0, True), (torch.sort, 0, True),
    (torch.sort, -1, False), (torch.flip, [0, 1], True), (torch.flip, [1], False),
])  # fmt: skip
def test_scans_over_samples_are_found_where_nothing_differs(scan: Any, dim: Any, mixes: bool) -> None:
    data = torch.ones(8, 3)
    found = find_dependence(lambda x: scan((x < 0).long(), dim), lambda rows: data[list(rows)], groups(8, 0, 5))
    assert (found is not None) == mixes


class Forgetful(MemoryStore):
    """Keeps only so many entries."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def put(self, namespace: bytes, keys: Any, tensors: Any) -> None:
        left = max(0, self.room - len(self.entries))
        super().put(namespace, keys[:left], tensors[:left])


def windows(shuffle: bool) -> DataLoader:
    return loader(Examples(24, 6, 6), 4, shuffle)


def test_scaler_in_shuffled_batches_is_off_with_the_reason() -> None:
    reason = r"compute across the samples of a batch \(\w+ in .*scale_of_others\), and no batch comes a second time"
    module = Plain(Classifier(Mixing(scale_of_others)))
    check_equal(module, frozen(), reason=reason, exact=False, data=lambda: windows(shuffle=True))


def test_scaler_is_read_back_in_the_same_batch() -> None:
    module = Plain(Classifier(Mixing(scale_of_others)))
    cache = check_equal(module, frozen(), data=lambda: windows(shuffle=False), validation=lambda: windows(False))
    assert cache.hit_rate > 0.5


def test_the_first_line_says_that_samples_are_read_back_in_the_same_batch(capsys: pytest.CaptureFixture[str]) -> None:
    cache = make_cache(verbose=True)
    both(Plain(Classifier(Mixing(scale_of_others))), frozen(), cache=cache, data=lambda: windows(False), epochs=1)
    assert (
        "scale_of_others computes across the samples of a batch, so they are read back only in"
        in capsys.readouterr().out
    )


def test_scaler_above_the_frozen_layers_does_not_matter() -> None:
    class Above(Encoder):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return scale_of_others(super().forward(input_ids), input_ids, 7)

    cache = check_equal(Plain(Classifier(Above())), frozen(), exact=False, data=lambda: windows(True))
    assert cache.hit_rate > 0.5


def test_blocks_that_lay_the_batch_out_otherwise_are_independent() -> None:
    class Turned(Block):
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            turned = x.transpose(0, 1)
            attended = self.attention(turned, turned, turned, need_weights=False)[0]
            return super().forward(attended.transpose(0, 1).reshape(-1, 32).view(x.shape))

    module = Plain(Classifier(Encoder(*(Turned() for _ in range(4)))))
    cache = check_equal(module, frozen(), exact=False, data=lambda: windows(True))
    assert cache.hit_rate > 0.5
