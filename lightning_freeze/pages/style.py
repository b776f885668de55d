"""Colours and figure style. The colours are safe for colour-blind readers (Okabe and Ito, 2008; cividis).

Colours of text and background are placeholders, which a page replaces by the colours of its light and dark variants.
"""

from __future__ import annotations

from typing import Any

ORANGE, SKY_BLUE, GREEN, BLUE, VERMILION = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
GREY = "#999999"
FROZEN = "#b8b8b8"

#: Placeholder for the colour of text and axes.
TEXT = "#010203"
#: Placeholder for the colour of the page.
BACKGROUND = "#fdfefc"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lightning-freeze",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # names are text, also with a dollar sign in them
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{name}color": TEXT for name in ("text.", "axes.label", "xtick.", "ytick.", "axes.edge")},
}


def shortened(name: str, longest: int = 28) -> str:
    """A name in one line that fits into a figure.

    Args:
        name: Any text.
        longest: The most characters that are shown.
    """
    line = "".join(character if character.isprintable() else " " for character in name)
    if len(line) <= longest:
        return line
    half = (longest - 3) // 2
    return f"{line[:half]}...{line[-(longest - 3 - half) :]}"
