"""Fetch what the multilingual experiment needs: an English encoder, and short texts by topic in five languages.

    python experiments/multilingual/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/<language>.csv`` (columns text, label, dialogue) has all turns of the
chatterbot corpus in that language; the label is the topic, and turns of one dialogue have one number.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import PrepareError, chatterbot, make_minilm, run, write_csv

LANGUAGES = ("english", "italian", "dutch", "portuguese", "persian")
FEWEST = 12
"""Topics with fewer dialogues are left out: each must be in all three splits."""


def topics_of(language: str) -> set[str]:
    """The topics of a language with enough dialogues."""
    return {topic for topic, dialogues in chatterbot(language).items() if len(dialogues) >= FEWEST}


def make(language: str, target: Path) -> None:
    """Write the texts of one language."""
    wanted, number, rows = topics_of(language), 0, []
    for topic, dialogues in sorted(chatterbot(language).items()):
        for turns in dialogues if topic in wanted else ():
            number += 1
            rows += [{"text": " ".join(turn.split()), "label": topic, "dialogue": number} for turn in turns]
    if len(wanted) < 2:
        raise PrepareError(f"the corpus has {len(wanted)} topics with {FEWEST} dialogues in {language}: expected 2.")
    write_csv(target, rows)


if __name__ == "__main__":
    files = {f"{language}.csv": (lambda target, it=language: make(it, target)) for language in LANGUAGES}
    run("multilingual", {**files, "minilm": make_minilm})
