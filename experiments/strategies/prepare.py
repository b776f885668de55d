"""Fetch what the comparison of strategies needs: an encoder and three data sets.

    python experiments/strategies/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/amazon.csv`` and ``data/movie.csv`` (columns text, label, review) are
sentences with mean ratings of twenty people from -4 to 4; the label is their sign, and texts with a mean of 0 count as
negative. ``data/reuters.csv`` (columns text, label) is Reuters-21578 R8: news of eight topics.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import make_amazon, make_minilm, make_movie, make_reuters, run

if __name__ == "__main__":
    run(
        "strategies",
        {"amazon.csv": make_amazon, "movie.csv": make_movie, "reuters.csv": make_reuters, "minilm": make_minilm},
    )
