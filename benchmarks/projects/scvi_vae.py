"""scvi-tools: the variational autoencoder of single-cell counts, as in its introduction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import lightning.pytorch
import numpy as np
import scvi
from checks import Project, Run, main


def counts() -> anndata.AnnData:
    draw = np.random.default_rng(0)
    data = anndata.AnnData(draw.poisson(2.0, size=(64, 20)).astype(np.float32))
    data.obs["batch"] = draw.choice(["a", "b"], 64)
    return data


def fit(run: Run) -> Any:
    scvi.settings.seed = 0  # decides which cells are for validation
    data = counts()
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    model = scvi.model.SCVI(data, n_hidden=16, n_latent=4, n_layers=2)
    model.train(
        max_epochs=run.epochs,
        batch_size=16,
        accelerator="cpu",
        callbacks=run.callbacks,
        default_root_dir=str(run.folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    return model


def save_and_load(model: Any, folder: Path) -> tuple[Any, Any]:
    model.save(str(folder / "scvi"), save_anndata=True)
    loaded = scvi.model.SCVI.load(str(folder / "scvi"), accelerator="cpu")
    return model.get_latent_representation(), loaded.get_latent_representation()


if __name__ == "__main__":
    main(Project("scvi-tools", "SCVI on single-cell counts", lightning.pytorch, fit, save_and_load))
