"""Adapters of peft in a TransformerModule: what trains, what an option may be, and what a checkpoint brings back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from reviews import make_reviews, save_csv
from tiny_models import SIZES, block_of, save_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertModel

from lightning_freeze import (
    LISA,
    BlockCoordinate,
    ChainThaw,
    DiscriminativeLR,
    EpochTrigger,
    FrozenPrefixCache,
    GradualUnfreezing,
    LayerFreezing,
    ReinitTopLayers,
    plan_training,
)
from lightning_freeze.cli.command_line import main
from lightning_freeze.data import TextDataModule
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module import TransformerModule, split_decay

peft = pytest.importorskip("peft")

LORA: dict[str, Any] = {"method": "lora", "r": 2}
IN_BLOCKS = ["query", "value"]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "r": 2, "lora_dropout": 0.1},
    "dora": {"method": "lora", "r": 2, "use_dora": True},
    "ia3": {"method": "ia3"},
    "loha": {"method": "LoHa", "r": 2, "target_modules": IN_BLOCKS},
    "lokr": {"method": "lokr", "r": 2, "target_modules": IN_BLOCKS},
    "oft": {"method": "oft", "oft_block_size": 4, "target_modules": IN_BLOCKS},
    "ln_tuning": {"method": "ln-tuning", "target_modules": ["output.LayerNorm"]},
}


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": 1, "enable_checkpointing": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, callbacks=[*callbacks], **{**quiet, **defaults, **settings})


def module(encoder: Path, options: dict[str, Any] | None = None, **settings: Any) -> TransformerModule:
    torch.manual_seed(0)
    given = {"num_classes": 2, "labels": ["negative", "positive"], "optimizer": adamw, **settings}
    return TransformerModule(str(encoder), peft=LORA if options is None else options, **given)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2)


def weights(of: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in of.named_parameters()}


class Watching(Callback):
    """Notes in each epoch which parameters train, and from which block on backward runs."""

    def __init__(self) -> None:
        self.trains: list[set[str]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.trains.append(set())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.trains[-1] |= {name for name, p in pl_module.named_parameters() if p.grad is not None}


@pytest.fixture
def data(tiny_bert_dir: Path, tmp_path: Path) -> TextDataModule:
    csv = save_csv(tmp_path / "reviews.csv", make_reviews(24))
    return TextDataModule(str(tiny_bert_dir), train=str(csv), val=str(csv), batch_size=8)


@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("pooling", [None, "mean"])
@pytest.mark.parametrize("name", METHODS)
def test_adapters_and_the_head_unfreeze_layer_by_layer_and_nothing_else_moves(
    name: str, pooling: Any, tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    ours, watching = module(tiny_bert_dir, METHODS[name], pooling=pooling), Watching()
    given = {n for n, p in ours.named_parameters() if p.requires_grad}
    before = weights(ours)
    callbacks = [GradualUnfreezing(verbose=False), DiscriminativeLR(0.8, verbose=False), watching]
    trainer(tmp_path, *callbacks, max_epochs=5).fit(ours, datamodule=data)
    changed = {n for n, value in weights(ours).items() if not torch.equal(value, before[n])}
    assert changed <= given
    blocks = {"0", "1", "2", "3"}
    assert {block_of(n) for n in changed} - {"embeddings"} == {*blocks, "head"}
    for epoch, trains in enumerate(watching.trains):
        lowest = len(blocks) - epoch
        assert {block_of(n) for n in trains} - {"embeddings"} == {*map(str, range(lowest, 4)), "head"}


@pytest.mark.parametrize("options", [{"unfreeze_all": True}, {}])
def test_unfreezing_never_trains_a_base_weight(
    options: dict[str, Any], tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    ours = module(tiny_bert_dir)
    given = {n for n, p in ours.named_parameters() if p.requires_grad}
    before = weights(ours)
    trainer(tmp_path, GradualUnfreezing(verbose=False, **options), max_epochs=6).fit(ours, datamodule=data)
    assert {n for n, value in weights(ours).items() if not torch.equal(value, before[n])} <= given


@pytest.mark.slow
def test_the_cache_ends_below_the_first_block_with_adapters_that_train(
    tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    results = []
    for cache in (None, FrozenPrefixCache(verbose=False)):
        ours = module(tiny_bert_dir, {**LORA, "lora_dropout": 0.2}, pooling="mean", dropout=0.0)
        freezing = LayerFreezing("embeddings,:2", verbose=False)
        boundary: list[Any] = []

        class Boundary(Callback):
            def on_train_batch_end(self, trainer: Trainer, *_: Any, cache: Any = cache) -> None:
                boundary.extend([] if cache is None else [str(d) for d in cache.explain().values()])  # noqa: B023

        callbacks = [freezing, *([cache] if cache else []), Boundary()]
        torch.manual_seed(1)
        trainer(tmp_path, *callbacks, max_epochs=3).fit(ours, datamodule=data)
        results.append(weights(ours))
        if cache is not None:
            assert any(text.startswith("skip") for text in boundary), boundary
    assert all(torch.allclose(results[0][n], results[1][n], atol=1e-5) for n in results[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_checkpoint_resumes_exactly(tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path) -> None:
    def go(path: Path | None, *callbacks: Callback) -> dict[str, Tensor]:
        ours = module(tiny_bert_dir, pooling="mean", dropout=0.0, model_kwargs=NO_DROPOUT)
        gradual = GradualUnfreezing(warmup_steps=2, verbose=False)
        settings = {"max_epochs": 5, "enable_checkpointing": True}
        torch.manual_seed(1)
        trainer(tmp_path, gradual, *callbacks, **settings).fit(ours, datamodule=data, ckpt_path=path)
        return weights(ours)

    every = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    straight = go(None, every)
    for epoch in (0, 2, 3):
        resumed = go(tmp_path / f"epoch={epoch}.ckpt", ModelCheckpoint(dirpath=tmp_path / "again"))
        assert all(torch.equal(straight[n], resumed[n]) for n in straight)


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_a_module_is_loaded_from_a_checkpoint_with_its_adapters(
    tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    ours, fitting = module(tiny_bert_dir), trainer(tmp_path, max_epochs=1)
    fitting.fit(ours, datamodule=data)
    fitting.save_checkpoint(tmp_path / "it.ckpt")
    again = TransformerModule.load_from_checkpoint(tmp_path / "it.ckpt")
    assert all(torch.equal(value, weights(again)[n]) for n, value in weights(ours).items())
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in ours.named_parameters() if p.requires_grad
    }


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_adapters_are_exported_with_the_head_and_read_by_peft(
    tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    ours = module(tiny_bert_dir)
    trainer(tmp_path, max_epochs=1).fit(ours, datamodule=data)
    ours.model.save_pretrained(tmp_path / "adapters")
    torch.manual_seed(7)
    base = BertForSequenceClassification.from_pretrained(str(tiny_bert_dir), num_labels=2)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapters")).eval()
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, ours.eval()(**inputs))


def test_all_parts_that_no_checkpoint_gave_train(tmp_path: Path) -> None:
    config = DistilBertConfig(vocab_size=SIZES["vocab_size"], dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    ours = module(save_model(tmp_path / "distil", DistilBertModel(config)), {**LORA, "target_modules": ["q_lin"]})
    trains = {n.split("base_model.model.")[1].split(".")[0] for n, p in ours.named_parameters() if p.requires_grad}
    assert trains == {"distilbert", "pre_classifier", "classifier"}
    bert = BertForSequenceClassification(BertConfig(**SIZES)).bert
    bert.pooler = None
    ours = module(save_model(tmp_path / "no-pooler", bert))
    assert any("pooler" in n for n, p in ours.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "strategy",
    [
        ChainThaw(EpochTrigger(1), restore_best=False, verbose=False),
        BlockCoordinate(interval=2, embeddings=True, verbose=False),
        LISA(1, interval=2, verbose=False),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_strategies_pass_over_layers_without_adapters(
    strategy: Callback, tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    ours = module(tiny_bert_dir)
    given = {n for n, p in ours.named_parameters() if p.requires_grad}
    before = weights(ours)
    trainer(tmp_path, strategy, max_epochs=6).fit(ours, datamodule=data)
    changed = {n for n, value in weights(ours).items() if not torch.equal(value, before[n])}
    assert changed <= given
    assert len({block_of(n) for n in changed}) > 2


def test_frozen_weights_below_adapters_are_not_initialised_again(
    tiny_bert_dir: Path, data: TextDataModule, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="layers that PEFT keeps frozen"):
        trainer(tmp_path, ReinitTopLayers(verbose=False)).fit(module(tiny_bert_dir), datamodule=data)


def test_the_head_of_a_language_model_stays_frozen(tiny_gpt2_dir: Path) -> None:
    ours = TransformerModule(str(tiny_gpt2_dir), "causal-lm", peft=LORA)
    assert all("lora_" in n for n, p in ours.named_parameters() if p.requires_grad)
    assert isinstance(ours.model, peft.PeftModelForCausalLM)


def test_vectors_that_scale_activations_do_not_decay(tiny_bert_dir: Path) -> None:
    ours = module(tiny_bert_dir, METHODS["ia3"])
    names = {id(p): n for n, p in ours.named_parameters()}
    groups = {group["name"]: [names[id(p)] for p in group["params"]] for group in split_decay(ours)}
    assert any("ia3_l" in n for n in groups["no_decay"])
    assert not any("ia3_l" in n for n in groups["decay"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 8}, "peft lacks 'method'"),
        ({"method": "lorra"}, "unknown method 'lorra'.*Did you mean 'lora'"),
        ({"method": "prompt_tuning", "num_virtual_tokens": 4}, "puts no adapters into the blocks"),
        ({"method": "adalora"}, "needs calls of its own in each training step"),
        ({"method": "lora", "rank": 8}, "'rank' is no option of the method 'lora'"),
        ({"method": "lora", "lora_alhpa": 8}, "Did you mean 'lora_alpha'"),
        ({"method": "lora", "r": "8"}, "r is '8': expected a whole number. Did you mean 8"),
        ({"method": "lora", "r": 0}, "peft: .*r.* should be a positive integer"),
        ({"method": "lora", "task_type": "SEQ_CLS"}, "'task_type' is not an option here"),
        ({"method": "lora", "target_modules": ["query", "vlaue"]}, "holds 'vlaue'.*Did you mean 'value'"),
        ({"method": "lora", "modules_to_save": ["clasifier"]}, "Did you mean 'classifier'"),
        ({"method": "loha", "r": 2, "target_modules": "nothing"}, "No modules were targeted for adaptation"),
    ],
)
def test_wrong_options_name_the_nearest_right_one(options: dict[str, Any], words: str, tiny_bert_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        module(tiny_bert_dir, options)


def test_an_encoder_whose_names_peft_does_not_know() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    with pytest.raises(ConfigurationError, match=r"expected target_modules, .*'linear1', 'linear2'"):
        TransformerModule(encoder, num_classes=2, peft=LORA)
    ours = TransformerModule(encoder, num_classes=2, peft={**LORA, "target_modules": ["linear1", "linear2"]})
    trains = {n for n, p in ours.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "classifier" in n for n in trains)


def test_an_encoder_that_has_adapters_already(tiny_bert_dir: Path) -> None:
    adapted = module(tiny_bert_dir).model
    with pytest.raises(ConfigurationError, match="has adapters of peft already"):
        TransformerModule(adapted, num_classes=2, peft=LORA)


def test_without_peft_the_message_names_the_extra(tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'lightning-freeze\[peft\]'"):
        module(tiny_bert_dir)


@pytest.mark.slow
def test_a_plan_counts_the_adapters_that_train(tiny_bert_dir: Path, data: TextDataModule) -> None:
    ours = module(tiny_bert_dir)
    plan = plan_training(ours, [GradualUnfreezing()], datamodule=data, max_epochs=5)
    adapters = {n: p.numel() for n, p in ours.named_parameters() if "lora_" in n}
    last = {layer.name: layer for layer in plan.phases[-1].layers}
    for number in range(4):
        assert last[str(number)].trainable == sum(size for n, size in adapters.items() if f".layer.{number}." in n)
    assert last["embeddings"].trainable == 0
    assert plan.full is not None, plan.notes
    assert plan.full.gradients == 4 * sum(p.numel() for p in ours.parameters() if p.requires_grad)


@pytest.mark.slow
def test_from_yaml(tiny_bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    csv = save_csv(tmp_path / "reviews.csv", make_reviews(24))
    (tmp_path / "config.yaml").write_text(
        f"model: {{encoder: {tiny_bert_dir}, peft: {{method: lora, r: 2}}}}\n"
        f"data: {{class_path: TextDataModule, init_args: {{data: {csv}}}}}\n"
        "trainer: {max_epochs: 1, accelerator: cpu, callbacks: [{class_path: GradualUnfreezing}]}\n"
    )
    with pytest.warns(UserWarning, match="reaches the last one"):
        main(["fit", "--config=config.yaml"])
    (path,) = tmp_path.rglob("*.ckpt")
    main(["test", "--config=config.yaml", f"--ckpt_path={path}"])
