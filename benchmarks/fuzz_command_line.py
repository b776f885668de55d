"""Wrong and odd input, by the thousand: command lines, config files and constructor calls.

Each command line runs in this process with `fast_dev_run` on a tiny model, or ends before that. It may succeed, or end
in one message with exit code 2; anything else is a finding, and so is success with what this script knows to be wrong.
Each constructor call may succeed, or raise ConfigurationError, or TypeError for an argument that does not exist.

    python benchmarks/fuzz_command_line.py [--seed 0] [--lines 1000] [--calls 3000]

Exits with code 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import lightning_freeze
from lightning_freeze.cli.command_line import main as command_line
from lightning_freeze.errors import ConfigurationError

BASE = [
    "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false", "--trainer.devices=1",
]  # fmt: skip
FIT = ["--model.encoder=./tiny", "--model.task=classification", "--data.data=rows.csv"]
CALLBACKS = ("LayerFreezing", "GradualUnfreezing", "PhasedFineTuning", "DiscriminativeLR", "FrozenPrefixCache",
             "FreezeReport")  # fmt: skip
# Never a value that anybody means, whatever the option.
NONSENSE = (
    "", " ", "-", "--", "~", "null", "None", "nan", "-inf", "1e999", "-1", "0", "1.5", "9" * 30, "true", "yes", "[",
    "]", "{", "}", "[]", "{}", "[[]]", "{a: {b: c}}", "4:8", "&a *a", "*", "!!python/name:os.system", "%s", "\\", "'",
    '"', "\u202e", "\ud83d", "é" * 5, "x" * 3000, "../../..", "/dev/null", "/etc", ".", "tiny", "rows.csv",
    "os.system", "torch.nn.Linear", "EpochTrigger(1)", "${x}", "$(id)", "a=b", "a,b", "\n", "\t", "#", "@", "|", ">",
)  # fmt: skip
OPTIONS = (
    "data.data", "data.text", "data.label", "data.labels", "data.split", "data.batch_size", "data.max_length",
    "data.num_workers", "data.bucket_batches", "data.empty_text", "data.seed", "data.tokenizer", "data.task",
    "data.group_column", "data.train", "data.text_pair", "model.encoder", "model.task", "model.pooling",
    "model.dropout", "model.pretrained", "model.optimizer", "model.optimizer.lr", "model.lr_scheduler",
    "model.warmup_ratio", "model.lr_scheduler_interval", "model.hidden_size", "model.labels", "model.model_kwargs",
    "model.generate_kwargs",
    "trainer.max_epochs", "trainer.max_steps", "trainer.precision", "trainer.strategy", "trainer.accelerator",
    "trainer.callbacks", "trainer.logger", "trainer.profiler", "trainer.gradient_clip_val", "trainer.benchmark",
    "trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.val_check_interval", "trainer.plugins",
    "trainer.log_every_n_steps", "trainer.max_time", "trainer.default_root_dir", "trainer.gradient_clip_algorithm",
    "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps", "trainer.deterministic", "seed_everything",
    "ckpt_path", "config", "print_config", "weights_only",
)  # fmt: skip
# What is wrong and must be refused.
KNOWN_WRONG = (
    ["--data.batch_size=0"], ["--data.batch_size=2.5"], ["--data.split=[0.9, 0.9, 0.9]"], ["--data.text=nope"],
    ["--data.max_length=-3"], ["--data.num_workers=-1"], ["--data.labels=[no, yes]"], ["--data.labels=[a, a]"],
    ["--data.num_workers=99999"],
    ["--model.pooling=max"], ["--model.dropout=1.5"], ["--model.warmup_ratio=-0.1"], ["--model.task=guess"],
    ["--model.optimizer.lr=-1"], ["--model.optimizer=Adm"], ["--model.optimizer.lr=0.1", "--model.optimizer=Adam"],
    ["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=1", "--model.warmup_ratio=0.3"],
    ["--trainer.gradient_clip_val=-1"], ["--trainer.accumulate_grad_batches=0"], ["--trainer.strategy=dpp"],
    ["--trainer.max_epochs=-5"], ["--trainer.precision=15"], ["--seed_everything=-7"], ["--ckpt_path=nope.ckpt"],
    ["--trainer.callbacks+=LayerFreezing"], ["--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=9"],
    ["--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=embedings"],
    ["--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=all"],
    ["--trainer.callbacks+=LayerFreezing", "--trainer.callbacks.layers=0", "--trainer.callbacks.frozen_eval=maybe"],
    ["--trainer.callbacks+=GradualUnfreezing", "--trainer.callbacks.layers_per_phase=0"],
    ["--trainer.callbacks+=GradualUnfreezing", "--trainer.callbacks.monitor=val_loss"],
    ["--trainer.callbacks+=GradualUnfreezing", "--trainer.callbacks.trigger=EpochTrigger(1)"],
    ["--trainer.callbacks+=DiscriminativeLR", "--trainer.callbacks.decay=0"],
    ["--trainer.callbacks+=DiscriminativeLR", "--trainer.callbacks.decay=nan"],
    ["--trainer.callbacks+=FrozenPrefixCache", "--trainer.callbacks.max_memory=4 Gigs"],
    ["--trainer.callbacks+=FrozenPrefixCache", "--trainer.callbacks.dtype=int8"],
    ["--trainer.callbacks+=FrozenPrefixCache", "--trainer.callbacks.max_disk=1GiB"],
    ["--trainer.callbacks+=EarlyStopping"], ["--trainer.callbacks+=lightning_freeze.GradualUnfrezing"],
    ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=x", "--trainer.callbacks.mode=mn"],
    ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.train_time_interval={hours: 1}"],
    ["--model.optimizer.lr=0.1", "--model.optimizer=AdamW"], ["--model.optimizer=schedulefree.AdamWScheduleFree"],
    ["--model.optimizer={class_path: AdamW, lr: 0.1}"], ["--model.model_kwargs={quantization_config: x}"],
    ["--ckpt_path=."], ["--ckpt_path=registry:x"], ["--ckpt_path=rows.csv"], ["--data.data=tiny"],
    ["--data.data=/dev/zero"], ["--data.labels=[]"], ["--data.label=text"], ["--data.batch_size=" + "9" * 20],
    ["--trainer.logger=TensorBoardLoger"], ["--config={trainer: 3}"],
)  # fmt: skip
WRONG_YAML = (
    "trainer: {callbacks: [{class_path: LayerFreezing, init_args: {layers: on}}]}\n",
    "trainer: {callbacks: [{class_path: LayerFreezing, init_args: {layers: 1.5}}]}\n",
    "trainer: {callbacks: [{class_path: LayerFreezing, init_args: {layers: '0', layer: '1'}}]}\n",
    "trainer: {max_epochs: 1, max_epochs: 2}\n", "data: {labels: [no, yes]}\n", "data: {batch_size: 4:8}\n",
    "model: [encoder]\n", "trainer:\n\tmax_epochs: 1\n", "{", "[", "a: b: c", "? x", "trainer: *x\n", "unknown: 1\n",
    "trainer: 3\n", "model: [1]\n", "data: {class_path: torch.nn.Linear}\n", "", "# nothing\n", "---\n---\n",
    "trainer: {max_epoch: 1}\n", "trainer: {callbacks: [null]}\n", "trainer: {callbacks: [{class_path: 3}]}\n",
    "trainer: {callbacks: [{GradualUnfreezing: {}}]}\n", "trainer: {callbacks: [{class_path: null}]}\n",
    "trainer: {callbacks: [{class_path: GradualUnfreezing, init_arg: {}}]}\n", "config: odd.yaml\n", "1: 2\n",
    "trainer: {callbacks: [{class_path: lightning_freze.GradualUnfreezing}]}\n", "model: {encoder: null}\n",
    "model: {optimizer: {class_path: AdamW, lr: 0.1}}\n", "x: &a [1]\ntrainer: {<<: *a}\n", "trainer: !x 3\n",
    "trainer: {callbacks: [{class_path: NoSuchCallback}]}\n", "trainer: {callbacks: [3]}\n", "\x00", "3", "text",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**30, 0.5, -0.5, float("nan"), float("inf"), "", " ", "False", "true", "1",
    "head", "all", "0", "val_loss", "min", "max", "4GiB", "bfloat16", "classification", "mean", "error", "rows.csv",
    "x" * 999, b"", b"1", [], [1], ["a"], ("a", "b"), {}, {"head": 2.0}, {1: 2}, {"a": "b"}, set(), range(3), object(),
    len, int, Exception, Path("rows.csv"), torch.zeros(2), torch.nn.Linear(1, 1),
    complex(1, 1), [None], [[]], (0.8, 0.1, 0.1), (1, 2, 3),
    lightning_freeze.EpochTrigger(1), lightning_freeze.Phase("all"), [lightning_freeze.Phase("all")],
    [lightning_freeze.EpochTrigger(1)],
)  # fmt: skip
CLASSES = (
    lightning_freeze.AnyTrigger, lightning_freeze.DiscriminativeLR, lightning_freeze.EpochTrigger,
    lightning_freeze.FreezeReport, lightning_freeze.FrozenPrefixCache, lightning_freeze.GradualUnfreezing,
    lightning_freeze.LayerFreezing,
    lightning_freeze.Phase, lightning_freeze.PhasedFineTuning, lightning_freeze.PlateauTrigger,
    lightning_freeze.StepTrigger, lightning_freeze.TextDataModule, lightning_freeze.TransformerModule,
)  # fmt: skip
# Arguments by which a constructor must not be content with a value of another type.
STRICT = {bool: (0, 1, "False", "yes", None), int: (True, 1.0, "1", None), float: (True, "0.5", None)}


@dataclass
class Findings:
    """What should not have happened.

    Attributes:
        cases: How many inputs were tried.
        found: The input and what it did.
    """

    cases: int = 0
    found: list[str] = field(default_factory=list)

    def check(self, what: str, outcome: str | None) -> None:
        """Count a case; ``outcome`` is what is wrong with it, ``None`` if nothing is."""
        self.cases += 1
        if outcome is not None:
            self.found.append(f"{what}\n    {outcome}")


def main() -> None:
    """Fuzz, and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, default=1000, help="how many command lines")
    parser.add_argument("--calls", type=int, default=3000, help="how many constructor calls")
    options = parser.parse_args()
    start, findings = time.perf_counter(), fuzz(options.seed, options.lines, options.calls)
    for text in findings.found:
        print(text)
    print(f"{findings.cases:,} inputs in {time.perf_counter() - start:.0f} s: {len(findings.found)} findings")
    sys.exit(bool(findings.found))


