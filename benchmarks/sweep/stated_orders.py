"""Orders that do not hold in every forward pass, as the assumptions of a layer stack state them."""

from __future__ import annotations

from lightning_freeze.layers import LayerStack

_BOTH_WAYS = ": run in both directions, numbered as registered"


def turned(stack: LayerStack, ran: list[str]) -> tuple[list[str], str]:
    """Reverse the lists that ran backwards, if the stack states that they run in both directions.

    Returns:
        All names in that order, and the statement; empty if no list ran backwards as a whole.
    """
    names = list(stack.names)
    sentence = next((line for line in stack.assumptions if line.endswith(_BOTH_WAYS)), "")
    found = False
    for path in sentence.removesuffix(_BOTH_WAYS).split(", ") if sentence else ():
        places = [i for i, name in enumerate(names) if all(p.startswith(f"{path}.") for p in stack[name].prefixes)]
        inside = [names[i] for i in places]
        if len(inside) > 1 and [name for name in ran if name in inside] == inside[::-1]:
            found = True
            for place, name in zip(places, inside[::-1], strict=True):
                names[place] = name
    return (names, sentence) if found else ([], "")


_FED_LATER = (
    ": from the second turn of a loop on, what runs behind it has run in the turn before",
    ": run once more behind layers that come later: where they run first counts",
)


def fed_later(stack: LayerStack) -> tuple[set[int], str]:
    """What is fed by later layers, as the stack states: ids of modules and parameters, and the statements."""
    held = [*stack.module.named_modules(), *stack.module.named_parameters()]
    ids, said = set(), []
    for line in stack.assumptions:
        ending = next((end for end in _FED_LATER if line.endswith(end)), "")
        paths = line.removesuffix(ending).split(", ") if ending else []
        ids |= {id(one) for name, one in held if any(f"{name}.".startswith(f"{path}.") for path in paths)}
        said += [line] * bool(ending)
    return ids, "; ".join(said)
