"""What a policy has chosen, checked: it may be code of the user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_freeze.errors import ConfigurationError, listing, suggest


def checked_choice(owner: str, policy: object, turn: int, chosen: object, layers: Sequence[str]) -> tuple[str, ...]:
    """The names of the layers that a policy has chosen.

    Args:
        owner: Name of the callback.
        policy: The policy, for messages.
        turn: Number of the turn, 0 for the first.
        chosen: What the policy has returned.
        layers: The names that it chooses from.

    Raises:
        ConfigurationError: If that is not a collection of these names.
    """
    what = f"{owner}: {policy!r} returned {_short(chosen)} for turn {turn}: expected a list of names from"
    if isinstance(chosen, str):
        # A string is a sequence too: "11" would be layer 1 twice.
        nearest = f" Did you mean [{chosen!r}]?" if chosen in layers else suggest(chosen, layers)
        raise ConfigurationError(f"{what} {listing(layers)}.{nearest}")
    if not isinstance(chosen, Iterable):
        raise ConfigurationError(f"{what} {listing(layers)}.")
    names = tuple(chosen)
    for name in names:
        if not isinstance(name, str) or name not in layers:
            wrong = f"{what} {listing(layers)}, not {name!r}."
            raise ConfigurationError(f"{wrong}{_nearest(name, layers)}")
    # The order of a set differs between processes, and the one of the layers means the same.
    return tuple(name for name in layers if name in names) if isinstance(chosen, set | frozenset) else names


def _nearest(name: object, layers: Sequence[str]) -> str:
    if isinstance(name, int) and not isinstance(name, bool) and -len(layers) <= name < len(layers):
        return f" Did you mean {layers[name]!r}?"
    return suggest(name, layers)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
