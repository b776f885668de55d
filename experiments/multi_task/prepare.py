"""Fetch what the multi-task experiment needs: an encoder, and sentences with labels for three tasks.

    python experiments/multi_task/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/sentences.csv`` has sentences of product reviews (text), the review that
each is from, the mean rating of twenty people from -4 to 4 (rating), its sign (sentiment; a mean of 0 counts as
negative), and whether it is further from 0 than that of half of the sentences (strength).
"""

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import make_minilm, run, vader_ratings, write_csv


def make(target: Path) -> None:
    """Write the sentences."""
    rated = [row for row in vader_ratings("amazonReviewSnippets_GroundTruth.txt") if row[2]]
    middle = statistics.median(abs(rating) for _, rating, _ in rated)
    write_csv(
        target,
        [
            {
                "text": text,
                "review": identifier.split("_")[0],
                "rating": rating,
                "sentiment": "positive" if rating > 0 else "negative",
                "strength": "strong" if abs(rating) > middle else "weak",
            }
            for identifier, rating, text in rated
        ],
    )


if __name__ == "__main__":
    run("multi_task", {"sentences.csv": make, "minilm": make_minilm})
