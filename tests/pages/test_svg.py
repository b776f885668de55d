from __future__ import annotations

import re

import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from lightning_freeze.pages.scales import log_norm
from lightning_freeze.pages.style import STYLE, TEXT, shortened
from lightning_freeze.pages.svg import as_svg


def figure(title: str) -> Figure:
    with rc_context(STYLE):
        found = Figure(figsize=(3, 2))
        ax = found.subplots()
        ax.plot([1, 2], [3, 4], "o-")
        ax.set_title(title)
    return found


def test_names_in_a_figure_are_text() -> None:
    svg = as_svg(figure("<script> & $\\frac$ 名"))
    assert "&lt;script&gt; &amp; $\\frac$ 名" in svg


def test_text_has_the_colour_of_the_page_and_ids_are_few() -> None:
    svg = as_svg(figure("title"))
    assert TEXT not in svg
    assert "currentColor" in svg
    ids = re.findall(r' id="([^"]+)"', svg)
    assert ids
    assert all(f"#{name}" in svg for name in ids)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("head", "head"), ("a\nb\x00c", "a b c"), ("x" * 40, "x" * 12 + "..." + "x" * 13)],
)
def test_names_are_shortened_to_one_line(name: str, shown: str) -> None:
    assert shortened(name) == shown


@pytest.mark.parametrize("values", [[], [0.0], [1e-3], [1e-3, 1e-3], [1e-5, 10.0]])
def test_a_logarithmic_range_is_never_empty(values: list[float]) -> None:
    norm = log_norm(values)
    assert norm.vmin is not None and norm.vmax is not None
    assert 0 < norm.vmin < norm.vmax
