"""Train the classifier: ``python train.py``. Losses and learning rates go to ``logs/`` as CSV."""

import lightning as L
from data import LENGTH, VOCABULARY, OpinionData
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from model import OpinionClassifier


def main() -> None:
    L.seed_everything(7)
    model = OpinionClassifier(VOCABULARY, LENGTH)
    trainer = L.Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=CSVLogger(".", name="logs", version=""),
        log_every_n_steps=1,
        callbacks=[
            LearningRateMonitor(),
        ],
    )
    trainer.fit(model, OpinionData())
    print(f"validation accuracy {float(trainer.callback_metrics['val_accuracy']):.3f}")


if __name__ == "__main__":
    main()
