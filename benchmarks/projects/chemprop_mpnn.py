"""chemprop: a message passing network on molecules, as in its notebook on training a regression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch
import torch
from checks import Project, Run, array, main
from chemprop import data, models, nn
from lightning.pytorch import Trainer

SMILES = ["CCO", "CCN", "c1ccccc1", "CC(=O)O", "CCCl", "C1CCCCC1", "CC(C)O", "OCCO", "c1ccncc1", "CCOC", "CC#N", "CCS"]


def loader(shuffle: bool) -> Any:
    points = [data.MoleculeDatapoint.from_smi(smiles, [float(len(smiles))]) for smiles in SMILES]
    dataset = data.MoleculeDataset(points)
    dataset.normalize_targets()
    return data.build_dataloader(dataset, batch_size=4, shuffle=shuffle, num_workers=0)


def fit(run: Run) -> Any:
    model = models.MPNN(
        nn.BondMessagePassing(d_h=16, depth=2, dropout=0.1),
        nn.MeanAggregation(),
        nn.RegressionFFN(input_dim=16, hidden_dim=16, n_layers=2),
        batch_norm=True,
        metrics=[nn.metrics.RMSE()],
    )
    trainer = Trainer(
        max_epochs=run.epochs,
        callbacks=run.callbacks,
        default_root_dir=run.folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader(shuffle=True), loader(shuffle=False))
    return model


def save_and_load(model: Any, folder: Path) -> tuple[Any, Any]:
    models.save_model(folder / "model.pt", model)
    return predictions(model), predictions(models.load_model(folder / "model.pt"))


def predictions(model: Any) -> Any:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with torch.inference_mode():
        return array(trainer.predict(model, loader(shuffle=False)))


if __name__ == "__main__":
    main(Project("chemprop", "message passing on molecules", lightning.pytorch, fit, save_and_load))
