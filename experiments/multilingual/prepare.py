"""Fetch what the multilingual experiment needs: an English encoder, and short texts by topic in five languages.

    python experiments/multilingual/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/<language>.csv`` (columns text, label, dialogue) has the turns of the
chatterbot corpus in that language; the label is the topic, and turns of one dialogue have one number. Many dialogues
share turns, so each text is written once, and left out where it stands in several topics.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import PrepareError, chatterbot, make_minilm, run, write_csv

LANGUAGES = ("english", "italian", "dutch", "portuguese", "persian")
FEWEST = 12
"""Topics with fewer dialogues are left out: each must be in all three splits."""


def turns_of(language: str) -> list[dict[str, Any]]:
    """The turns of a language whose text stands in one topic only, each text once."""
    rows, number = [], 0
    topics: dict[str, set[str]] = {}
    for topic, dialogues in sorted(chatterbot(language).items()):
        for turns in dialogues:
            number += 1
            for text in (" ".join(turn.split()) for turn in turns):
                known = topics.setdefault(text.casefold(), set())
                if not known:
                    rows.append({"text": text, "label": topic, "dialogue": number})
                known.add(topic)
    return [row for row in rows if len(topics[row["text"].casefold()]) == 1]


def make(language: str, target: Path) -> None:
    """Write the texts of one language."""
    rows = turns_of(language)
    dialogues = Counter(topic for topic, _ in {(row["label"], row["dialogue"]) for row in rows})
    wanted = {topic for topic, count in dialogues.items() if count >= FEWEST}
    if len(wanted) < 2:
        raise PrepareError(f"the corpus has {len(wanted)} topics with {FEWEST} dialogues in {language}: expected 2.")
    write_csv(target, [row for row in rows if row["label"] in wanted])


if __name__ == "__main__":
    files = {f"{language}.csv": (lambda target, it=language: make(it, target)) for language in LANGUAGES}
    run("multilingual", {**files, "minilm": make_minilm})
