"""Pre-train what the audio experiment needs: a small Wav2Vec2 that knows five vowels.

    python experiments/audio/prepare.py

``data/wav2vec2/`` is that model. It takes some minutes; the sounds are synthetic, so nothing is fetched.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import PrepareError, run

EPOCHS = 40


def make_wav2vec2(target: Path) -> None:
    """Train a Wav2Vec2 of 6 blocks on five vowels."""
    try:
        import lightning.pytorch as pl
        import torch
        from transformers import Wav2Vec2Config, Wav2Vec2Model
        from vowels import Vowels

        from lightning_freeze import TransformerModule
    except ImportError as error:
        raise PrepareError(f"{error.name} is missing: expected `pip install lightning-freeze`.") from error
    pl.seed_everything(0)
    config = Wav2Vec2Config(
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=[32] * 5,
        conv_kernel=[10, 3, 3, 3, 3],
        conv_stride=[5, 2, 2, 2, 2],
        feat_extract_norm="layer",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        # Nothing is masked or dropped at random: the sounds are short.
        mask_time_prob=0.0,
        layerdrop=0.0,
    )
    module = TransformerModule(
        Wav2Vec2Model(config),
        num_classes=5,
        pooling="mean",
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    )
    data = Vowels(["heed", "had", "hod", "whod", "heard"], train_sounds=1000, batch_size=32)
    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    trainer.test(module, data)
    module.model.encoder.save_pretrained(target)


if __name__ == "__main__":
    run("audio", {"wav2vec2": make_wav2vec2})
