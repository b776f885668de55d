"""``torch.compile`` before and during a fit: the right gradients in each phase, and no silent end of compiling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compatibility_toys import Classifier, batches
from lightning.pytorch import Callback
from torch import Tensor, nn
from toys import Recorder, Toy, loader, moved, trainer, weights
from transformers import BertConfig, BertForSequenceClassification

from lightning_freeze import DiscriminativeLR, EpochTrigger, GradualUnfreezing, LayerFreezing, Phase, PhasedFineTuning
from lightning_freeze.compatibility.compile import graphs_so_far, is_compiled

NAMES = ["embeddings", "0", "1", "head"]


class Quiet(Toy):
    """Logs nothing: dynamo cannot trace Lightning's ``self.log`` where a whole module is compiled."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])


def make(**options: Any) -> Quiet:
    torch.manual_seed(0)
    return Quiet(**options)


def compile_given(module: Quiet) -> Any:
    return torch.compile(module, backend="aot_eager")


def compile_method(module: Quiet) -> Any:
    module.compile(backend="aot_eager")
    return module


def compile_encoder(module: Quiet, backend: str = "aot_eager") -> Any:
    module.encoder = torch.compile(module.encoder, backend=backend)
    return module


def trace_encoder(module: Quiet) -> Any:
    return compile_encoder(module, backend="eager")


def compile_encoders_method(module: Quiet) -> Any:
    module.encoder.compile(backend="aot_eager")
    return module


def compile_blocks(module: Quiet, backend: str = "aot_eager") -> Any:
    for block in module.encoder.layers:
        block.compile(backend=backend)
    return module


def trace_blocks(module: Quiet) -> Any:
    return compile_blocks(module, backend="eager")


WAYS = [compile_given, compile_method, compile_encoder, compile_encoders_method, compile_blocks]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(compiled: Callable[[Quiet], Any], *callbacks: Callback, **options: Any) -> dict[str, Tensor]:
    module = make(dropout=options.pop("dropout", 0.0), depth=options.pop("depth", 2))
    trainer(*callbacks, **{"max_epochs": 3, **options}).fit(compiled(module), loader(2), loader(1, seed=2))
    return {name.replace("_orig_mod.", ""): value for name, value in weights(module).items()}


PHASES = [Phase("head", EpochTrigger(1)), Phase("1:,head", EpochTrigger(1)), Phase("embeddings,0,head")]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_phases_of_a_compiled_module_train_what_they_say(way: Callable[[Quiet], Any]) -> None:
    callback = PhasedFineTuning(PHASES, verbose=False)
    ours = run(way, callback, DiscriminativeLR(0.5, verbose=False))
    assert callback.stack.names == NAMES
    plain = run(lambda module: module, PhasedFineTuning(PHASES, verbose=False), DiscriminativeLR(0.5, verbose=False))
    assert [name for name in plain if not torch.allclose(plain[name], ours[name], rtol=0, atol=1e-12)] == []


@pytest.mark.slow
@pytest.mark.parametrize("way", [compile_encoder, compile_blocks])
def test_frozen_layers_of_a_compiled_module_stand_still(way: Callable[[Quiet], Any]) -> None:
    before = {name.replace("_orig_mod.", ""): value for name, value in weights(make()).items()}
    after = run(way, LayerFreezing("embeddings,:2", verbose=False), depth=4)
    assert moved(before, after) == {"2", "3", "head"}


@pytest.mark.slow
def test_dropout_of_frozen_layers_is_off_in_the_graph_too() -> None:
    class Dropouts(Callback):
        modes: list[list[bool]] = []  # noqa: RUF012

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.modes.append([m.training for m in pl_module.modules() if isinstance(m, nn.Dropout)])

    # Dropout of one half in frozen blocks only: with it the losses would differ from those without any.
    class Loss(Callback):
        def __init__(self) -> None:
            self.values: list[float] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            self.values.append(float(outputs["loss"]))

    noisy, still = Loss(), Loss()
    for loss, dropout in ((noisy, 0.5), (still, 0.0)):
        run(compile_encoder, LayerFreezing("embeddings,:", verbose=False), loss, Dropouts(), dropout=dropout)
    assert noisy.values == still.values
    assert Dropouts.modes[0] == [False] * 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["the encoder", "its blocks"])
def test_a_compiled_transformer_equals_the_same_run_uncompiled(how: str) -> None:
    def run_bert(compiles: bool) -> dict[str, Tensor]:
        sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
        dropless = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        torch.manual_seed(0)
        module = Classifier(
            BertForSequenceClassification(
                BertConfig(vocab_size=32, max_position_embeddings=16, **sizes, **dropless)  # type: ignore[arg-type]
            )
        ).double()
        parts = [module.model.bert] if how == "the encoder" else list(module.model.bert.encoder.layer)
        for part in parts if compiles else []:
            part.compile(backend="aot_eager")
        callback = GradualUnfreezing(verbose=False)
        trainer(callback, DiscriminativeLR(0.5, verbose=False), max_epochs=5).fit(module, batches())
        assert callback.stack.names == ["embeddings", "0", "1", "2", "head"]
        return weights(module)

    plain, ours = run_bert(False), run_bert(True)
    assert [name for name in plain if not torch.allclose(plain[name], ours[name], rtol=0, atol=1e-12)] == []


