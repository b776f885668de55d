"""What MkDocs does not do itself: links to files outside of ``docs/``, diagrams without a network, Sphinx roles.

The pages are read on a code host too, where ``../benchmarks/results/overhead.md`` is a good link. On the site,
each file that a page links to in this way is a page of its own (Markdown) or a file (everything else) under
``repository/``.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

from mkdocs.structure.files import File

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
FOLDER = "repository"
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)([^)\s]*)\)")
_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ROOM = re.compile(r"<b>(\w+)</b><br/>([^\"]+)\"")
_ROLE = re.compile(r":(?:class|meth|func|attr|mod|obj):<code>~?([\w.]+)</code>")


def repository_path(page: str, link: str) -> str | None:
    """The file outside of ``docs/`` that a link leads to, relative to the repository.

    Args:
        page: The page with the link, relative to the repository.
        link: The link, without its anchor.
    """
    target = normpath(f"{dirname(page)}/{link}" if dirname(page) else link)
    if (ROOT / target / "README.md").is_file():
        target = f"{target}/README.md"
    if target.startswith(("..", "docs/")) or not (ROOT / target).is_file():
        return None
    return target


def linked_files() -> list[str]:
    """All files outside of ``docs/`` that pages link to, and those that these pages link to, in order."""
    waiting = [path.relative_to(ROOT).as_posix() for path in sorted(DOCS.rglob("*.md"))]
    found: dict[str, None] = {}
    while waiting:
        page = waiting.pop(0)
        for link, _ in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            target = repository_path(page, link)
            if target is not None and target not in found:
                found[target] = None
                if target.endswith(".md"):
                    waiting.append(target)
    return list(found)


def on_files(files: Any, config: Any) -> Any:
    """Add the files that pages link to."""
    for path in linked_files():
        files.append(File.generated(config, f"{FOLDER}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to the copies on the site."""
    source = page.file.src_uri
    is_copy = source.startswith(f"{FOLDER}/")
    origin = source.removeprefix(f"{FOLDER}/") if is_copy else f"docs/{source}"

    def on_site(match: re.Match[str]) -> str:
        link, anchor = match.groups()
        target = repository_path(origin, link)
        if target is not None:
            place = f"{FOLDER}/{target}"
        elif is_copy and (path := normpath(f"{dirname(origin)}/{link}".lstrip("/"))).startswith("docs/"):
            place = path.removeprefix("docs/")
        else:
            return match.group()
        return f"]({relpath(place, dirname(source) or '.')}{anchor})"

    return _LINK.sub(on_site, with_deep_lists(without_mermaid(markdown)))


def without_mermaid(markdown: str) -> str:
    """A page in which the diagram of the rooms is a table: drawing it takes a script from another site.

    Args:
        markdown: The page.
    """

    def as_table(match: re.Match[str]) -> str:
        lines = ["| room | what it is for |", "|---|---|"]
        for floor in match.group(1).split("subgraph")[1:]:
            lines += [f"| `{room}` | {door} |" for room, door in _ROOM.findall(floor)]
        return "\n".join(lines)

    return _DIAGRAM.sub(as_table, markdown)


def with_deep_lists(markdown: str) -> str:
    """A page whose numbered lists are indented by four spaces a level, as MkDocs wants it, instead of three.

    Args:
        markdown: The page.
    """
    lines, is_code = [], False
    for line in markdown.split("\n"):
        is_code ^= line.lstrip().startswith("```")
        indent = len(line) - len(line.lstrip())
        is_list = not is_code and indent and indent % 3 == 0
        lines.append(" " * (indent // 3 * 4) + line.lstrip() if is_list else line)
    return "\n".join(lines)


def on_page_content(html: str, **_: Any) -> str:
    """Show Sphinx roles in docstrings as plain names."""
    return _ROLE.sub(lambda match: f"<code>{match.group(1).rsplit('.', 1)[-1]}</code>", html)
