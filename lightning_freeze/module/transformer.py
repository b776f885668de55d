"""TransformerModule: a LightningModule around any transformer encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_freeze.arguments import check_arguments, check_at_least, check_distinct, check_share, check_unused
from lightning_freeze.checkpoints.loading import filled
from lightning_freeze.module.adapters import add_adapters
from lightning_freeze.module.batch import unpack, word_starts
from lightning_freeze.module.build import BuildSettings, build_model, count_classes
from lightning_freeze.module.data_checks import check_data, has_responses
from lightning_freeze.module.distillation.objective import Distillation
from lightning_freeze.module.distillation.teacher import Lesson
from lightning_freeze.module.generation import ResponseOverlap, decode, generate, parts_with_room, split_prompts
from lightning_freeze.module.optim import DefaultAdamW, Interval, configure_optimizers
from lightning_freeze.module.pooling import Pooling
from lightning_freeze.module.prediction import predicted
from lightning_freeze.module.pretrained.heads import Head
from lightning_freeze.module.pretrained.limits import InputLimits, find_limits
from lightning_freeze.module.pretrained.padding import padding_effect
from lightning_freeze.module.pretrained.precision import warn_about_half_precision
from lightning_freeze.module.pretrained.special_tokens import prepare_inputs
from lightning_freeze.module.task_module import TaskModule
from lightning_freeze.module.tasks import TaskName, get_task
from lightning_freeze.run_warnings.record import warn_in_run


class TransformerModule(TaskModule):
    """Any transformer encoder, with the head, loss and metrics of a task.

    Logged are ``train_loss`` at each step, and at the end of each validation or test the loss and the task's metrics:
    ``val_loss``, ``val_accuracy``, ``val_f1``, ``test_accuracy`` and so on (``mse``, ``mae`` and ``pearson`` for
    regression, ``perplexity`` for language models). A causal language model that was given prompts with responses also
    writes responses in a test, by greedy search unless ``generate_kwargs`` says otherwise, and ``test_exact_match`` and
    ``test_token_f1`` compare them with the expected ones, as SQuAD does.

    A module can be loaded again with ``TransformerModule.load_from_checkpoint(path)``; one that was built around an
    ``nn.Module`` needs that module again: ``TransformerModule.load_from_checkpoint(path, encoder=module)``.

    Weights are float32, whatever precision the checkpoint was saved in, unless ``model_kwargs`` has a ``dtype``; a
    Trainer with ``precision="bf16-true"`` converts them. A head that is stored with the model and has named classes is
    matched with ``labels`` by name. Batches are padded with the model's own padding token, so that the logits of a text
    do not depend on the other texts of its batch.

    A training loss that is NaN or infinite is reported once, with its step (:attr:`first_nonfinite_step`); metrics of a
    model whose outputs are NaN are NaN, so that no checkpoint is chosen by them.

    Args:
        encoder: A local folder or hub name for the Auto classes of transformers, or any ``nn.Module``: a transformers
            model with a head of its own, or a bare encoder that returns ``(batch, sequence, hidden)``.
        task: The task to learn.
        num_classes: Number of classes. The CLI takes it from the data; not needed for regression and language models.
        labels: The names of the classes, in the order of their indices. They are stored in checkpoints, so that
            predictions can name them.
        pretrained: Whether to load the weights; false builds the model from its config alone.
        pooling: For an encoder without a head: how the vectors of the tokens become one vector for the example. It is
            their mean (``mean``, the default for modules), the first token's (``cls``) or the last token's (``last``);
            a dropout and a linear layer follow. With a folder or name, giving a pooling asks for this small head in
            place of the one from transformers. ``none`` takes a module's output as logits.
        hidden_size: Size of the encoder's output vectors, where neither its config nor its attributes have it.
        dropout: Dropout in the small head.
        optimizer: Takes parameter groups, returns an optimizer; by default ``AdamW(lr=5e-5, weight_decay=0.01)``. A
            class that is named has its own defaults. Norms and biases are in a group of their own, without weight
            decay; frozen parameters are included, so that the groups stay the same when layers are unfrozen.
        lr_scheduler: Takes an optimizer, returns a scheduler. By default the rate has a linear warm-up and then decays
            linearly to 0 at the end of the run, step by step. By default there is no schedule where an optimizer
            computes its own rate (``lr=None``, as Adafactor of transformers) or a strategy has a schedule of its own
            (:class:`ULMFiT`, :class:`FreezeOut`).
        lr_scheduler_interval: Whether a scheduler given here is stepped at each step or at each epoch.
        warmup_ratio: Share of all steps that are warm-up in the default schedule, at least 0 and below 1. Without that
            schedule it is not used.
        model_kwargs: Further arguments for ``from_pretrained``, for example ``attn_implementation``, ``dtype`` or any
            value of the model's config. Code that comes with a model is run only with ``trust_remote_code: true``.
        generate_kwargs: Arguments for ``generate``, by which language models predict. By default 64 new tokens, or as
            many as the model has positions for.
        peft: Adapters of the peft library, as in ``{"method": "lora", "r": 8}``: ``method``, and fields of the config
            of that method. The adapters and the head train, all other weights are frozen.
        teacher: A trained model to learn from: a checkpoint (``.ckpt``) of a TransformerModule, the folder or hub name
            of a model with a trained head, or a module that returns logits. It is never trained and in no checkpoint.
        distillation: How to learn from the teacher, as in ``{"temperature": 2.0, "alpha": 0.5}``; see
            :class:`~lightning_freeze.module.DistillationOptions`. Logged are
            ``train_hard_loss``, ``train_soft_loss`` and ``train_hidden_loss`` too.

    Raises:
        ConfigurationError: The encoder does not exist or lacks a head for the task, or an argument is wrong or has no
            effect.
    """

    def __init__(
        self,
        encoder: str | nn.Module,
        task: TaskName = "classification",
        num_classes: int | None = None,
        labels: list[str] | None = None,
        pretrained: bool = True,
        pooling: Pooling | None = None,
        hidden_size: int | None = None,
        dropout: float = 0.1,
        optimizer: OptimizerCallable = DefaultAdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Interval = "epoch",
        warmup_ratio: float = 0.1,
        model_kwargs: dict[str, Any] | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        peft: dict[str, Any] | None = None,
        teacher: str | nn.Module | None = None,
        distillation: Mapping[str, Any] | None = None,
    ) -> None:
        check_arguments(TransformerModule, locals(), excludes={"warmup_ratio": "lr_scheduler"}, own=("task",))
        super().__init__()
        if isinstance(encoder, os.PathLike):
            encoder = os.fspath(encoder)
        teacher = os.fspath(teacher) if isinstance(teacher, os.PathLike) else teacher
        self.save_hyperparameters(ignore=["encoder", "optimizer", "lr_scheduler", "teacher", "distillation"])
        labels = [str(label) for label in labels] if labels is not None else None
        self.hparams.update(num_classes=num_classes, labels=labels)
        if isinstance(encoder, str):
            self.hparams["encoder"] = encoder
        if isinstance(teacher, str):
            self.hparams.update(teacher=teacher, distillation=dict(distillation or {}))
        chosen = get_task(task)
        check_distinct("labels", labels)
        check_at_least("hidden_size", hidden_size, 1)
        check_share("dropout", dropout)
        check_share("warmup_ratio", warmup_ratio)
        if not chosen.is_language_model:
            reason = f"the task {chosen.name!r} generates no text"
            check_unused(reason, [("generate_kwargs", generate_kwargs or None, None)])
        self.labels = list(labels) if labels else None
        self.set_task(chosen, count_classes(chosen, num_classes, self.labels))
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.warmup_ratio = warmup_ratio
        self.generate_kwargs = {"max_new_tokens": 64, **(generate_kwargs or {})}
        self._measured_padding = False
        self._asked_for_dtype = not {"dtype", "torch_dtype"}.isdisjoint(model_kwargs or {})
        settings = BuildSettings(pretrained, pooling, hidden_size, dropout, dict(model_kwargs or {}))
        built = build_model(encoder, self.task, self.num_classes, self.labels, settings)
        self.model, self._head, self._takes_padding = built.model, built.head, built.takes_padding
        self._is_new = True
        self._distillation: Distillation | None = None
        if teacher is not None:
            lesson = Lesson(self.task, self.num_classes, self.labels, load_teacher_checkpoint)
            self._distillation = Distillation(teacher, distillation, lesson, self.model)
        else:
            check_unused("no teacher is given", [("distillation", distillation or None, None)])
        if peft is not None:
            self.model = add_adapters(self.model, peft, self.task)
        self.make_metrics()
        self.response_overlap = ResponseOverlap() if self.task.target == "next-token" else None

    @property
    def head_is_trained(self) -> bool:
        """Whether all outputs of the head come from stored weights, a checkpoint or a training run."""
        return self._head.trained

    @property
    def input_limits(self) -> InputLimits:
        """The longest sequence and the highest ids that the model can take."""
        return find_limits(self._backbone)

    def setup(self, stage: str) -> None:
        """Align the special tokens of model and tokenizer, and check that the data fits the model.

        Of a data module with a tokenizer (``tokenizer``), the encoded examples are checked where it shows them as a
        dict of lists (``encoded``) and does not check them itself (``checks_input_limits``), as TextDataModule does.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """
        if stage == "fit" and not self._asked_for_dtype:
            warn_about_half_precision(self, str(self.trainer.precision))
        if stage == "fit" and self._distillation is not None:
            self._distillation.prepare(self.model, self._is_new, getattr(self.trainer, "datamodule", None))
        examples = check_data(self._backbone, getattr(self.trainer, "datamodule", None), self._takes_padding)
        if examples is not None and not self.task.is_language_model and not self._measured_padding:
            self._measured_padding = True
            self._warn_about_padding(examples)

    def training_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the loss of one batch, that of its labels or that of a student, and the labels."""
        if self._distillation is None:
            return super().training_loss(batch)
        inputs, labels = self._inputs_and_labels(batch)
        loss, parts = self._distillation.loss(inputs, labels, self.model, lambda: self._evaluate(batch))
        self.log_dict({f"train_{name}": part for name, part in parts.items()}, batch_size=len(labels))
        return loss, labels

    def on_fit_start(self) -> None:
        """Report how a stored head was used, and move the teacher to the device."""
        super().on_fit_start()
        self._say_head_note()
        if self._distillation is not None:
            self._distillation.start(self.device)

    def on_fit_end(self) -> None:
        """Remember that the head is trained."""
        self._head, self._is_new = Head(trained=True), False

    def teardown(self, stage: str) -> None:
        """Close the files that keep the outputs of the teacher.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """
        if self._distillation is not None:
            self._distillation.end()

    def on_validation_start(self) -> None:
        """Report how a stored head was used."""
        self._say_head_note()

    on_test_start = on_validation_start
    on_predict_start = on_validation_start

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember that the weights come from a checkpoint, and fill in those that it leaves out.

        Args:
            checkpoint: What Lightning has read.

        Raises:
            ConfigurationError: If the checkpoint leaves out frozen weights and this module has others.
        """
        if isinstance(state := checkpoint.get("state_dict"), dict):
            checkpoint["state_dict"] = filled(state, self)
        self._head, self._is_new = Head(trained=True), False

    def on_test_epoch_start(self) -> None:
        """Reset the metrics, those of responses too."""
        super().on_test_epoch_start()
        if self.response_overlap is not None:
            with torch.inference_mode(False):
                self.response_overlap.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the metrics of the test data; a causal language model also responds to its prompts."""
        super().test_step(batch, batch_idx)
        self._score_responses(batch)

    def on_test_epoch_end(self) -> None:
        """Log how far the responses of a causal language model agree with the expected ones."""
        if self.response_overlap is not None and not self.response_overlap.is_empty:
            scores = self.response_overlap.compute()  # over all processes, so all log the same
            self.log_dict({f"test_{name}": value for name, value in scores.items()}, sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return predictions for one batch.

        Returns:
            ``predictions`` (class indices, zeros and ones for each label, numbers, or token indices),
            ``probabilities`` where the task has classes, ``labels`` (names, where they are known), ``index`` (the row
            of each example in its file) and ``text`` (the output of a language model; for prompts and messages of a
            data module the response alone, for texts also the text itself), each where it applies. For token
            classification, ``labels`` has one tag for each word where the batch tells the words
            (:func:`~lightning_freeze.module.batch.word_starts`), and one for each token where it does not.
        """
        inputs, _ = unpack(batch)
        index = inputs.pop("index", None)
        result: dict[str, Any]
        if self._can_generate:
            written = self._generate(inputs)
            begins = inputs["input_ids"].shape[1] if has_responses(getattr(self.trainer, "datamodule", None)) else 0
            result = {"predictions": written[:, begins:]}
            if self._tokenizer is not None:
                result["text"] = self._tokenizer.batch_decode(result["predictions"], skip_special_tokens=True)
        else:
            result = predicted(self(**inputs), self.task, self.labels, word_starts(batch))
        return result if index is None else {**result, "index": index}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over all parameters, frozen ones included, and the schedule."""
        return configure_optimizers(
            self, self.optimizer_factory, self.lr_scheduler_factory, self.lr_scheduler_interval, self.warmup_ratio
        )

    @property
    def _can_generate(self) -> bool:
        return self.task.is_language_model and callable(getattr(self.model, "generate", None))

    @property
    def _tokenizer(self) -> Any:
        return getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)

    def _generate(self, inputs: dict[str, Any], **defaults: Any) -> Tensor:
        inputs, settings = prepare_inputs(self._backbone, inputs), {**defaults, **self.generate_kwargs}
        return generate(self.model, inputs, settings, self.input_limits)

    def _score_responses(self, batch: Any) -> None:
        """Let the model respond to the prompts of a batch, if its examples begin with prompts."""
        inputs, labels = unpack(batch)
        overlap = self.response_overlap
        if overlap is None or not self._can_generate or labels is None or "input_ids" not in inputs:
            return
        prompts = split_prompts(inputs, labels)
        tokenizer, wanted = self._tokenizer, self.generate_kwargs["max_new_tokens"]
        for part in parts_with_room(prompts, self.input_limits.positions, wanted):
            written = self._generate(part.inputs, do_sample=False)[:, part.inputs["input_ids"].shape[1] :]
            overlap.update(decode(tokenizer, list(written)), decode(tokenizer, part.responses))

    def _warn_about_padding(self, examples: list[dict[str, Any]]) -> None:
        effect = padding_effect(self.model, self._logits, examples)
        if effect is not None:
            warn_in_run(
                self.trainer,
                f"{type(self._backbone).__name__} reads padding: the logits of a text change by {effect:.2g} when it "
                "is padded to the longest text, so predictions depend on the other texts of a batch. Expected "
                "batch_size=1 where that matters, or another encoder.",
            )

    def _say_head_note(self) -> None:
        if self._head.note is not None:
            rank_zero_info(self._head.note)
            self._head = Head(self._head.trained)


def load_teacher_checkpoint(path: str) -> TransformerModule:
    """Return the module in a checkpoint, to be a teacher; its own teacher is left out.

    Args:
        path: The file.
    """
    return TransformerModule.load_from_checkpoint(path, map_location="cpu", teacher=None, distillation=None)
