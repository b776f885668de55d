"""Short selectors for lists of layer names."""

from __future__ import annotations

from collections.abc import Sequence


def selector_of(chosen: Sequence[str], names: Sequence[str]) -> str:
    """The shortest selector that names exactly some layers, such as ``"embeddings,:8"`` or ``"9:,head"``.

    Args:
        chosen: The layers to name.
        names: All layers of the stack, in order.
    """
    wanted = set(chosen)
    if wanted == set(names):
        return "all"
    terms: list[str] = []
    for tower, blocks in _blocks(names).items():
        if not tower:  # no block
            terms += [name for name in blocks if name in wanted]
            continue
        terms += [_range(tower, run, len(blocks)) for run in _runs([name in wanted for name in blocks])]
    order = {name: position for position, name in enumerate(names)}
    return ",".join(sorted(terms, key=lambda term: _position(term, order)))


def _blocks(names: Sequence[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        prefix, _, last = name.rpartition(".")
        groups.setdefault(f"{prefix}." if last.isdigit() else "", []).append(name)
    return groups


def _runs(chosen: Sequence[bool]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for position, is_chosen in enumerate(chosen):
        if is_chosen and runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 1)
        elif is_chosen:
            runs.append((position, position + 1))
    return runs


def _range(tower: str, run: tuple[int, int], blocks: int) -> str:
    prefix, (first, end) = tower.removesuffix("."), run
    prefix = f"{prefix}." if prefix else ""
    if end - first == 1:
        return f"{prefix}{first}"
    return f"{prefix}{first or ''}:{'' if end == blocks else end}"


def _position(term: str, order: dict[str, int]) -> int:
    if term in order:
        return order[term]
    prefix, _, numbers = term.rpartition(".")
    first = numbers.partition(":")[0] or "0"
    return order[f"{prefix}.{first}" if prefix else first]
