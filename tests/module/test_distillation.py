"""A student learns from a frozen teacher, which runs once for each sample, through real training runs."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from reviews import make_reviews, save_csv
from tiny_models import SIZES, save_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from lightning_freeze import FrozenPrefixCache, GradualUnfreezing, LayerStack, plan_training
from lightning_freeze.cli.command_line import main
from lightning_freeze.data import TextDataModule
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module import TransformerModule
from lightning_freeze.module.distillation.losses import hidden_loss, soft_loss
from lightning_freeze.module.tasks import get_task

LABELS = ["negative", "positive"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = {"num_hidden_layers": 2, **NO_DROPOUT}


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2)


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": 2, "enable_checkpointing": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, callbacks=[*callbacks], **{**quiet, **defaults, **settings})


def weights(of: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in of.named_parameters()}


def make_teacher(seed: int = 5) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(**{**SIZES, "num_hidden_layers": 4}, id2label=dict(enumerate(LABELS)))
    return BertForSequenceClassification(config)


def student(encoder: Path, teacher: Any, options: dict[str, Any] | None = None, **settings: Any) -> TransformerModule:
    torch.manual_seed(0)
    given = {"num_classes": 2, "labels": LABELS, "optimizer": adamw, "model_kwargs": SMALL, **settings}
    return TransformerModule(str(encoder), teacher=teacher, distillation=options, **given)


class Runs:
    """Counts the samples that a teacher runs on, and notes its modes and whether gradients were recorded."""

    def __init__(self, model: nn.Module) -> None:
        self.samples: list[int] = []
        self.modes: set[bool] = set()
        model.register_forward_hook(self._note)

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        self.samples.append(len(output.logits))
        self.modes |= {part.training for part in module.modules()} | {output.logits.requires_grad}


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append({n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("train_")})


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return save_csv(tmp_path / "reviews.csv", make_reviews(24))


@pytest.fixture
def data(tiny_bert_dir: Path, csv: Path) -> TextDataModule:
    return TextDataModule(str(tiny_bert_dir), train=str(csv), val=str(csv), batch_size=8)


def in_order(count: int = 24, length: int = 6) -> DataLoader[Any]:
    """Batches without padding in the same order in each epoch."""
    tokens = torch.randint(5, 20, (count, length), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[0] % 2} for row in tokens]
    return DataLoader(rows, batch_size=8)  # type: ignore[arg-type]


def test_the_teacher_runs_once_for_each_sample_and_never_trains(
    tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    teacher = make_teacher()
    before, runs = weights(teacher), Runs(teacher.train())
    ours = student(tiny_bert_dir, teacher, {"verify": 0})
    start = weights(ours)
    trainer(tmp_path, max_epochs=4).fit(ours, datamodule=data)
    assert sum(runs.samples) == 24
    assert runs.modes == {False}
    assert all(torch.equal(value, before[n]) for n, value in weights(teacher).items())
    assert any(not torch.equal(value, start[n]) for n, value in weights(ours).items())
    own = {id(p) for p in teacher.parameters()}
    assert not own & {id(p) for p in ours.parameters()}
    assert not own & {id(p) for group in ours.trainer.optimizers[0].param_groups for p in group["params"]}
    assert not any("teacher" in name for name in ours.state_dict())
    assert not any("teacher" in layer.name for layer in LayerStack(ours))


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("hidden_weight", [0.0, 0.5])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_kept_outputs_give_the_losses_of_a_teacher_that_runs_each_time(
    where: str, hidden_weight: float, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    results = []
    for options in ({"keep": False}, {"cache_dir": str(tmp_path / "kept") if where == "disk" else None}):
        teacher, losses = make_teacher(), Losses()
        runs = Runs(teacher)
        ours = student(tiny_bert_dir, teacher, {**options, "hidden_weight": hidden_weight})
        trainer(tmp_path, losses, max_epochs=3, log_every_n_steps=1).fit(ours, in_order())
        results.append((losses.seen, weights(ours), sum(runs.samples)))
    (seen, straight, ran), (again, kept, kept_ran) = results
    assert seen == again
    assert all(torch.equal(straight[n], kept[n]) for n in straight)
    assert (ran, kept_ran) == (72, 24 + 8), "one batch is compared with the teacher"


def test_a_later_run_reads_what_an_earlier_one_kept(tiny_bert_dir: Path, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path / "kept"), "verify": 0}
    for expected in (24, 0):
        teacher = make_teacher()
        runs = Runs(teacher)
        trainer(tmp_path).fit(student(tiny_bert_dir, teacher, options), in_order())
        assert sum(runs.samples) == expected
    other = make_teacher(seed=6)
    runs = Runs(other)
    trainer(tmp_path).fit(student(tiny_bert_dir, other, options), in_order())
    assert sum(runs.samples) == 24, "another teacher has outputs of its own"


def test_the_loss_is_that_of_the_paper(tiny_bert_dir: Path, tmp_path: Path) -> None:
    teacher, losses = make_teacher().eval(), Losses()
    ours = student(tiny_bert_dir, teacher, {"temperature": 3.0, "alpha": 0.7, "hidden_weight": 0.2})
    batch = next(iter(in_order()))
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        own = ours.model(**inputs, output_hidden_states=True)
        theirs = teacher(**inputs, output_hidden_states=True)
    soft = (theirs.logits / 3).softmax(-1)
    divergence = (soft * (soft.log() - (own.logits / 3).log_softmax(-1))).sum(-1).mean() * 9
    hard = nn.functional.cross_entropy(own.logits, batch["labels"])
    states = [output.hidden_states[-1].flatten(0, 1) for output in (own, theirs)]
    cosine = nn.CosineEmbeddingLoss()(*states, torch.ones(len(states[0])))
    trainer(tmp_path, losses, max_steps=1, max_epochs=-1, log_every_n_steps=1).fit(ours, in_order())
    seen = losses.seen[0]
    assert seen["train_soft_loss"] == pytest.approx(float(divergence), abs=1e-6)
    assert seen["train_hard_loss"] == pytest.approx(float(hard), abs=1e-6)
    assert seen["train_hidden_loss"] == pytest.approx(float(cosine), abs=1e-6)
    assert seen["train_loss"] == pytest.approx(float(0.7 * divergence + 0.3 * hard + 0.2 * cosine), abs=1e-6)


def test_soft_loss_is_zero_for_equal_outputs_and_leaves_out_what_has_no_label() -> None:
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("classification", (4, 3)), ("multilabel", (4, 3)), ("regression", (4, 1))):
        logits = torch.randn(shape, generator=generator)
        assert float(soft_loss(get_task(name), logits, logits.clone(), torch.zeros(4), 2.0)) == pytest.approx(
            0, abs=1e-6
        )
        assert float(soft_loss(get_task(name), logits, logits.flip(0), torch.zeros(4), 2.0)) > 0
    tokens, other = (torch.randn(2, 4, 5, generator=generator) for _ in range(2))
    labels = torch.tensor([[1, 2, -100, -100], [3, -100, 4, -100]])
    changed = other.clone()
    changed[labels == -100] = 7.0
    task = get_task("token-classification")
    assert torch.equal(soft_loss(task, tokens, other, labels, 2.0), soft_loss(task, tokens, changed, labels, 2.0))
    shifted = soft_loss(get_task("causal-lm"), tokens, other, labels, 1.0)
    counted = torch.tensor([[True, False, False], [False, True, False]])
    left, right = (each[:, :-1][counted].log_softmax(-1) for each in (tokens, other))
    assert float(shifted) == pytest.approx(float((right.exp() * (right - left)).sum() / 2), rel=1e-5)


def test_the_gradient_does_not_shrink_with_the_temperature() -> None:
    sizes = []
    for temperature in (10.0, 100.0):
        logits = torch.tensor([[0.3, -0.1, 0.2]], requires_grad=True)
        soft_loss(
            get_task("classification"), logits, torch.tensor([[0.1, 0.4, 0.0]]), torch.zeros(1), temperature
        ).backward()
        assert logits.grad is not None
        sizes.append(float(logits.grad.norm()))
    assert math.isclose(*sizes, rel_tol=0.02)


def test_hidden_loss_leaves_padding_out() -> None:
    student_states, teacher_states = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    changed = torch.where(mask[..., None] == 0, 9.0, student_states)
    assert torch.equal(hidden_loss(student_states, teacher_states, mask), hidden_loss(changed, teacher_states, mask))
    assert float(hidden_loss(teacher_states, teacher_states, None)) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_checkpoint_of_a_fit_is_a_teacher_and_its_classes_are_matched_by_name(
    tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    first = TransformerModule(str(tiny_bert_dir), num_classes=2, labels=LABELS, optimizer=adamw)
    fitting = trainer(tmp_path, max_epochs=3)
    fitting.fit(first, datamodule=data)
    fitting.save_checkpoint(tmp_path / "teacher.ckpt")
    path = str(tmp_path / "teacher.ckpt")
    ours, losses = student(tiny_bert_dir, path, {"alpha": 1.0}), Losses()
    trainer(tmp_path, losses, max_epochs=6, log_every_n_steps=1).fit(ours, datamodule=data)
    assert losses.seen[-1]["train_soft_loss"] < 0.5 * losses.seen[0]["train_soft_loss"]
    turned = student(tiny_bert_dir, path, labels=LABELS[::-1])
    turned._distillation.prepare(turned.model, True, None)  # type: ignore[union-attr]
    assert turned._distillation._teacher.columns.tolist() == [1, 0]  # type: ignore[union-attr]
    with pytest.raises(ConfigurationError, match="expected the same classes"):
        trainer(tmp_path).fit(student(tiny_bert_dir, path, labels=["bad", "good"]), in_order())


def test_a_folder_is_a_teacher(tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "teacher", make_teacher())
    ours = student(tiny_bert_dir, str(folder))
    trainer(tmp_path).fit(ours, datamodule=data)
    with pytest.raises(ConfigurationError, match="has no trained head for the classes 'negative', 'positive'"):
        trainer(tmp_path).fit(student(tiny_bert_dir, str(tiny_bert_dir)), datamodule=data)


def test_a_student_starts_from_the_first_blocks_of_its_teacher(
    tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    teacher = make_teacher()
    first: dict[str, Tensor] = {}

    class First(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            first.update(weights(pl_module.model))

    ours = student(tiny_bert_dir, teacher, {"start_from_teacher": True})
    trainer(tmp_path, First()).fit(ours, datamodule=data)
    theirs = weights(teacher)
    assert all(torch.equal(value, theirs[name]) for name, value in first.items())
    assert sum(".layer." in name for name in first) * 2 == sum(".layer." in name for name in theirs)
    trained = weights(ours)
    trainer(tmp_path, First(), max_epochs=1).fit(ours, datamodule=data)
    assert all(torch.equal(first[n.removeprefix("model.")], value) for n, value in trained.items()), "a second fit"


def test_adapters_of_a_student_that_starts_from_its_teacher(
    tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    teacher = make_teacher()
    options = {"start_from_teacher": True}
    ours = student(tiny_bert_dir, teacher, options, peft={"method": "lora", "r": 2}, model_kwargs=NO_DROPOUT)
    trainer(tmp_path, GradualUnfreezing(verbose=False), max_epochs=5).fit(ours, datamodule=data)
    theirs = weights(teacher)
    kept = {n: v for n, v in weights(ours).items() if ".base_layer." in n}
    assert len(kept) == 16
    for name, value in kept.items():
        assert torch.equal(value, theirs[name.split("base_model.model.")[1].replace(".base_layer", "")])


def test_a_run_that_resumes_is_the_straight_one(tiny_bert_dir: Path, tmp_path: Path) -> None:
    def go(path: Path | None, folder: str) -> dict[str, Tensor]:
        ours = student(tiny_bert_dir, make_teacher(), {"hidden_weight": 0.1, "start_from_teacher": True})
        keep = ModelCheckpoint(dirpath=tmp_path / folder, filename="{epoch}", save_top_k=-1)
        fitting = trainer(
            tmp_path, keep, GradualUnfreezing(layers_per_phase=2), max_epochs=3, enable_checkpointing=True
        )
        fitting.fit(ours, in_order(), ckpt_path=path)
        return weights(ours)

    straight = go(None, "one")
    assert torch.load(tmp_path / "one" / "epoch=0.ckpt", weights_only=True)["hyper_parameters"].get("teacher") is None
    for epoch in range(2):
        resumed = go(tmp_path / "one" / f"epoch={epoch}.ckpt", f"again-{epoch}")
        assert all(torch.equal(straight[n], resumed[n]) for n in straight)


def test_a_student_is_loaded_without_its_teacher(tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "teacher", make_teacher())
    ours, fitting = student(tiny_bert_dir, str(folder), {"temperature": 4.0}), trainer(tmp_path)
    fitting.fit(ours, datamodule=data)
    fitting.save_checkpoint(tmp_path / "student.ckpt")
    folder.rename(tmp_path / "gone")
    again = TransformerModule.load_from_checkpoint(tmp_path / "student.ckpt")
    assert again.hparams["distillation"] == {"temperature": 4.0}
    assert all(torch.equal(value, weights(again)[n]) for n, value in weights(ours).items())
    trainer(tmp_path).validate(again, datamodule=data, verbose=False)


def test_images(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    teacher = ViTForImageClassification(ViTConfig(num_hidden_layers=3, **sizes))
    small = ViTForImageClassification(ViTConfig(num_hidden_layers=1, **sizes))
    runs = Runs(teacher)
    options: Any = {"verify": 0, "hidden_weight": 1.0}
    ours = TransformerModule(small, "image-classification", 2, teacher=teacher, distillation=options)
    images = TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 2)
    trainer(tmp_path).fit(ours, DataLoader(images, batch_size=4))
    assert sum(runs.samples) == 8


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("task", ["token-classification", "causal-lm", "regression", "multilabel"])
def test_other_tasks(task: Any, tiny_bert_dir: Path, tiny_gpt2_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BertForTokenClassification

    torch.manual_seed(3)
    rows = [{"text": row["text"], "a": i % 2, "b": i % 3 == 0, "v": i / 7} for i, row in enumerate(make_reviews(16))]
    label = {"multilabel": ["a", "b"], "regression": "v"}.get(task, "a")
    csv = save_csv(tmp_path / "rows.csv", rows)
    encoder = tiny_gpt2_dir if task == "causal-lm" else tiny_bert_dir
    teacher: nn.Module
    classes = 2 if task in ("multilabel", "token-classification") else None
    config = BertConfig(**SIZES, num_labels=classes or 1)
    if task == "causal-lm":
        teacher = AutoModelForCausalLM.from_pretrained(str(encoder))
    elif task == "token-classification":
        teacher = BertForTokenClassification(config)
    else:
        teacher = BertForSequenceClassification(config)
    runs = Runs(teacher)
    ours = TransformerModule(str(encoder), task, classes, teacher=teacher, distillation={"verify": 1}, optimizer=adamw)
    if task == "token-classification":
        fit_data: Any = {"train_dataloaders": tagged()}
    else:
        columns = {} if task == "causal-lm" else {"label": label}
        fit_data = {"datamodule": TextDataModule(str(encoder), task, train=str(csv), batch_size=4, **columns)}
    trainer(tmp_path, max_epochs=3).fit(ours, **fit_data)
    assert sum(runs.samples) <= 16 + 4, "each once, and one batch is compared"


def tagged() -> DataLoader[Any]:
    """Rows of different lengths, padded to the longest of their batch, in an order of its own in each epoch."""

    def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        ids, labels = zip(*rows, strict=True)
        padded = nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
        return {
            "input_ids": padded,
            "attention_mask": (padded != 0).long(),
            "labels": nn.utils.rnn.pad_sequence(list(labels), batch_first=True, padding_value=-100),
        }

    rows = [(torch.arange(5, 8 + i % 5), torch.arange(3 + i % 5) % 2) for i in range(16)]
    rows = [(ids + i, labels) for i, (ids, labels) in enumerate(rows)]
    return DataLoader(rows, batch_size=4, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]


class Jumpy(nn.Module):
    """Logits that depend on the other samples of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.table(input_ids).mean(1)
        return logits - logits.mean(0)


