"""Questions about single expressions of a module's code."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Reading these from a child does not run it.
_METADATA = frozenset(
    {"dtype", "device", "shape", "config", "is_sparse", "requires_grad", "training", "in_features"}
) | {
    *("get_submodule", "get_input_embeddings", "get_output_embeddings", "keys", "parameters", "named_parameters"),
    *("buffers", "state_dict", "train", "eval", "requires_grad_"),
}
#: Modules whose code is not read: it runs no layer, or in a way that is the same for all.
FRAMEWORK = (
    "torch.nn.modules.module",
    "lightning",
    "pytorch_lightning",
    "transformers.modeling_utils",
    "transformers.generation",
    "transformers.integrations",
)
WEIGHTS = frozenset({"weight", "bias", "data"})


def names_of(target: ast.expr) -> list[str]:
    """The names that an assignment binds."""
    parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    return [part.id for part in parts if isinstance(part, ast.Name)]


def assigned(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that statements or loop targets give a value."""
    return {name for node in nodes for name in _assigned_in(node)}


@lru_cache(maxsize=4096)
def _assigned_in(node: ast.AST) -> frozenset[str]:
    inside = (part for part in ast.walk(node) if isinstance(part, ast.Name))
    return frozenset(part.id for part in inside if isinstance(part.ctx, ast.Store))


def branches_after_first_iteration(loop: ast.For) -> list[tuple[list[ast.stmt], list[ast.stmt]]]:
    """For each branch on the first iteration of a loop: the later branch, and that of the first iteration."""
    found = []
    for place, node in enumerate(loop.body):
        test = node.test if isinstance(node, ast.If) else None
        if not (isinstance(node, ast.If) and isinstance(test, ast.Compare) and isinstance(test.left, ast.Name)):
            continue
        against, kind = test.comparators[0], test.ops[0]
        is_none = isinstance(against, ast.Constant) and against.value is None and isinstance(kind, ast.Is | ast.IsNot)
        if is_none and test.left.id in assigned(loop.body[place + 1 :]):
            branches = (node.orelse, node.body)
            found.append(branches if isinstance(kind, ast.Is) else branches[::-1])
    return found


def merge_orders(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Merge two orders: steps that only the second has are inserted before the step that follows them there."""
    merged = list(first)
    last: list[str] = []
    following = ""
    for step in reversed(second):
        if step not in merged and not following:
            last.insert(0, step)
        elif step not in merged:
            merged.insert(merged.index(following), step)
            following = step
        elif not following or merged.index(step) < merged.index(following):
            following = step
    return merged + last


def global_names_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The global names that a function sees; for a decorated function those of the original one."""
    return getattr(inspect.unwrap(function), "__globals__", {})


def entry_methods(cls: type) -> list[str]:
    """Methods where a run begins: a LightningModule's training step, else ``forward``."""
    steps = [name for name in ("training_step", "validation_step", "predict_step") if hasattr(cls, name)]
    return [*steps[:1], "forward", *steps[1:]]


def running(test: ast.expr) -> list[ast.expr]:
    """The test in a list, if evaluating it calls something."""
    return [test] if any(isinstance(part, ast.Call) for part in ast.walk(test)) else []


def ends_in_return(body: Sequence[ast.stmt]) -> bool:
    """Whether statements end in a ``return``."""
    last = body[-1] if body else None
    return ends_in_return(last.body) if isinstance(last, ast.With) else isinstance(last, ast.Return)


def is_metadata(key: str) -> bool:
    """Whether an attribute reads or sets a property of a child, rather than running it."""
    return key in _METADATA or key.startswith(("set_", "reset_", "enable_", "disable_"))


def is_weight(node: ast.expr) -> bool:
    """Whether an expression is the weight of something."""
    return isinstance(node, ast.Attribute) and node.attr in WEIGHTS


def is_super(node: ast.expr) -> bool:
    """Whether an expression is a method of ``super()``."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "super"
    )


def is_getattr(node: ast.Call) -> bool:
    """Whether a call is ``getattr`` with a name."""
    return isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) >= 2


def uses_parts_of_elements(node: ast.For) -> bool:
    """Whether a loop uses names (``getattr``) or single parts of its elements."""
    targets = {s.id for s in ast.walk(node.target) if isinstance(s, ast.Name)}
    inside = [s for part in node.body for s in ast.walk(part)]
    parts = (s for s in inside if isinstance(s, ast.Attribute) and isinstance(s.value, ast.Name))
    return any(part.value.id in targets for part in parts) or any(  # type: ignore[attr-defined]
        isinstance(s, ast.Call) and is_getattr(s) for s in inside
    )


def only_reads_attributes(target: ast.expr, over: ast.expr, body: Sequence[ast.AST]) -> bool:
    """Whether a loop only reads or sets attributes of its elements (``[b.training for b in blocks]``)."""
    if isinstance(target, ast.Tuple) and isinstance(over, ast.Call):
        called = over.func.attr if isinstance(over.func, ast.Attribute) else getattr(over.func, "id", "")
        if called.startswith(("enumerate", "items", "named_")):  # the first target is a number or a name
            target = ast.Tuple(target.elts[1:])
    names = {s.id for s in ast.walk(target) if isinstance(s, ast.Name)}
    inside = [s for part in body for s in ast.walk(part)]
    above = {id(child): s for s in inside for child in ast.iter_child_nodes(s)}
    uses = [s for s in inside if isinstance(s, ast.Name) and s.id in names]
    return bool(uses) and not any(_runs(use, above) for use in uses)


def _runs(use: ast.AST, above: Mapping[int, ast.AST]) -> bool:
    last = ""
    while isinstance(outer := above.get(id(use)), ast.Attribute):
        use, last = outer, outer.attr
    is_passed_on = isinstance(outer, ast.Call | ast.keyword | ast.Subscript | ast.Starred | ast.BinOp)
    return not last or (is_passed_on and not is_metadata(last) and not _is_report(outer))


def _is_report(call: ast.AST | None) -> bool:
    function = call.func if isinstance(call, ast.Call) else None
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name.startswith(("log", "print"))


@lru_cache(maxsize=1024)
def parse(function: Callable[..., Any]) -> Function | None:
    """The syntax tree of a function, ``None`` if its source cannot be read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError, ValueError):
        return None
    return tree if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef) else None
