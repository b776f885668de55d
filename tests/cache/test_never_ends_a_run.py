"""Nothing that the cache cannot handle, or that does not pay, ends a run: it gives a reason, and the run continues."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_fits import Examples, MemoryStore, Plain, freeze, loader, make_cache, make_trainer
from encoders import Classifier, Encoder, bert, check_equal, frozen
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_freeze.cache import execution, messages
from lightning_freeze.cache.prefix import layout


class Torchs(nn.Module):
    """torch's own encoder, with one mask for each sample and head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(100, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Any:
        return self.encoder(self.embeddings(input_ids), mask=mask)


class GivesMasks(Classifier):
    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        count, length = input_ids.shape
        mask = torch.zeros(count, 1, 1, length).masked_fill(attention_mask[:, None, None] == 0, -1e9)
        return self.encoder(input_ids, mask.expand(-1, 4, length, length).reshape(-1, length, length))


class NeedsSeveral(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embeddings(input_ids).squeeze()
        assert x.dim() == 3
        return self.run(x)[-1]


class OneShot(Encoder):
    context: Tensor | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        context, self.context = self.context, None
        return self.run(self.embeddings(input_ids) + context.mean() * 0)[-1]  # type: ignore[union-attr]


class GivesContext(Classifier):
    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        self.encoder.context = attention_mask.float()
        return self.encoder(input_ids)


class TakesGraph(Encoder):
    def forward(self, input_ids: Tensor, graph: Tensor) -> Tensor:  # type: ignore[override]
        x = self.embeddings(input_ids)
        return self.run(x + torch.sparse.mm(graph, x[:, 0])[:, None])[-1]


class GivesGraph(Classifier):
    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.encoder(input_ids, torch.eye(len(input_ids)).to_sparse())


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param(lambda: GivesMasks(Torchs()), "RuntimeError while .*: .*mask", id="mask of each head"),
        pytest.param(lambda: Classifier(NeedsSeveral()), "AssertionError while", id="no single sample"),
        pytest.param(lambda: GivesContext(OneShot()), "AttributeError while .*: 'NoneType'", id="one-shot attribute"),
        pytest.param(lambda: GivesGraph(TakesGraph()), "RuntimeError while its frozen layers", id="sparse"),
    ],
)
@pytest.mark.parametrize("validation", [None, loader], ids=["training", "validation too"])
def test_error_while_the_layers_are_looked_at(model: Any, reason: str, validation: Any) -> None:
    assert check_equal(Plain(model()), frozen(), validation=validation, reason=reason).hit_rate == 0


class TakesLengths(Encoder):
    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        x = self.embeddings(input_ids)
        mask = (torch.arange(x.shape[1])[None] < lengths[:, None])[..., None].float()
        x = x * mask
        for layer in self.layers:
            x = layer(x) * mask
        return x


class GivesLengths(Classifier):
    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.encoder(input_ids, attention_mask.sum(1))


@pytest.mark.parametrize(
    ("data", "shuffle", "reason"),
    [
        pytest.param(Examples(), False, None, id="never as many samples as positions"),
        pytest.param(Examples(12, 4, 4), False, "cannot be told apart by sample", id="always"),
        pytest.param(Examples(19, 3, 3), True, None, id="in the last batch"),
        pytest.param(Examples(11, 3, 3), True, None, id="in the last batch of two sizes"),
        pytest.param(Examples(13, 4, 5), True, None, id="in some"),
    ],
)
def test_lengths_that_could_be_positions(data: Examples, shuffle: bool, reason: str | None) -> None:
    module = Plain(GivesLengths(TakesLengths()))
    cache = check_equal(module, frozen(), data=lambda: loader(data, shuffle=shuffle), reason=reason, exact=not shuffle)
    assert (cache.hit_rate > 0) == (reason is None)


NEW_SETTING = """
import torch
from cached_fits import Plain
from encoders import bert, check_equal, frozen
import lightning_freeze.cache.prefix.break_even as worth
worth.SLOWER = 1e9
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert check_equal(Plain(bert()), frozen()).hit_rate > 0.5
"""


# In a process of its own, as torch cannot go back to the settings of before.
@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.slow
def test_precision_set_in_the_new_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NEW_SETTING], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_no_room_at_all_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    cache = check_equal(Plain(bert()), frozen(), cache=make_cache(verbose=True, max_memory=0))
    said = capsys.readouterr().out
    assert "there is no room for the hidden states of a batch" in said
    assert "times as fast" not in said
    assert cache.hit_rate == 0


