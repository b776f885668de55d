"""What a stack says itself of an order that does not hold in every pass."""

from __future__ import annotations

from lightning_freeze.layers import LayerStack

_BOTH_WAYS = ": run in both directions, numbered as registered"


def turned(stack: LayerStack, ran: list[str]) -> tuple[list[str], str]:
    """The order of the stack less what it says itself of single lists: that one pass runs them forwards, one backwards.

    Returns:
        All names, those lists turned round that ran backwards as a whole, and the sentence; nothing if none did.
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
    """What the stack says itself to be fed by layers behind it: ids of modules and parameters, and the sentences."""
    held = [*stack.module.named_modules(), *stack.module.named_parameters()]
    ids, said = set(), []
    for line in stack.assumptions:
        ending = next((end for end in _FED_LATER if line.endswith(end)), "")
        paths = line.removesuffix(ending).split(", ") if ending else []
        ids |= {id(one) for name, one in held if any(f"{name}.".startswith(f"{path}.") for path in paths)}
        said += [line] * bool(ending)
    return ids, "; ".join(said)