def test_outputs_that_depend_on_the_batch_are_not_kept(tiny_bert_dir: Path, tmp_path: Path) -> None:
    rows = in_order().dataset
    shuffled = DataLoader(rows, batch_size=8, shuffle=True)
    with pytest.warns(UserWarning, match="outputs of the teacher are not kept: its logits for the same samples differ"):
        trainer(tmp_path).fit(student(tiny_bert_dir, Jumpy()), shuffled)


def test_beside_the_cache_of_the_frozen_prefix(tiny_bert_dir: Path, tmp_path: Path) -> None:
    results = []
    for cache in ([], [FrozenPrefixCache(verbose=False)]):
        ours = student(tiny_bert_dir, make_teacher(), {"hidden_weight": 0.1})
        gradual = GradualUnfreezing(layers_per_phase=1, verbose=False)
        trainer(tmp_path, gradual, *cache, max_epochs=4).fit(ours, in_order())
        results.append(weights(ours))
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


def test_a_plan_does_not_run_the_teacher(tiny_bert_dir: Path) -> None:
    teacher = make_teacher()
    runs = Runs(teacher)
    ours = student(tiny_bert_dir, teacher, {"hidden_weight": 0.1})
    plan = plan_training(ours, [GradualUnfreezing()], next(iter(in_order())), max_epochs=4)
    assert plan.full is not None, plan.notes
    assert not runs.samples


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 2.0}, "'temprature' is no option.*Did you mean 'temperature'"),
        ({"temperature": 0.0}, "temperature is 0.0: expected a finite number above 0"),
        ({"temperature": "3"}, "expected a number. Did you mean 3"),
        ({"alpha": 1.5}, "alpha is 1.5: expected a share from 0 to 1"),
        ({"alpha": 0.0}, "the teacher has no effect"),
        ({"hidden_weight": -1.0}, "hidden_weight is -1.0: expected"),
        ({"keep": False, "cache_dir": "x"}, "cache_dir has no effect with keep=False"),
        ({"max_memory": "4 parsecs"}, "no unit"),
    ],
)
def test_wrong_options_name_the_nearest_right_one(options: dict[str, Any], words: str, tiny_bert_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        student(tiny_bert_dir, make_teacher(), options)


def test_wrong_teachers(tiny_bert_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"distillation=.* has no effect: no teacher is given"):
        student(tiny_bert_dir, None, {"alpha": 0.7})
    with pytest.raises(ConfigurationError, match="does not exist: expected a checkpoint"):
        trainer(tmp_path).fit(student(tiny_bert_dir, str(tmp_path / "none.ckpt")), in_order())
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        trainer(tmp_path).fit(student(tiny_bert_dir, str(tmp_path / "text.ckpt")), in_order())
    model = make_teacher()
    with pytest.raises(ConfigurationError, match="teacher and encoder share parameters"):
        TransformerModule(model, num_classes=2, labels=LABELS, teacher=model)
    TransformerModule(copy.deepcopy(model), num_classes=2, labels=LABELS, teacher=model)
    wide = BertForSequenceClassification(BertConfig(**{**SIZES, "hidden_size": 32}, num_labels=2))
    with pytest.raises(ConfigurationError, match=r"The hidden of the teacher have the shape \(8, 6, 32\)"):
        trainer(tmp_path).fit(student(tiny_bert_dir, wide, {"hidden_weight": 1.0}), in_order())


@pytest.mark.slow
def test_from_yaml(
    tiny_bert_dir: Path,
    csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_model(tmp_path / "teacher", make_teacher())
    (tmp_path / "config.yaml").write_text(
        f"model: {{encoder: {tiny_bert_dir}, model_kwargs: {{num_hidden_layers: 2}}, teacher: {folder},\n"
        "  distillation: {temperature: 4, alpha: 0.7, start_from_teacher: true, cache_dir: kept}}\n"
        f"data: {{class_path: TextDataModule, init_args: {{data: {csv}}}}}\n"
        "trainer: {max_epochs: 2, accelerator: cpu}\n"
    )
    main(["fit", "--config=config.yaml", "--model.distillation.alpha=0.6"])
    (path,) = tmp_path.rglob("*.ckpt")
    assert torch.load(path, weights_only=True)["hyper_parameters"]["distillation"]["alpha"] == 0.6
    assert (tmp_path / "kept").is_dir()
    main(["test", "--config=config.yaml", f"--ckpt_path={path}"])
    main(["plan", "--config=config.yaml"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", "--config=config.yaml", "--model.distillation.alhpa=0.6"])
    assert "Did you mean 'alpha'?" in capsys.readouterr().err
