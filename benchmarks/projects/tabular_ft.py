"""pytorch-tabular: an FT-Transformer on a table with categories and numbers, as in its quick start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
from checks import Project, Run, main
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import FTTransformerConfig


def table(rows: int = 48) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"age": draw.normal(size=rows), "income": draw.normal(size=rows)})
    frame["city"] = draw.choice(["a", "b", "c"], rows)
    frame["target"] = (frame["age"] + (frame["city"] == "a") > 0).astype(int)
    return frame


def fit(run: Run) -> Any:
    model = TabularModel(
        data_config=DataConfig(target=["target"], continuous_cols=["age", "income"], categorical_cols=["city"]),
        model_config=FTTransformerConfig(task="classification", input_embed_dim=8, num_heads=2, num_attn_blocks=3),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=12,
            max_epochs=run.epochs,
            accelerator="cpu",
            checkpoints=None,
            early_stopping=None,
            load_best=False,
            progress_bar="none",
            trainer_kwargs={"default_root_dir": str(run.folder), "enable_model_summary": False},
        ),
        verbose=False,
    )
    model.fit(train=table(), validation=table(), callbacks=run.callbacks)
    return model


def save_and_load(model: Any, folder: Path) -> tuple[Any, Any]:
    model.save_model(str(folder / "tabular"))
    loaded = TabularModel.load_model(str(folder / "tabular"))
    probabilities = ["target_0_probability", "target_1_probability"]
    return model.predict(table())[probabilities].to_numpy(), loaded.predict(table())[probabilities].to_numpy()


if __name__ == "__main__":
    main(Project("pytorch-tabular", "FT-Transformer on a table", pytorch_lightning, fit, save_and_load))
