"""Fetch what the continual-learning experiment needs: an encoder and three tasks.

    python experiments/continual/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/amazon.csv``, ``data/movie.csv`` and ``data/tweets.csv`` (columns text,
label, source) have 3,600 texts each with mean ratings of twenty people from -4 to 4; the label is their sign, and
texts with a mean of 0 count as negative. The source is the product review that a sentence is from; other texts have
one of their own.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import make_minilm, rated_texts, run, write_csv

ROWS = 3600


def make(member: str, target: Path) -> None:
    """Write labelled texts of one file of ratings, always the same ones."""
    rows = rated_texts(member, "source")
    random.Random(0).shuffle(rows)
    write_csv(target, rows[:ROWS])


if __name__ == "__main__":
    steps = {
        "amazon.csv": lambda target: make("amazonReviewSnippets_GroundTruth.txt", target),
        "movie.csv": lambda target: make("movieReviewSnippets_GroundTruth.txt", target),
        "tweets.csv": lambda target: make("tweets_GroundTruth.txt", target),
        "minilm": make_minilm,
    }
    run("continual", steps)
