"""Fetch what the few-shot experiment needs: an encoder and sentences of film reviews.

    python experiments/few_shot/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/train.csv`` and ``data/test.csv`` (columns text, label) are sentences with
mean ratings of twenty people from -4 to 4; the label is their sign, and texts with a mean of 0 count as negative. 1,000
sentences, always the same, are for the test.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import make_minilm, run, vader_ratings, write_csv

TEST_ROWS = 1000


def make(part: str, target: Path) -> None:
    """Write the training or the test texts. A text that occurs twice is written once."""
    ratings = {text: rating for _, rating, text in vader_ratings("movieReviewSnippets_GroundTruth.txt") if text}
    rows = [{"text": text, "label": "positive" if rating > 0 else "negative"} for text, rating in ratings.items()]
    random.Random(0).shuffle(rows)
    write_csv(target, rows[:TEST_ROWS] if part == "test" else rows[TEST_ROWS:])


if __name__ == "__main__":
    steps = {
        "train.csv": lambda target: make("train", target),
        "test.csv": lambda target: make("test", target),
        "minilm": make_minilm,
    }
    run("few_shot", steps)