def fuzz(seed: int, lines: int, calls: int) -> Findings:
    """Try wrong and odd input in a folder of its own.

    Args:
        seed: Decides what is tried.
        lines: How many command lines.
        calls: How many constructor calls.
    """
    findings, order, before = Findings(), random.Random(seed), Path.cwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            prepare()
            for number in range(lines):
                args, must_fail = command(order, number)
                text = " ".join(map(ascii, args[1 + len(BASE) :])).replace("odd.yaml", f"odd.yaml of {read_odd()!r}")
                findings.check(text[:400], run(args, must_fail))
            for _ in range(calls):
                cls, arguments, must_fail = call(order)
                findings.check(f"{cls.__name__}({arguments!r})"[:300], construct(cls, arguments, must_fail))
        finally:
            os.chdir(before)
    return findings


def read_odd() -> str:
    """The last config file."""
    return Path("odd.yaml").read_text(encoding="utf-8") if Path("odd.yaml").exists() else ""


def prepare() -> None:
    """A tiny model and a data file in the current folder."""
    words = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film"))}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, model_max_length=16).save_pretrained("tiny")
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **size)).save_pretrained("tiny")
    rows = "".join(f"{word} film,{word}\n" for word in ("good", "bad") * 10)
    Path("rows.csv").write_text("text,label\n" + rows, encoding="utf-8")


