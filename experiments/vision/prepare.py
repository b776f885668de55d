"""Pre-train what the vision experiment needs: a small ViT that knows the digits 0 to 4.

    python experiments/vision/prepare.py

``data/vit/`` is that ViT. It takes some minutes; the images come with scikit-learn.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import PrepareError, run

EPOCHS = 30


def make_vit(target: Path) -> None:
    """Train a ViT of 6 blocks on the first five digits."""
    try:
        import lightning.pytorch as pl
        import sklearn  # noqa: F401
        import torch
        from digits import Digits
        from transformers import ViTConfig, ViTModel

        from lightning_freeze import TransformerModule
    except ImportError as error:
        raise PrepareError(f"{error.name} is missing: expected `pip install lightning-freeze scikit-learn`.") from error
    pl.seed_everything(0)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=128,
    )
    module = TransformerModule(
        ViTModel(config, add_pooling_layer=False),
        num_classes=5,
        pooling="mean",
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    )
    data = Digits([0, 1, 2, 3, 4], train_images=600, batch_size=32)
    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    trainer.test(module, data)
    module.model.encoder.save_pretrained(target)


if __name__ == "__main__":
    run("vision", {"vit": make_vit})
