"""One row of the sweep: a model is built, run and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from sweep import checks, stated_orders
from sweep.block_counts import compare
from sweep.known.block_counts import COARSER
from torch import nn

from lightning_freeze.layers import LayerStack

#: Parameters (not bytes) above which a model is not given real weights.
LARGEST = 120_000_000


@dataclass
class Row:
    """What was found out about one class.

    Attributes:
        library: Where the class comes from.
        kind: Model type or family.
        name: Name of the class.
        outcome: ``"pass"``, ``"coarser"``, ``"said"``, ``"not run"``, ``"not built"`` or ``"fail"``.
        reason: Why it is not a pass, in one line.
        notes: What is true of the model and worth saying, though nothing fails.
        blocks: Number of blocks, repeats counted.
        expected: Number of blocks by source.
        layers: Short form of the stack.
        ran: Share of the layers with parameters that ran in the forward pass.
        parameters: Number of parameters.
        milliseconds: Time that finding the layers took.
        seconds: Time for the whole row.
        pid: The process that made it.
    """

    library: str
    kind: str
    name: str
    outcome: str = ""
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    blocks: int = 0
    expected: dict[str, Any] = field(default_factory=dict)
    layers: str = ""
    ran: str = ""
    parameters: int = 0
    milliseconds: float = 0.0
    seconds: float = 0.0
    pid: int = 0

    def data(self) -> dict[str, Any]:
        """Plain data for a JSON line."""
        return asdict(self)


def short(error: BaseException) -> str:
    """An error on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:220]


def judge(row: Row, module: nn.Module, runs: Iterable[tuple[str, Any]], expected: dict[str, Any]) -> None:
    """Fill in a row: structure first, then, with the first inputs that reach most of the model, order and gradients."""
    try:
        start = time.perf_counter()
        stack = LayerStack(module)
        row.milliseconds = round(1000 * (time.perf_counter() - start), 1)
    except Exception as error:
        row.outcome, row.reason = "fail", f"no layers: {short(error)}"
        return
    row.layers = repr(stack)
    row.notes += stack.describe().splitlines()[1:]
    row.blocks = sum(layer.repeats for layer in stack.blocks)
    row.expected = expected
    row.parameters = sum(p.numel() for p in module.parameters())
    problem = checks.partition(stack)
    if problem:
        row.outcome, row.reason = "fail", f"(a) {problem}"
        return
    counted = _count(row, stack)
    inputs, reason, uses = choose(stack, runs, row)
    if inputs is None:
        row.outcome, row.reason = ("fail", counted) if counted.startswith("(c)") else ("not run", reason)
        return
    problem, said = _dynamic(row, stack, inputs, *uses)
    if problem:
        row.outcome, row.reason = "fail", problem
    elif counted.startswith("(c)"):
        row.outcome, row.reason = "fail", counted
    elif said:
        row.outcome, row.reason = "said", "; ".join(filter(None, (said, counted)))
    elif counted:
        row.outcome, row.reason = "coarser", counted
    else:
        row.outcome = "pass"


def _count(row: Row, stack: LayerStack) -> str:
    """(c) the number of blocks; a coarser answer is told, a finer one fails."""
    towers = {name: sum(layer.repeats for layer in layers) for name, layers in stack.towers.items()}
    verdict, text = compare(towers or {"": row.blocks}, row.expected)
    if not verdict and text:
        row.notes.append(text)
    if verdict == "finer" and row.library in {"timm", "torchvision"}:
        # Their tables group parameters for learning rates: a finer answer in the right order is as good.
        row.notes.append(text)
        return ""
    if verdict == "coarser" and row.name in COARSER:
        text += f": {COARSER[row.name]}"
    return f"(c) {text}" if verdict == "finer" else text if verdict else ""


def choose(stack: LayerStack, runs: Iterable[tuple[str, Any]], row: Row) -> tuple[Any, str, Any]:
    """The first inputs with which the model runs and most of its layers do, and what ran then."""
    best: Any = None
    uses: Any = ((), ())
    most, reason = -1, "no inputs known"
    stack.module.eval()
    wanted = sum(any(True for _ in layer.parameters()) for layer in stack)
    for label, inputs in runs:
        try:
            ran, used = checks.executed(stack, inputs)
        except Exception as error:
            reason = reason if "Error" in reason else f"{label}: {short(error)}"
            continue
        # A parameter of the model itself is used by no module of its layer.
        seen = {layer.name for layer in stack if not set(used).isdisjoint(map(id, layer.parameters()))}
        if len(seen.union(ran)) > most:
            best, most, uses = inputs, len(seen.union(ran)), (ran, used)
            row.ran = f"{most}/{wanted}"
        if most == wanted:
            break
    return best, reason, uses


def _dynamic(row: Row, stack: LayerStack, inputs: Any, ran: list[str], used: list[int]) -> tuple[str, str]:
    """What fails in a run of the model, and what the stack itself says of an order that does not hold in every pass."""
    names: list[str] = []
    said = ""
    problem = checks.order(stack, ran)
    if problem:
        names, said = stated_orders.turned(stack, ran)
        problem = checks.order(stack, ran, names) if said else problem
    apart, sentence = stated_orders.fed_later(stack)
    excused = False
    if not problem:
        problem = checks.placement(stack, used, names)
        excused = bool(problem and apart and not checks.placement(stack, used, names, apart))
    if problem and not excused:
        return f"(b) {problem}", said
    problem, also = _backward(row, stack, inputs, names, apart)
    return problem, "; ".join(filter(None, (said, sentence if excused or also else "")))


def _backward(
    row: Row, stack: LayerStack, inputs: Any, names: Sequence[str], apart: Collection[int]
) -> tuple[str, bool]:
    given = {id(p): p.requires_grad for p in stack.module.parameters()}
    stack.module.train()
    try:
        problem, leak, excused = checks.gradient(stack, inputs, given, names, apart)
    except Exception as error:
        stack.module.eval()
        try:
            for p in stack.module.parameters():
                p.requires_grad_(given[id(p)])
            problem, leak, excused = checks.gradient(stack, inputs, given, names, apart)
            row.notes.append(f"backward pass in eval mode, in train mode: {short(error)}")
        except Exception as other:
            row.notes.append(f"no backward pass: {short(other)}; in train mode: {short(error)}")
            return "", False
    if problem:
        return f"(d) {problem}", False
    if "parameter" in leak and "is fed by parameter" in leak:
        return f"(d) {leak}", False
    if leak:
        row.notes.append(leak)
    return "", excused


Build = Callable[[], nn.Module]


def parameters_of(build: Build) -> int:
    """Number of parameters, without making any."""
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())
