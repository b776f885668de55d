"""Save the encoder of a checkpoint as a model folder, to begin another run with it.

python experiments/social_media/export.py CHECKPOINT FOLDER
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer

from lightning_freeze import TransformerModule


def export(checkpoint: str, folder: str) -> None:
    """Write encoder and tokenizer to a new folder."""
    module = TransformerModule.load_from_checkpoint(checkpoint, map_location="cpu")
    module.model.encoder.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(module.hparams["encoder"])).save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_file():
        sys.exit(f"error: expected a checkpoint and a folder to write, got {sys.argv[1:]}.")
    export(sys.argv[1], sys.argv[2])
