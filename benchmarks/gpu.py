"""Speed, memory and correctness on one GPU in bfloat16, within ten minutes.

    bash benchmarks/gpu.sh                        what docs/performance.md wants of a card
    python benchmarks/gpu.py --quick --device cpu  small models on the CPU, to try the script

Each contender trains a new model through ``Trainer.fit`` for two epochs over the same batches. The first epoch warms up
and fills the cache; steps and peak memory are those of the second one. The device is waited for after each step.
Contenders are left out, and named, once the time is over; on the CPU, those that compile are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.saved_results import Cell, Provenance, Table, add_option, save
from benchmarks.speed import quiet, say
from benchmarks.speedtest import truncated_models
from benchmarks.speedtest.contenders import RATE, Finetuned, loaders
from benchmarks.speedtest.subjects import Subject, bert, text, vit
from lightning_freeze import FrozenPrefixCache, LayerFreezing

FULL = "full fine-tuning"


@dataclass(frozen=True)
class Contender:
    """How a model is trained.

    Attributes:
        freezes: Whether the first layers are frozen.
        cache: Options of FrozenPrefixCache; ``None`` for no cache.
        fused: Whether AdamW is the fused one.
        compiles: Whether the model is compiled.
    """

    freezes: bool = True
    cache: dict[str, Any] | None = None
    fused: bool = False
    compiles: bool = False


CONTENDERS: dict[str, Contender] = {
    FULL: Contender(freezes=False),
    "LayerFreezing": Contender(),
    "+ cache": Contender(cache={}),
    "+ cache, accelerator tier": Contender(cache={"max_accelerator_memory": "8GiB"}),
    "+ cache, accelerator tier, fused AdamW": Contender(cache={"max_accelerator_memory": "8GiB"}, fused=True),
    "full fine-tuning, fused AdamW": Contender(freezes=False, fused=True),
    "full fine-tuning, compiled": Contender(freezes=False, compiles=True),
    "LayerFreezing, compiled": Contender(compiles=True),
}


class Tuned(Finetuned):
    """The module of the other benchmarks, with the fused AdamW on request."""

    def __init__(self, model: nn.Module, fused: bool) -> None:
        super().__init__(model)
        self._fused = fused

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=RATE, fused=True if self._fused else None)


class Meter(Callback):
    """Times the steps of the last epoch, and measures the peak of memory in it.

    Attributes:
        seconds: Seconds of each step.
        peak: Bytes; 0 on the CPU.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak = 0
        self._last = 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.seconds.clear()
        if module.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._last = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def llama(
    frozen: int, blocks: int = 16, width: int = 2048, length: int = 256, words: int = 32000, **run: Any
) -> Subject:
    """A language model of one billion parameters, of random weights."""
    config = transformers.LlamaConfig(
        vocab_size=words,
        num_hidden_layers=blocks,
        hidden_size=width,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
        intermediate_size=4 * width,
    )

    def build() -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = transformers.LlamaForCausalLM(config)
        return model

    def cut(model: nn.Module) -> truncated_models.Cut:
        raise NotImplementedError("no model is cut by hand here")

    title = f"{'Llama, 1B' if width == 2048 else 'small Llama'}, {frozen} of {blocks} blocks frozen"
    return Subject(title, build, text(length, words, None), f"embeddings,:{frozen}", cut, **run)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "bert": lambda: bert(9, batch_size=32, batches=20, epochs=2),
    "vit": lambda: vit(9, batch_size=64, batches=20, epochs=2),
    "llama": lambda: llama(8, batch_size=4, batches=20, epochs=2),
}
_SMALL: dict[str, Any] = {"batch_size": 4, "batches": 3, "epochs": 2}
QUICK: dict[str, Callable[[], Subject]] = {
    "bert": lambda: bert(3, blocks=4, width=128, length=32, words=1000, **_SMALL),
    "vit": lambda: vit(3, blocks=4, width=128, size=32, **_SMALL),
    "llama": lambda: llama(2, blocks=4, width=128, length=32, words=1000, **_SMALL),
}


def run(subject: Subject, contender: Contender, device: str) -> tuple[Meter, dict[str, Tensor]]:
    """Train once; returns what was measured, and the weights on the CPU."""
    module, meter = Tuned(subject.build(), contender.fused), Meter()
    if contender.compiles:
        module.model.compile()
    callbacks: list[Callback] = [meter]
    if contender.freezes:
        callbacks.insert(0, LayerFreezing(subject.freeze, verbose=False))
    if contender.cache is not None:
        callbacks.insert(1, FrozenPrefixCache(verbose=False, **contender.cache))
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        precision="bf16-mixed",
        max_epochs=subject.epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loaders(subject)[0])
    weights = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    del trainer, module
    if device == "cuda":
        torch.cuda.empty_cache()
    return meter, weights


def measured(subject: Subject, device: str, ends: float) -> Table:
    """The table of one model; contenders that there is no time for are named below it."""
    rows: dict[str, dict[str, Cell]] = {}
    uncached: dict[str, Tensor] = {}
    notes: list[str] = []
    left_out: list[str] = []
    base = 0.0
    for name, contender in CONTENDERS.items():
        if device == "cpu" and contender.compiles:
            continue
        if time.monotonic() > ends:
            left_out.append(name)
            continue
        meter, weights = run(subject, contender, device)
        step = statistics.median(meter.seconds)
        base = base or step
        rows[name] = {
            "a step, ms": 1000 * step,
            "times as fast": base / step,
            "peak memory, MiB": meter.peak / 2**20,
        }
        say(f"{subject.title}: {name}: {rows[name]}")
        if contender == Contender():
            uncached = weights
        elif uncached and contender.cache is not None and not contender.fused:
            notes.append(same_weights(uncached, weights, name))
    if left_out:
        notes.append(f"not run, for lack of time: {', '.join(left_out)}")
    about = (
        f"bf16-mixed, {device}, batches of {subject.batch_size}, {subject.batches} in an epoch; medians of an epoch."
    )
    return Table(subject.title, rows, about, notes)


def same_weights(expected: dict[str, Tensor], found: dict[str, Tensor], name: str) -> str:
    """Whether a cached run ends with the weights of the run without the cache."""
    if all(torch.equal(expected[key], found[key]) for key in expected):
        return f"{name}: the same weights as without the cache, bit for bit"
    largest = max(float((expected[key].float() - found[key].float()).abs().max()) for key in expected)
    return f"{name}: weights differ from those without the cache by {largest:.1e} at most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", help=f"{', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=9.0, help="no contender begins after that time")
    parser.add_argument("--quick", action="store_true", help="small models")
    add_option(parser)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; --device cpu --quick tries the script without one")
    made = Provenance.now()
    if options.device == "cuda":
        made = replace(made, machine={**made.machine, "gpu": torch.cuda.get_device_name()})
    quiet(torch.get_num_threads())
    known = QUICK if options.quick else SUBJECTS
    ends, tables = time.monotonic() + 60 * options.minutes, []
    for name in options.subjects or known:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
        tables.append(measured(known[name](), options.device, ends))
        print(tables[-1].markdown(), flush=True)
        if options.save:
            save("gpu-quick" if options.quick else "gpu", "On a GPU", tables, made, options.save)


if __name__ == "__main__":
    main()
