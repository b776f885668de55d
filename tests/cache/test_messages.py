"""Messages about frozen parts that are not cached, changes and errors, and messages of other ranks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cached_fits import Examples, MemoryStore, Plain, both, freeze, loader, make_cache, make_trainer
from encoders import Whole, bert, classified, frozen, same_length
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

from lightning_freeze.cache.identity.unsupported import Unsupported, reason_of


class TwoEncoders(Plain):
    """A frozen teacher beside what trains."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__(bert())
        self.teacher = teacher

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            target = self.teacher(**batch).logits
        output = self.model(**batch)
        loss: Tensor = output.loss + (output.logits - target).pow(2).mean()
        self.losses.append(loss.detach().clone())
        return loss


def said_in(module: Any, *callbacks: Any, capsys: pytest.CaptureFixture[str], epochs: int = 1) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(*callbacks, make_cache(verbose=True), epochs=epochs).fit(module, same_length())
    said = [str(w.message) for w in caught] + capsys.readouterr().out.splitlines()
    return [line for line in said if "rozen prefix cache" in line or "FrozenPrefixCache" in line]


@pytest.mark.slow
def test_a_compiled_tower_beside_another_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = bert()
    freeze(teacher)
    module = TwoEncoders(teacher)
    module.teacher = torch.compile(teacher, backend="eager")  # type: ignore[assignment]
    said = said_in(module, frozen(), capsys=capsys)
    assert [line for line in said if "compiled" in line] == [
        "FrozenPrefixCache does nothing for tower 'teacher': it is compiled."
    ]


@pytest.mark.slow
def test_a_compiled_tower_that_trains_is_not_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = bert()
    freeze(teacher)
    module = TwoEncoders(teacher)
    module.model = torch.compile(module.model, backend="eager")  # type: ignore[assignment]
    assert not [line for line in said_in(module, capsys=capsys) if "compiled" in line]


