"""Fetch what the experiment on time needs: an encoder and sentences of product reviews.

    python experiments/time_to_accuracy/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/amazon.csv`` (columns text, label, review) are sentences with mean ratings
of twenty people from -4 to 4; the label is their sign, and texts with a mean of 0 count as negative.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import make_amazon, make_minilm, run

if __name__ == "__main__":
    run("time_to_accuracy", {"amazon.csv": make_amazon, "minilm": make_minilm})