def command(order: random.Random, number: int) -> tuple[list[str], bool]:
    """A command line, and whether it must be refused. One in twenty gets as far as the training batch."""
    kind = number % 5
    if kind == 0:
        return ["fit", *BASE, *FIT, *order.choice(KNOWN_WRONG)], True
    if kind == 1:
        Path("odd.yaml").write_text(order.choice(WRONG_YAML), encoding="utf-8")
        return ["fit", *BASE, *FIT, "--config=odd.yaml"], True
    if kind == 2:
        name = "".join(order.sample(order.choice(OPTIONS), 6)) if order.random() < 0.5 else order.choice(OPTIONS) + "x"
        return ["fit", *BASE, *FIT, f"--{name}={order.choice(NONSENSE)}"], True
    if kind == 3:
        callback = order.choice(CALLBACKS)
        parameters = list(inspect.signature(getattr(lightning_freeze, callback)).parameters)
        argument = f"--trainer.callbacks.{order.choice(parameters)}={order.choice(NONSENSE)}"
        # A missing file ends it before anything is trained.
        return ["fit", *BASE, *FIT, f"--trainer.callbacks+={callback}", argument, "--data.data=no.csv"], True
    option = f"--{order.choice(OPTIONS)}={order.choice(NONSENSE)}"
    verb = order.choice(("fit", "fit", "validate", "test", "predict"))
    stop = [] if number % 20 == 4 else ["--data.test=no.csv", "--data.val=no.csv", "--data.predict=no.csv"]
    return [verb, *BASE, *FIT, *stop, option], False