class Slow(MemoryStore):
    """Takes long to read a full batch, but for the first few, which the cache looks at before it is used."""

    def __init__(self, quick: int) -> None:
        super().__init__()
        self.quick = quick

    def get(self, namespace: bytes, keys: Sequence[bytes]) -> list[Tensor | None]:
        rows = super().get(namespace, keys)
        if all(row is not None for row in rows):
            self.quick -= 1
            if self.quick < 0:
                time.sleep(0.1)
        return rows


@pytest.mark.slow
def test_store_that_turns_out_slow_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning_freeze.cache.prefix.break_even.SLOWER", 1.0)
    module = Plain(bert(hidden_size=64, intermediate_size=256))
    cache = make_cache(Slow(quick=3), verbose=True)
    check_equal(module, frozen(), cache=cache, epochs=6, reason="^reading the hidden states of a sample", warns=False)
    assert "not used for the model: reading the hidden states" in capsys.readouterr().out
    assert cache.hit_rate > 0.3


class Traces(Callback):
    """Exports the encoder at the end of each epoch, and compares it with the encoder itself."""

    def __init__(self) -> None:
        self.agrees: list[bool] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        encoder, data = pl_module.model.encoder, Examples(12, 5, 5)
        one, other = (torch.stack([data.rows[n] for n in rows]) for rows in ((0, 1, 2, 3), (4, 5, 6, 7)))
        with torch.no_grad():
            traced = torch.jit.trace(encoder, (one,), check_trace=False)
            expected = encoder.run(encoder.embeddings(other))[-1]
        self.agrees.append(torch.equal(traced(other), expected))


@pytest.mark.filterwarnings("ignore")
def test_export_in_the_middle_of_a_fit() -> None:
    traces, cache = Traces(), make_cache()
    trainer = make_trainer(frozen(), cache, traces)
    trainer.fit(Plain(Classifier(Encoder())), loader(Examples(12, 5, 5)))
    assert traces.agrees == [True] * 3
    assert cache.hit_rate > 0.5


class Rule(LightningModule):
    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return batch["input_ids"].sum(1)


def test_module_without_parameters() -> None:
    with pytest.warns(UserWarning, match="does nothing for Rule: it has no parameters"):
        found = make_trainer(make_cache()).predict(Rule(), loader())
    assert found


class FreezesMoreLater(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        bert = pl_module.model.bert
        pl_module.requires_grad_(True).train()
        freeze(bert.embeddings, *bert.encoder.layer[: 1 if trainer.current_epoch < 2 else 3])


@pytest.mark.slow
def test_nothing_stays_open_where_laying_out_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out = layout.lay_out

    def fails_above(rows: Any, *args: Any) -> Any:
        if "skip_from_lower" in {frame.function for frame in inspect.stack()}:
            raise torch.OutOfMemoryError("out of memory")
        return lay_out(rows, *args)

    monkeypatch.setattr(execution.layout, "lay_out", fails_above)
    module, cache = Plain(bert()), make_cache()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.05)  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="OutOfMemoryError while its frozen layers were looked at: out of memory"):
        make_trainer(FreezesMoreLater(), cache, epochs=4).fit(module, loader(Examples(12, 5, 5)))
    assert not [name for name, m in module.named_modules() if "forward" in vars(m)]


class GoesPast(LightningModule):
    """Runs the layers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        freeze(self.encoder)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.encoder.run(self.encoder.embeddings(batch["input_ids"]))[-1]


def test_prediction_that_goes_past_the_entry_says_so() -> None:
    cache = make_cache()
    with pytest.warns(UserWarning, match="is not what the step calls"):
        make_trainer(cache).predict(GoesPast(), loader())


def test_prediction_says_what_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    module, cache = Plain(bert()), make_cache(verbose=True)
    freeze(module.model.bert)
    trainer = make_trainer(cache)
    for _ in range(2):
        trainer.predict(module, loader())
    assert "12 of 12 samples read back (100%)" in capsys.readouterr().out


@pytest.mark.parametrize("verbose", [True, False])
def test_operations_are_counted_once_and_only_to_be_told(verbose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Counted(messages.HeadFlops):
        def __init__(self, *args: Any) -> None:
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(messages, "HeadFlops", Counted)
    make_trainer(frozen(), make_cache(verbose=verbose), epochs=3).fit(Plain(bert()), loader())
    assert len(made) == verbose
