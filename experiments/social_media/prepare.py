"""Fetch what the social-media experiment needs: an encoder, sentences of film reviews, and tweets.

    python experiments/social_media/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/movies.csv`` and ``data/tweets.csv`` (columns text, label, source) come
with mean ratings of twenty people from -4 to 4; the label is their sign, and texts with a mean of 0 count as negative.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import make_minilm, rated_texts, run, vader_ratings, write_csv


def make(member: str, target: Path) -> None:
    """Write one file of ratings as labelled texts."""
    write_csv(target, rated_texts(member, "source"))


def make_general(target: Path) -> None:
    """Write every tenth review sentence of products, to measure what is forgotten."""
    texts = [text for _, _, text in vader_ratings("amazonReviewSnippets_GroundTruth.txt")]
    target.write_text("\n".join(" ".join(text.split()) for text in texts[::10]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    steps = {
        "movies.csv": lambda target: make("movieReviewSnippets_GroundTruth.txt", target),
        "tweets.csv": lambda target: make("tweets_GroundTruth.txt", target),
        "general.txt": make_general,
        "minilm": make_minilm,
    }
    run("social_media", steps)