def run(args: list[str], must_fail: bool) -> str | None:
    """Run a command line; returns what is wrong with how it ended."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command_line(args)
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        return f"traceback: {''.join(traceback.format_exception(error))[-900:]}"
    message = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if "Traceback" in err.getvalue():
        return "a traceback on stderr"
    if code == 2 and (len(message) != 1 or len(message[0]) > 900):
        return f"no short message: {err.getvalue()[-600:]}"
    return "accepted in silence" if must_fail and code == 0 else None


def call(order: random.Random) -> tuple[type, dict[str, Any], bool]:
    """A constructor call, and whether it must be refused."""
    cls = order.choice(CLASSES)
    parameters = inspect.signature(cls).parameters
    needed = {name: RIGHT[name] for name, p in parameters.items() if p.default is p.empty and name in RIGHT}
    if order.random() < 0.05:
        return cls, {**needed, "no_such_argument": 1}, True
    name = order.choice(list(parameters))
    types = {"bool": bool, "int": int, "float": float}
    kind = types.get(str(parameters[name].annotation))
    if kind is not None and order.random() < 0.5:
        return cls, {**needed, name: order.choice(STRICT[kind])}, True
    return cls, {**needed, name: order.choice(VALUES)}, False


RIGHT: dict[str, Any] = {
    "triggers": [lightning_freeze.EpochTrigger(1)], "n": 1, "layers": "0", "train": "head", "monitor": "val_loss",
    "phases": [lightning_freeze.Phase("all")], "encoder": torch.nn.Linear(2, 2),
}  # fmt: skip


def construct(cls: Callable[..., Any], arguments: dict[str, Any], must_fail: bool) -> str | None:
    """Call a constructor; returns what is wrong with the outcome."""
    try:
        made = cls(**arguments)
        if isinstance(made, lightning_freeze.Phase):  # checked by the callback that takes it
            lightning_freeze.PhasedFineTuning([made])
    except ConfigurationError as error:
        return None if str(error).strip() else "an empty message"
    except TypeError as error:
        return None if "unexpected keyword argument" in str(error) else f"traceback: {traceback.format_exc()[-700:]}"
    except Exception:
        return f"traceback: {traceback.format_exc()[-700:]}"
    return "accepted in silence" if must_fail else None


if __name__ == "__main__":
    main()
