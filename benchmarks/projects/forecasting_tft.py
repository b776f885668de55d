"""pytorch-forecasting: a Temporal Fusion Transformer, as in its tutorial on demand forecasting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pandas as pd
from checks import Project, Run, main
from lightning.pytorch import Trainer
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data import GroupNormalizer
from pytorch_forecasting.metrics import QuantileLoss

STEPS, HISTORY, HORIZON = 30, 8, 3


def table() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    rows = [
        {"time_idx": t, "shop": shop, "month": str(t % 12), "price": draw.random(), "volume": 5 + np.sin(t) + index}
        for index, shop in enumerate("ab")
        for t in range(STEPS)
    ]
    return pd.DataFrame(rows)


def series() -> TimeSeriesDataSet:
    return TimeSeriesDataSet(
        table(),
        time_idx="time_idx",
        target="volume",
        group_ids=["shop"],
        max_encoder_length=HISTORY,
        max_prediction_length=HORIZON,
        static_categoricals=["shop"],
        time_varying_known_categoricals=["month"],
        time_varying_known_reals=["time_idx", "price"],
        time_varying_unknown_reals=["volume"],
        target_normalizer=GroupNormalizer(groups=["shop"], transformation="softplus"),
    )


def fit(run: Run) -> Any:
    training = series()
    validation = TimeSeriesDataSet.from_dataset(training, table(), predict=True, stop_randomization=True)
    model = TemporalFusionTransformer.from_dataset(
        training,
        learning_rate=0.03,
        hidden_size=8,
        attention_head_size=2,
        dropout=0.1,
        hidden_continuous_size=4,
        loss=QuantileLoss(),
        optimizer="adam",
        reduce_on_plateau_patience=4,
    )
    trainer = Trainer(
        max_epochs=run.epochs,
        gradient_clip_val=0.1,
        limit_train_batches=4,
        callbacks=run.callbacks,
        default_root_dir=run.folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        model,
        train_dataloaders=training.to_dataloader(train=True, batch_size=8, num_workers=0),
        val_dataloaders=validation.to_dataloader(train=False, batch_size=8, num_workers=0),
    )
    return trainer


def save_and_load(trainer: Any, folder: Path) -> tuple[Any, Any]:
    trainer.save_checkpoint(folder / "tft.ckpt")
    loaded = TemporalFusionTransformer.load_from_checkpoint(folder / "tft.ckpt", weights_only=False)
    return predictions(trainer.model), predictions(loaded)


def predictions(model: Any) -> Any:
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    return model.predict(series().to_dataloader(train=False, batch_size=8), trainer_kwargs=quiet).numpy()


if __name__ == "__main__":
    main(Project("pytorch-forecasting", "Temporal Fusion Transformer", lightning.pytorch, fit, save_and_load))
