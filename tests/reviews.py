"""Short reviews, made up from a few words, and files of them."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

POSITIVE = ("good", "great", "love", "fine")
NEGATIVE = ("bad", "awful", "hate", "poor")
NEUTRAL = ("the", "a", "film", "book", "phone", "is", "was", "very", "quite", "so")


def make_reviews(count: int = 60, seed: int = 0) -> list[dict[str, str]]:
    """Return short reviews with a label that one of their words gives away; three rows per author."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        label = rng.choice(["neg", "pos", "pos"])
        words = [*rng.choices(NEUTRAL, k=rng.randint(1, 10)), rng.choice(POSITIVE if label == "pos" else NEGATIVE)]
        rng.shuffle(words)
        rows.append({"author": f"a{i // 3}", "text": " ".join(words), "label": label})
    return rows


def save_csv(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> Path:
    """Write rows to a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path
