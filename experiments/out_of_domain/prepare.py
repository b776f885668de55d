"""Fetch what the experiment out of domain needs: an encoder and sentences of two domains.

    python experiments/out_of_domain/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/amazon.csv`` and ``data/movie.csv`` (columns text, label, review) are
sentences with mean ratings of twenty people from -4 to 4; the label is their sign, and texts with a mean of 0 count as
negative.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import make_amazon, make_minilm, make_movie, run

if __name__ == "__main__":
    run("out_of_domain", {"amazon.csv": make_amazon, "movie.csv": make_movie, "minilm": make_minilm})
