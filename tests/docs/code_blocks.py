"""The fenced code blocks of a Markdown page.

A comment on the line before a block says why it cannot run: ``<!-- not run: needs two GPUs -->``. Such a block must
still be valid Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^( *)```(\w*) *$(.*?)^\1``` *$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z")


class CodeBlock(NamedTuple):
    """One fenced block.

    Attributes:
        language: What stands behind the fence, such as ``python``.
        text: The code.
        line: Line of the fence, from 1.
        not_run: Why the block cannot run, or ``None``.
    """

    language: str
    text: str
    line: int
    not_run: str | None


def blocks_of(page: Path) -> Iterator[CodeBlock]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        reason = _NOT_RUN.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        yield CodeBlock(match.group(2), match.group(3).lstrip("\n"), line, reason and reason.group(1))


def commands_of(block: CodeBlock, program: str = "lightning-freeze") -> Iterator[str]:
    """The lines of a shell block that call a program, without comments; continued lines are joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        command = re.sub(r"\s+#.*$", "", line.strip().removeprefix("$ "))
        if command.startswith(f"{program} "):
            yield command
