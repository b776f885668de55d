"""Forgetting: compare the fine-tuned model with the original on general text."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch import Tensor

from lightning_freeze.arguments import check_arguments, check_at_least
from lightning_freeze.data.tokenizer import load_tokenizer
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.forgetting.features import Features, extract
from lightning_freeze.forgetting.result import ForgettingResult, compare
from lightning_freeze.forgetting.texts import encode_texts, fingerprint, read_texts
from lightning_freeze.module.tasks import get_task
from lightning_freeze.namespaces import Callback, either
from lightning_freeze.run_warnings.record import warn_in_run


class Forgetting(Callback):
    """Measures what fine-tuning makes a model forget, on general text.

    Before training, the model is run over the texts once, and one vector for each layer and text is kept: no copy of
    the model. After training it is run again, and compared with the original:

    - the similarity ranking of the texts: the Spearman correlation of both rankings and the nearest neighbours that
      both have in common, from the mean over tokens of the last block;
    - for each layer, linear CKA (Kornblith et al., 2019) and the L2 distance of its features;
    - for a causal language model, its perplexity on the texts before and after.

    The outcome is :attr:`result`; its numbers are logged as ``forgetting/...``, and one line is printed. A test of
    another checkpoint (``trainer.test(ckpt_path="best")``) measures that one. The weights at the start of the fit count
    as the original. What was kept of them travels in checkpoints, so that a resumed run has the same original.

    Args:
        text: A file of general text: ``.txt`` with one text in each line, or one that :class:`TextDataModule` reads.
            It should be unlike the training data; a few hundred sentences are enough.
        column: The column of the text, in a file with columns.
        max_texts: The most texts to use, spread over the file. Checkpoints grow by ``max_texts`` times the number of
            layers times their width, in 4 bytes: 10 MB for 256 texts and a BERT-base.
        max_length: Texts are cut to so many tokens.
        batch_size: Texts in one forward pass.
        neighbours: How many nearest neighbours of each text are compared.
        every_n_epochs: Measure after so many epochs too; ``None`` only at the end.
        tokenizer: A local folder or hub name; ``None`` for the tokenizer of the data module.
        verbose: Whether to print the line.

    Raises:
        ConfigurationError: If an argument is out of range, the file cannot be read, there is no tokenizer, the module
            holds no model that reads text, or the strategy shards the model.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Forgetting("general.txt")])  # doctest: +SKIP
    """

    def __init__(
        self,
        text: str | os.PathLike[str],
        column: str = "text",
        max_texts: int | None = 256,
        max_length: int = 128,
        batch_size: int = 32,
        neighbours: int = 10,
        every_n_epochs: int | None = None,
        tokenizer: str | None = None,
        verbose: bool = True,
    ) -> None:
        check_arguments(Forgetting, locals())
        # Rankings of fewer than three texts mean nothing.
        least = {"max_texts": 3, "max_length": 3, "batch_size": 1, "neighbours": 1, "every_n_epochs": 1}
        for name, value in least.items():
            check_at_least(name, locals()[name], value)
        self.text = os.fspath(text)
        self.column = column
        self.max_texts = max_texts
        self.max_length = max_length
        self.batch_size = batch_size
        self.neighbours = neighbours
        self.every_n_epochs = every_n_epochs
        self.tokenizer = tokenizer
        self.verbose = verbose
        self.result: ForgettingResult | None = None
        """The latest comparison; ``None`` before the first."""
        self._original: Features | None = None
        self._fingerprint = ""
        self._is_restored = False
        self._examples: list[dict[str, Tensor]] = []
        self._padding = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the original over the texts, unless a checkpoint has brought the outcome."""
        self._check_strategy(trainer)
        self._encode(trainer)
        is_restored, self._is_restored = self._is_restored and trainer.ckpt_path is not None, False
        if is_restored:
            self._check_texts()
            return
        if trainer.ckpt_path is not None:
            warn_in_run(
                trainer,
                f"Forgetting compares with the weights of {os.fspath(trainer.ckpt_path)!r}, where this run begins: the "
                "checkpoint was saved without the callback, so the original is not known.",
            )
        self.result = None
        self._original = self._run(pl_module)
        self._fingerprint = fingerprint(self._examples)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where ``every_n_epochs`` asks for it."""
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the final weights, after other callbacks have set them."""
        self._measure(trainer, pl_module)
        if self.verbose:
            pl_module.print(str(self.result))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the weights that were tested, if the original is known."""
        if self._original is None:
            return
        self._encode(trainer)
        self._check_texts()
        self._measure(trainer, pl_module)
        if self.verbose:
            pl_module.print(str(self.result))

    def state_dict(self) -> dict[str, Any]:
        """What was kept of the original."""
        if self._original is None:
            return {}
        return {"layers": dict(self._original.layers), "loss": self._original.loss, "texts": self._fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        if state_dict:
            self._original = Features(dict(state_dict["layers"]), state_dict["loss"])
            self._fingerprint = state_dict["texts"]
            self._is_restored = True

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        assert self._original is not None
        features = self._run(module)
        if features.layers.keys() != self._original.layers.keys():
            raise ConfigurationError(
                f"Forgetting: the module has the layers {list(features.layers)}, and the original had "
                f"{list(self._original.layers)}: expected the same model."
            )
        self.result = compare(self._original, features, self.neighbours, trainer.global_step)
        for logger in trainer.loggers:
            logger.log_metrics(self.result.metrics(), step=trainer.global_step)

    def _run(self, module: LightningModule) -> Features:
        return extract(module, self._examples, self._padding, self.batch_size)

    def _encode(self, trainer: Trainer) -> None:
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        if self.tokenizer is not None:
            tokenizer = load_tokenizer(self.tokenizer, get_task("classification"))
        if not callable(tokenizer):
            raise ConfigurationError(
                "Forgetting has no tokenizer: expected tokenizer=<the folder or name of the model>, or a data module "
                "with a tokenizer, such as TextDataModule."
            )
        texts = read_texts(self.text, self.column, self.max_texts)
        self._examples = encode_texts(tokenizer, texts, self.max_length)
        padding = getattr(tokenizer, "pad_token_id", None)
        self._padding = 0 if padding is None else padding

    def _check_texts(self) -> None:
        if fingerprint(self._examples) != self._fingerprint:
            raise ConfigurationError(
                f"Forgetting(text={self.text!r}) cannot be resumed: the original was measured on other texts. Expected "
                "the same file, tokenizer, max_texts and max_length as before."
            )

    def _check_strategy(self, trainer: Trainer) -> None:
        whole = isinstance(trainer.strategy, either(SingleDeviceStrategy, DDPStrategy))
        if not whole or isinstance(trainer.strategy, either(DeepSpeedStrategy)):  # which is a DDPStrategy
            raise ConfigurationError(
                f"Forgetting cannot run with {type(trainer.strategy).__name__}, which may hold parts of the model "
                "only: expected a single device, or strategy='ddp'."
            )

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of a callback holds its configuration, not the run that it takes part in.
        run: dict[str, Any] = {
            "result": None,
            "_original": None,
            "_fingerprint": "",
            "_is_restored": False,
            "_examples": [],
        }
        return {k: v for k, v in vars(self).items() if k not in ("log", "log_dict")} | run