class WithFeatures(Whole):
    """A wholly frozen part without blocks feeds into what trains."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(32, 32)
        freeze(self.features)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = self.features(self.embeddings(batch["input_ids"]))
        for layer in self.layers:
            hidden = layer(hidden)
        return classified(self.classifier(hidden[:, 0]), batch["labels"]).loss  # type: ignore[no-any-return]


def test_a_wholly_frozen_part_that_is_computed_in_each_step_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = said_in(WithFeatures(), capsys=capsys, epochs=2)
    assert len(said) == 1
    assert said[0].startswith("Frozen prefix cache: frozen as a whole and computed in each step: ")
    assert "features" in said[0]


def test_nothing_frozen_is_not_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    assert not said_in(Plain(bert()), capsys=capsys)


def test_a_wholly_frozen_encoder_is_said_to_be_computed_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = bert()
    freeze(model.bert)
    said = said_in(Plain(model), capsys=capsys)
    assert "4 of 4 blocks are computed once" in said[0]
    assert not any("computed in each step" in line for line in said)


class Parallel(Whole):
    """Heads that are all applied to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.heads = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embeddings(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(torch.stack([head(x) for head in self.heads]).mean(0)[:, 0])  # type: ignore[no-any-return]


def test_towers_that_are_no_chain_get_one_plain_reason() -> None:
    module = Parallel()
    freeze(module.embeddings, module.heads)
    with pytest.warns(UserWarning, match="it has no blocks that could be skipped") as caught:
        make_trainer(make_cache(), epochs=1).fit(module, same_length())
    said = [str(w.message) for w in caught if "FrozenPrefixCache" in str(w.message)]
    assert len(said) == 1


def test_error_while_towers_are_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        return {}["layers"]

    monkeypatch.setattr("lightning_freeze.cache.identity.cached_towers._block_module", fails)
    with pytest.warns(UserWarning, match=r"for Plain: something in its code could not be followed \(KeyError"):
        make_trainer(make_cache(), epochs=1).fit(Plain(bert()), same_length())


def test_traceback_of_an_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        raise IndexError
    except IndexError as error:
        assert reason_of(error).startswith("something in its code could not be followed (IndexError")
        assert "Traceback" not in reason_of(error)
        monkeypatch.setenv("LIGHTNING_FREEZE_DEBUG", "1")
        assert "Traceback" in reason_of(error) and __file__ in reason_of(error)
    assert reason_of(Unsupported("it is compiled")) == "it is compiled"


def test_other_ranks_say_why() -> None:
    cache = make_cache()
    tower = SimpleNamespace(tower=SimpleNamespace(label="the model", is_sharded=False))
    for rank, expected in ((0, "for the model: why"), (3, "for the model on rank 3: why")):
        cache._attachment.module = SimpleNamespace(global_rank=rank)  # type: ignore[assignment]
        with pytest.warns(UserWarning, match=f"FrozenPrefixCache is switched off {expected}"):
            cache._report_switch_off(tower, "why", True)  # type: ignore[arg-type]


def test_other_ranks_say_that_it_does_not_pay(capsys: pytest.CaptureFixture[str]) -> None:
    cache = make_cache(verbose=True)
    cache._attachment.module = SimpleNamespace(global_rank=3)  # type: ignore[assignment]
    for is_sharded in (False, True):  # where all ranks switch off together, the first one says why
        tower = SimpleNamespace(tower=SimpleNamespace(label="the model", is_sharded=is_sharded))
        cache._report_switch_off(tower, "it is slow", False)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Frozen prefix cache: not used for the model on rank 3: it is slow."]


class FastPath(nn.Module):
    """``nn.TransformerEncoder`` with its fast path, which eval mode switches on where nothing requires grad."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(100, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=nested)
        self.classifier = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        mask = attention_mask == 0 if input_ids.shape[1] > 5 else None
        hidden = self.encoder(self.embeddings(input_ids), src_key_padding_mask=mask)
        return classified(self.classifier(hidden[:, 0]), labels)


def mixed_lengths() -> DataLoader:
    """Batches without a padding mask, then batches with one."""
    short, long = Examples(8, 5, 5), Examples(8, 3, 9)
    return loader(ConcatDataset([short, long]))


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("data", [same_length, loader, mixed_lengths])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("layers", [4, 2])
def test_fast_path_of_transformer_encoder(nested: bool, layers: int, data: Any) -> None:
    module = Plain(FastPath(nested))
    for part in (module.model.embeddings, *module.model.encoder.layers[:layers]):
        part.requires_grad_(False)
    if layers == 4:
        module.model.encoder.eval()
    cache = make_cache()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain, cached, _ = both(module, cache=cache, data=data, validation=data, epochs=4)
    torch.testing.assert_close(cached.losses, plain.losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cached.validated, plain.validated, rtol=1e-4, atol=1e-5)
    said = [str(w.message) for w in caught if "FrozenPrefixCache" in str(w.message)]
    assert len(said) == len(cache.reasons)
    assert cache.hit_rate > 0.3 or any("nested tensors" in line for line in said)
    assert not any("could not be followed" in line for line in said)


class Recording(Whole):
    """Writes something down in each step."""

    def __init__(self, record: Callable[[Recording, int], None]) -> None:
        super().__init__()
        self.record = record
        self.losses: dict[int, int] = {}
        self.mean = 0.0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.record(self, batch_idx)
        return super().training_step(batch, batch_idx)


def count_in_dict(module: Recording, batch_idx: int) -> None:
    module.losses[batch_idx] = module.losses.get(batch_idx, 0) + 1


def keep_mean(module: Recording, batch_idx: int) -> None:
    module.mean = 0.9 * module.mean + batch_idx + 1


@torch.no_grad()
def move_weight(module: Recording, batch_idx: int) -> None:
    module.layers[0].linear.weight.mul_(1.001)


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("batches", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("record", "name"), [(count_in_dict, "losses"), (keep_mean, "mean"), (move_weight, "layers.0.linear.weight")]
)
def test_what_changes_is_named_wherever_the_epochs_end(record: Any, name: str, batches: int) -> None:
    cache = make_cache(MemoryStore())
    with pytest.warns(UserWarning, match=re.escape(f"from one step to the next ({name} does)")):
        make_trainer(frozen(), cache, epochs=8).fit(Recording(record), loader(Examples(4 * batches, 5, 5)))
