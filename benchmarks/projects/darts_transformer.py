"""darts: its Transformer for time series, as in its guide to torch forecasting models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning
from checks import Project, Run, main
from darts import TimeSeries
from darts.models import TransformerModel


def series() -> TimeSeries:
    return TimeSeries.from_values(np.sin(np.arange(60, dtype=np.float32) / 3))


def fit(run: Run) -> Any:
    model = TransformerModel(
        input_chunk_length=8,
        output_chunk_length=2,
        d_model=8,
        nhead=2,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dim_feedforward=16,
        dropout=0.1,
        batch_size=16,
        n_epochs=run.epochs,
        random_state=0,
        work_dir=str(run.folder),
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "callbacks": run.callbacks,
            "default_root_dir": str(run.folder),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
        },
    )
    model.fit(series())
    return model


def save_and_load(model: Any, folder: Path) -> tuple[Any, Any]:
    model.save(str(folder / "darts.pt"))
    # It saves the callbacks that it was given, and loads those of other packages only where it is told to trust them.
    loaded = TransformerModel.load(str(folder / "darts.pt"), trusted=True)
    return model.predict(6, series=series()).values(), loaded.predict(6, series=series()).values()


if __name__ == "__main__":
    main(Project("darts", "Transformer", pytorch_lightning, fit, save_and_load))
