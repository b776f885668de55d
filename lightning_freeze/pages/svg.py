"""Figures as SVG elements inside a page. Needs matplotlib (extra ``report``)."""

from __future__ import annotations

import re
import warnings
from io import StringIO

from matplotlib import rc_context
from matplotlib.figure import Figure

from lightning_freeze.pages.style import BACKGROUND, STYLE, TEXT

_ID = re.compile(r' id="([^"]+)"')


def as_svg(figure: Figure, text: str = "currentColor", background: str = "var(--page)") -> str:
    """A figure as an SVG element.

    Args:
        figure: The figure, drawn in :data:`STYLE`.
        text: The colour of text and axes; by default that of the text around the figure.
        background: The colour of gaps.
    """
    buffer = StringIO()
    with rc_context(STYLE), warnings.catch_warnings():
        # The browser has the fonts that matplotlib lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    found = buffer.getvalue()
    return _without_idle_ids(found[found.index("<svg") :]).replace(TEXT, text).replace(BACKGROUND, background)


def _without_idle_ids(svg: str) -> str:
    """Remove the ids that nothing refers to: those of several figures in one page would be the same."""
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
    names = {name for pair in used for name in pair if name}
    return _ID.sub(lambda match: match[0] if match[1] in names else "", svg)
