"""Reads a report as a user would: its charts, tables and texts, and the numbers in it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CHARTS = ("timeline", "rates", "distances", "time", "memory", "backward", "gradients", "relative-gradients")


class Page(HTMLParser):
    """A page in pieces.

    Attributes:
        html: The source.
        text: All text, with single spaces.
        charts: The ids of sections that hold a figure.
        tables: The rows of the table of each section, by id.
        loaded: Addresses that the page would load.
        tags: All tags in it.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.html = Path(path).read_text(encoding="utf-8")
        self.charts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.loaded: list[str] = []
        self.tags: set[str] = set()
        self._texts: list[str] = []
        self._section = ""
        self._open: list[str] = []
        self._data = ""
        self.feed(self.html)
        self.text = " ".join(" ".join(self._texts).split())

    @property
    def data(self) -> dict[str, Any]:
        """The numbers as JSON."""
        found: dict[str, Any] = json.loads(self._data)
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "section":
            self._section = given.get("id") or ""
        elif tag == "svg":
            self.charts.append(self._section)
        elif tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._section][-1].append("")
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        if "pre" in self._open:
            self._data += data
            return
        self._texts.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[self._section][-1][-1] += data
