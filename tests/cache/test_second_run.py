"""With a ``cache_dir``, later runs and other ranks read what an earlier run has computed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from cached_fits import Counter, Plain, assert_same, both, loader, make_cache, make_trainer
from torch import nn

from lightning_freeze import LayerFreezing
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache
from lightning_freeze.errors import ConfigurationError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
}


def bert(**settings: Any) -> Any:
    torch.manual_seed(0)
    return tf.BertForSequenceClassification(tf.BertConfig(**{**SIZES, **settings}))


def first_block(module: Any) -> nn.Module:
    return module.model.bert.encoder.layer[0].intermediate.dense  # type: ignore[no-any-return]


def fit(folder: Path, model: Any = None, layers: str = "50%", **options: Any) -> tuple[list[int], Plain]:
    """How often the first block ran in each of the three batches of an epoch, and the module."""
    counter = Counter(first_block)
    module = Plain(model or bert())
    trainer = make_trainer(LayerFreezing(layers, verbose=False), make_cache(cache_dir=folder), counter, **options)
    trainer.fit(module, loader())
    return counter.calls, module


def test_second_run_is_fast_from_its_first_steps(tmp_path: Path) -> None:
    first, one = fit(tmp_path, epochs=2)
    assert all(first[:3])
    second, other = fit(tmp_path, epochs=2)
    # The first batch is checked.
    assert not any(second[1:])
    torch.testing.assert_close(dict(other.state_dict()), dict(one.state_dict()), rtol=0, atol=0)


def shifted_by(shift: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.relu(x + shift)


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "constant": (lambda x: torch.relu(x + 0.5), lambda x: torch.relu(x + 0.25)),
    "default": (lambda x, shift=0.5: torch.relu(x + shift), lambda x, shift=0.25: torch.relu(x + shift)),
    "enclosed": (shifted_by(0.5), shifted_by(0.25)),
    "name": (lambda x: torch.relu(x), lambda x: torch.tanh(x)),
}


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_that_differ_in_a_value_are_different_settings(tmp_path: Path, kind: str) -> None:
    def model(function: Callable[..., Any]) -> Any:
        made = bert()
        intermediate = made.bert.encoder.layer[0].intermediate
        del intermediate.intermediate_act_fn
        intermediate.intermediate_act_fn = function
        return made

    one, other = FUNCTIONS[kind]
    fit(tmp_path, model(one), epochs=2)
    again, _ = fit(tmp_path, model(one), epochs=2)
    assert not any(again[1:])
    calls, _ = fit(tmp_path, model(other), epochs=1)
    assert all(calls[:3])


@pytest.mark.fast_cases(2, "weights", "boundary")
@pytest.mark.parametrize("change", ["weights", "config", "dtype", "boundary"])
def test_what_was_computed_otherwise_is_not_read(tmp_path: Path, change: str) -> None:
    fit(tmp_path, epochs=2)
    model, layers, options = bert(), "50%", {}
    if change == "weights":
        with torch.no_grad():
            model.bert.encoder.layer[1].attention.output.LayerNorm.bias[3] += 1e-3
    elif change == "config":
        model = bert(layer_norm_eps=1e-3)
    elif change == "dtype":
        options = {"precision": "bf16-mixed"}
    else:
        layers = "25%"
    calls, _ = fit(tmp_path, model, layers, epochs=1, **options)
    assert all(calls)


def test_head_and_layers_above_do_not_count(tmp_path: Path) -> None:
    fit(tmp_path, epochs=2)
    torch.manual_seed(5)
    other = tf.BertForSequenceClassification(tf.BertConfig(**SIZES, num_labels=2))
    same = bert()
    other.bert.embeddings = same.bert.embeddings
    for number in range(2):
        other.bert.encoder.layer[number] = same.bert.encoder.layer[number]
    calls, _ = fit(tmp_path, other, epochs=1)
    assert not any(calls[2:])


def test_folder_run_equals_uncached(tmp_path: Path) -> None:
    for _ in range(2):
        cache = make_cache(cache_dir=tmp_path)
        plain, cached, _ = both(Plain(bert()), LayerFreezing("50%", verbose=False), cache=cache, validation=loader)
        assert_same(plain, cached)
    assert cache.hit_rate > 0.5


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(ConfigurationError, match=r"xxhash, which is not installed.*pip install xxhash"):
        make_trainer(FrozenPrefixCache()).fit(Plain(bert()), loader())


SCRIPT = """
import sys
import threading
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader, DistributedSampler
from cached_fits import Examples, Plain, collate, make_cache, make_trainer
from lightning_freeze import EpochTrigger, LayerFreezing, Phase, PhasedFineTuning
from test_second_run import bert
import os

out, shared = Path(sys.argv[2]), sys.argv[3] == "shared"


class Halves(Plain):
    def train_dataloader(self):
        data = Examples(24)
        # Every epoch distributes the samples again.
        sampler = DistributedSampler(data, 2, int(os.environ["RANK"]), shuffle=True, seed=1)
        return DataLoader(data, 2, sampler=sampler, collate_fn=collate)


for name in ("plain", "cached"):
    seed_everything(3, verbose=False)
    phases = [Phase("2:,head", EpochTrigger(3)), Phase("1:,head")]
    cache = make_cache(cache_dir=out / "store" if shared else None)
    module = Halves(bert())
    callbacks = [PhasedFineTuning(phases, verbose=False), *([cache] if name == "cached" else [])]
    trainer = make_trainer(
        *callbacks, epochs=6, strategy="ddp", devices=2, use_distributed_sampler=False
    )
    trainer.fit(module)
    saved = {"weights": module.state_dict(), "losses": module.losses, "rate": cache.hit_rate, "off": cache.reasons}
    torch.save(saved, out / f"{name}{trainer.global_rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["own", "shared"])
def test_ranks(tmp_path: Path, where: str) -> None:
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ranks = []
    for rank in "01":
        names = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
        environment = {**os.environ, **names, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path), where]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    try:
        for process in ranks:
            said, _ = process.communicate(timeout=120)
            assert process.returncode == 0, said.decode()[-3000:]
    finally:
        for process in ranks:
            process.kill()
    results = {name: torch.load(tmp_path / f"{name}.pt") for name in ("plain0", "plain1", "cached0", "cached1")}
    for rank in "01":
        cached, plain = results[f"cached{rank}"], results[f"plain{rank}"]
        assert not cached["off"]
        torch.testing.assert_close(cached["weights"], plain["weights"], rtol=1e-4, atol=1e-6)
        assert cached["rate"] > (0.5 if where == "shared" else 0.2)
    assert all(torch.equal(a, results["cached1"]["weights"][n]) for n, a in results["cached0"]["weights"].items())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc on this system")
def test_no_file_stays_open_behind_a_run(tmp_path: Path) -> None:
    fit(tmp_path / "first", epochs=1)
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for number in range(3):
        fit(tmp_path / str(number), epochs=1)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
