"""gluonts: probabilistic forecasts with DeepAR, as in its quick start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import torch
from checks import Project, Run, array, main
from gluonts.dataset.common import ListDataset
from gluonts.model.predictor import Predictor
from gluonts.torch import DeepAREstimator

HORIZON = 4


def series() -> ListDataset:
    time = np.arange(60)
    targets = [10 + np.sin(time / 3 + shift) for shift in range(3)]
    return ListDataset([{"start": "2024-01-01", "target": target} for target in targets], freq="D")


def fit(run: Run) -> Any:
    estimator = DeepAREstimator(
        freq="D",
        prediction_length=HORIZON,
        context_length=8,
        num_layers=2,
        hidden_size=8,
        dropout_rate=0.1,
        batch_size=8,
        num_batches_per_epoch=4,
        trainer_kwargs={
            "max_epochs": run.epochs,
            "callbacks": run.callbacks,
            "default_root_dir": run.folder,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    )
    return estimator.train(series(), cache_data=True)


def save_and_load(predictor: Any, folder: Path) -> tuple[Any, Any]:
    where = folder / "predictor"
    where.mkdir()
    predictor.serialize(where)
    return forecasts(predictor), forecasts(Predictor.deserialize(where))


def forecasts(predictor: Any) -> Any:
    torch.manual_seed(0)
    return array([forecast.samples for forecast in predictor.predict(series())])


if __name__ == "__main__":
    main(Project("gluonts", "DeepAR", lightning.pytorch, fit, save_and_load))
