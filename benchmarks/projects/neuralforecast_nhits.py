"""neuralforecast: NHITS on a panel of series, as in its quick start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
from checks import Project, Run, main
from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS

HORIZON = 4


def table() -> pd.DataFrame:
    days = pd.date_range("2024-01-01", periods=60)
    parts = [pd.DataFrame({"unique_id": u, "ds": days, "y": np.sin(np.arange(60) / 3) + i}) for i, u in enumerate("ab")]
    return pd.concat(parts)


def fit(run: Run) -> Any:
    model = NHITS(
        h=HORIZON,
        input_size=2 * HORIZON,
        mlp_units=3 * [[16, 16]],
        # One step is an epoch of its own here: a batch holds all series.
        max_steps=run.epochs,
        learning_rate=1e-2,
        accelerator="cpu",
        callbacks=run.callbacks,
        default_root_dir=str(run.folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    forecast = NeuralForecast(models=[model], freq="D")
    forecast.fit(table())
    return forecast


def save_and_load(forecast: Any, folder: Path) -> tuple[Any, Any]:
    forecast.save(str(folder / "forecast"), save_dataset=True, overwrite=True)
    loaded = NeuralForecast.load(str(folder / "forecast"))
    return forecast.predict()["NHITS"].to_numpy(), loaded.predict()["NHITS"].to_numpy()


if __name__ == "__main__":
    main(Project("neuralforecast", "NHITS", pytorch_lightning, fit, save_and_load))
