"""Make what the experiment on documenting code needs: functions of Python's standard library with their docstrings.

    python experiments/code_docs/prepare.py

``data/functions.jsonl`` (columns prompt, response, module) has the source of each function without its docstring, and
the first paragraph of its docstring. It is read from the Python that runs the script: another version, other rows.
``data/smollm2/`` is SmolLM2-135M-Instruct, and ``data/general.txt`` has English answers of the chatterbot corpus.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import PrepareError, chatterbot, make_smollm2, run, write_jsonl

LONGEST = 1200
"""Longer functions are left out: in characters, about 400 tokens."""


def functions(source: str) -> Iterator[tuple[str, str]]:
    """Yield the source of each function without its docstring, and the first paragraph of the docstring."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or len(node.body) < 2:
            continue
        docstring = ast.get_docstring(node)
        if not docstring:
            continue
        node.body = node.body[1:]
        yield ast.unparse(node), " ".join(docstring.split("\n\n")[0].split())


def make_functions(target: Path) -> None:
    """Write the functions of all modules that can be read."""
    library = Path(sysconfig.get_paths()["stdlib"])
    rows = []
    for path in sorted(library.glob("*.py")):
        try:
            found = list(functions(path.read_text(encoding="utf-8")))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for code, docstring in found:
            if len(code) <= LONGEST and len(docstring.split()) >= 3:
                rows.append({"prompt": f"{code}\n\n# What it does: ", "response": docstring, "module": path.stem})
    if len(rows) < 100:
        raise PrepareError(f"{library} holds {len(rows)} documented functions: expected Python's standard library.")
    write_jsonl(target, rows)


def make_general(target: Path) -> None:
    """Write English answers."""
    dialogues = [turns for topic in chatterbot("english").values() for turns in topic if len(turns) > 1]
    answers = dict.fromkeys(" ".join(turns[1].split()) for turns in dialogues)
    target.write_text("\n".join(a for a in answers if len(a.split()) >= 6) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run("code_docs", {"functions.jsonl": make_functions, "general.txt": make_general, "smollm2": make_smollm2})
