"""Draws the rooms of the package as a Mermaid diagram, from the layers that the lint step checks.

    python docs/rooms.py            # prints the diagram
    python docs/rooms.py --write    # puts it into docs/design.md

The layers are those of the first import-linter contract in pyproject.toml; what stands on each door is the first line
of the room's docstring.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_freeze"
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- rooms: written by docs/rooms.py -->", "<!-- rooms end -->"


def layers() -> list[list[str]]:
    """The rooms on each floor, from the top down."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    floors: list[str] = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [re.split(r"\s*[|:]\s*", floor) for floor in floors]


def door(room: str) -> str:
    """The first sentence of a room's docstring."""
    folder = PACKAGE / room
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").rstrip(".").replace("`", "").replace('"', "'")


def diagram() -> str:
    """The rooms as Mermaid source: one subgraph a floor, each importing only from floors below."""
    lines = ["```mermaid", "flowchart TB"]
    floors = layers()
    for number, rooms in enumerate(floors):
        lines.append(f"    subgraph floor{number}[ ]")
        lines.append("        direction LR")
        lines += [f'        {room}["<b>{room}</b><br/>{door(room)}"]' for room in rooms]
        lines.append("    end")
    lines += [f"    floor{number} --> floor{number + 1}" for number in range(len(floors) - 1)]
    return "\n".join([*lines, "```"])


def page_with(text: str, drawn: str) -> str:
    """A page with another diagram between the markers."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:begin]}\n{drawn}\n{text[end:]}"


def main() -> None:
    """Print the diagram, or write it into the page."""
    parser = argparse.ArgumentParser(description="Draw the rooms of the package.")
    parser.add_argument("--write", action="store_true", help="put the diagram into docs/design.md")
    if parser.parse_args().write:
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), diagram()), encoding="utf-8")
    else:
        print(diagram())


if __name__ == "__main__":
    main()