@pytest.mark.slow
def test_the_graphs_of_each_phase_are_counted_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def lines_of(way: Callable[[Quiet], Any]) -> list[str]:
        run(way, GradualUnfreezing(), max_epochs=5)
        return [line for line in capsys.readouterr().out.splitlines() if "torch.compile" in line]

    # Validation, without grad mode, makes one for each phase too.
    assert lines_of(trace_encoder) == [
        "torch.compile made 1 new graph for this phase, 3 in this run.",
        "torch.compile made 1 new graph for this phase, 5 in this run.",
        "torch.compile made 1 new graph for this phase, 7 in this run. Compiling each block by itself "
        "(block.compile()) makes a few for the whole run.",
    ]
    assert not [line for line in lines_of(trace_blocks) if "Compiling each block" in line]
    assert lines_of(lambda module: module) == []


def test_blocks_compiled_by_themselves_need_a_few_graphs_for_any_number_of_phases() -> None:
    before = graphs_so_far()
    run(trace_blocks, GradualUnfreezing(verbose=False), depth=9, max_epochs=12)
    # A block trains or not, its input requires grad or not, and validation has no grad mode.
    assert graphs_so_far() - before <= 5


@pytest.fixture
def dynamos_log() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("torch._dynamo")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.mark.slow
def test_more_phases_than_dynamos_limit_are_compiled_all_the_same(dynamos_log: list[str]) -> None:
    config = torch._dynamo.config
    limits = config.recompile_limit, config.accumulated_recompile_limit
    before = graphs_so_far()
    seen: list[int] = []

    class Limits(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(config.recompile_limit)

    callback = GradualUnfreezing(verbose=False)
    run(trace_encoder, callback, Limits(), depth=9, max_epochs=12)
    assert len(callback.plan) == 11 > limits[0]
    assert graphs_so_far() - before >= 11
    assert set(seen) == {limits[0] * 11}
    assert (config.recompile_limit, config.accumulated_recompile_limit) == limits
    assert not [message for message in dynamos_log if "recompile_limit" in message]


@pytest.mark.slow
def test_dynamo_does_give_up_where_its_limit_is_not_raised(
    dynamos_log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_freeze.compatibility.observer.raise_limits", lambda phases: lambda: None)
    before = graphs_so_far()
    run(trace_encoder, GradualUnfreezing(verbose=False), depth=9, max_epochs=12)
    assert graphs_so_far() - before == torch._dynamo.config.recompile_limit
    assert [message for message in dynamos_log if "recompile_limit" in message]


@pytest.mark.slow
def test_a_compiled_function_that_a_step_calls_is_given_the_graphs_it_needs(dynamos_log: list[str]) -> None:
    class Compiling(Quiet):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.classifier(run_encoder(self.encoder, batch[0])), batch[1])

    run_encoder = torch.compile(lambda encoder, tokens: encoder(tokens), backend="eager")
    torch.manual_seed(0)
    module, before = Compiling(depth=9), graphs_so_far()
    trainer(GradualUnfreezing(verbose=False), max_epochs=12).fit(module, loader(2), loader(1, seed=2))
    assert graphs_so_far() - before >= 11
    assert not [message for message in dynamos_log if "recompile_limit" in message]


def test_the_limits_are_given_back_after_an_exception() -> None:
    class Failing(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("boom")

    before = torch._dynamo.config.recompile_limit
    with pytest.raises(RuntimeError, match="boom"):
        run(compile_encoder, PhasedFineTuning(PHASES, verbose=False), Failing())
    assert torch._dynamo.config.recompile_limit == before


def test_each_way_of_compiling_is_noticed() -> None:
    assert not is_compiled(make())
    for way in (compile_method, compile_encoder, compile_encoders_method, compile_blocks):
        assert is_compiled(way(make()))
    seen = []

    class Looking(Recorder):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(is_compiled(pl_module))

    run(compile_given, Looking(), max_epochs=1)
    assert seen == [True]


def test_a_checkpoint_of_a_compiled_run_resumes_and_its_state_dict_keys_are_the_users(tmp_path: Any) -> None:
    class Saving(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "two.ckpt")

    def go(path: Any = None) -> Quiet:
        module = trace_encoder(make())
        keys = list(module.state_dict())
        trainer(PhasedFineTuning(PHASES, warmup_steps=3, verbose=False), *([] if path else [Saving()])).fit(
            module, loader(2), loader(1, seed=2), ckpt_path=path
        )
        assert list(module.state_dict()) == keys
        return module

    straight, resumed = go(), go(tmp_path / "two.ckpt")
    left, right = weights(resumed), weights(straight)
    assert all(torch.equal(left[name], right[name]) for name in left)
