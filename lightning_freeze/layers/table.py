"""Shows a layer stack as a table, or in a few lines of text."""

from __future__ import annotations

from rich.table import Table

from lightning_freeze.layers.analysis.backward_extent import backward_leaks
from lightning_freeze.layers.analysis.randomness import active_random_sources, random_source_lines
from lightning_freeze.layers.layer import Layer, Layers
from lightning_freeze.layers.wording import abbreviate, runs

#: Up to this length, a name stays on one line.
_LONGEST_NAME = 28


def layers_table(stack: Layers) -> Table:
    """The stack as a table for a terminal: layer, modules, parameters, share of all parameters.

    Networks that take no part in training have no share.

    Args:
        stack: The layers to show.

    Returns:
        A table that stays readable at 80 columns; its caption holds the notes of :func:`describe`.
    """
    counted = sum(layer.numel for layer in stack if not layer.is_bystander)
    total = counted + sum(p.numel() for _, p in stack.unassigned)
    notes = describe(stack).splitlines()
    table = Table(
        title=notes[0], title_justify="left", expand=True, caption="\n".join(notes[1:]), caption_justify="left"
    )
    names = [f"{layer.name} (x{layer.repeats})" if layer.repeats > 1 else layer.name for layer in stack]
    rest = ["(in no layer)"] if stack.unassigned else []
    # A long name is broken, never cut; shorter ones stay on one line.
    table.add_column("layer", overflow="fold", width=min(max(map(len, ["layer", *names, *rest])), _LONGEST_NAME))
    table.add_column("modules", overflow="fold", ratio=1)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for name, layer in zip(names, stack, strict=True):
        share = "no part" if layer.is_bystander else _share(layer.numel, total)
        table.add_row(name, _modules(layer), f"{layer.numel:,}", share)
    if stack.unassigned:
        size = sum(p.numel() for _, p in stack.unassigned)
        table.add_row(*rest, _list([n for n, _ in stack.unassigned]), f"{size:,}", _share(size, total))
    return table


def describe(stack: Layers) -> str:
    """One line of summary, then one line for each assumption or shared weight worth knowing.

    Where layers are frozen, also why backward still runs through them, and what stays random in them.

    Args:
        stack: The layers to describe.

    Returns:
        Plain text; the first line names the layers, their number and the number of parameters.
    """
    total = sum(layer.numel for layer in stack)
    lines = [
        f"{type(stack.module).__name__}: {_count(len(stack), 'layer')} ({abbreviate(stack)}), {total:,} parameters"
    ]
    lines += sharing(stack)
    silent = [layer.name for layer in stack if not layer.parameters()]
    if silent:
        lines.append(f"{', '.join(silent)}: no parameters of its own, nothing to train there")
    if stack.from_groups:
        lines.append("layers as given by an explicit map")
    if stack.unassigned:
        lines.append(
            f"{_count(len(stack.unassigned), 'parameter')} in no layer, left as they are: {_list_unassigned(stack)}"
        )
    lines += _leaks(stack) + random_source_lines(stack, active_random_sources(stack))
    return "\n".join(lines)


def sharing(stack: Layers) -> list[str]:
    """One line for each block that is run several times, and for each pair of layers that share parameters."""
    repeated = [
        f"{layer.name}: one block, shared by {layer.repeats} passes; it is frozen for all of them or none"
        for layer in stack
        if layer.repeats > 1
    ]
    return repeated + _ties(stack)


def _leaks(stack: Layers) -> list[str]:
    """One line for each run of frozen blocks that backward has to run through."""
    lines = []
    for leak in backward_leaks(stack):
        blocks = [name for name in leak.layers if stack[name].is_block]
        if blocks:
            verb = "runs" if leak.is_certain else "may run"
            why = leak.reason or f"{runs(stack, leak.sources)} below trains ({_list(list(leak.parameters))})"
            lines.append(f"backward {verb} through frozen {runs(stack, blocks)}: {why}")
    return lines


def _ties(stack: Layers) -> list[str]:
    """One line for each pair of layers that share parameters."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for tie in stack.ties:
        pairs.setdefault((tie.layer, tie.used_by), []).append(f"{tie.alias} is {tie.name}")
    return [f"{used_by} shares weights with {owner}: {_list(texts)}" for (owner, used_by), texts in pairs.items()]


def _modules(layer: Layer) -> str:
    return _list([prefix or "(the whole module)" for prefix in layer.prefixes])


def _list(names: list[str]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"and {len(names) - 3} more"])


def _list_unassigned(stack: Layers) -> str:
    return _list([name for name, _ in stack.unassigned])


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f}%" if total else "-"
