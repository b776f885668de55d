"""The Forgetting callback in real fits: what it measures, keeps, logs and leaves alone."""

from __future__ import annotations

import csv
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_freeze import Forgetting, FrozenPrefixCache, LayerFreezing, TextDataModule, TransformerModule
from lightning_freeze.cli.command_line import main

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
WORDS = ("the", "a", "film", "book", "plot", "it", "was", "and", "with", "for", "good", "bad", "dull", "great", "slow")


@pytest.fixture
def general(tmp_path: Path) -> Path:
    path = tmp_path / "general.txt"
    lines = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 4 + i % 5)) for i in range(40)]
    path.write_text("\n".join(lines) + "\n\n")
    return path


@pytest.fixture
def data(reviews_csv: Path, tiny_bert_dir: Path) -> TextDataModule:
    return TextDataModule(str(tiny_bert_dir), data=str(reviews_csv), split=(0.6, 0.2, 0.2), batch_size=8, seed=0)


def module_of(folder: Path, lr: float = 1e-4, **settings: Any) -> TransformerModule:
    torch.manual_seed(0)
    settings = {"num_classes": 2, "pooling": "mean", "dropout": 0.2} | settings
    return TransformerModule(str(folder), optimizer=lambda params: torch.optim.AdamW(params, lr=lr), **settings)


def fit(module: TransformerModule, data: TextDataModule, *callbacks: Any, **settings: Any) -> Trainer:
    trainer = Trainer(**{"max_epochs": 2, "callbacks": list(callbacks), "logger": False} | QUIET | settings)
    trainer.fit(module, data, ckpt_path=settings.pop("resume", None))
    return trainer


def test_frozen_layers_keep_everything_and_trained_ones_move(
    general: Path, data: TextDataModule, tiny_bert_dir: Path
) -> None:
    forgetting = Forgetting(general, verbose=False)
    fit(module_of(tiny_bert_dir), data, LayerFreezing("embeddings, 50%", verbose=False), forgetting)
    result = forgetting.result
    assert result is not None
    names = [layer.layer for layer in result.layers]
    assert names == ["embeddings", "0", "1", "2", "3"]
    assert [layer.l2 for layer in result.layers[:3]] == [0, 0, 0]
    assert all(layer.cka == pytest.approx(1) for layer in result.layers[:3])
    assert all(layer.l2 > 0 and 0 < layer.cka <= 1 and layer.relative_l2 > 0 for layer in result.layers[3:])
    assert 0 < result.ranking_correlation <= 1
    assert result.perplexity_before is None and result.step == 2 * 5


@pytest.mark.slow
def test_layers_that_the_cache_skips_are_measured_too(
    general: Path, data: TextDataModule, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    forgetting, freezing = Forgetting(general, verbose=False, every_n_epochs=1), LayerFreezing("embeddings, 50%")
    cache = FrozenPrefixCache(str(tmp_path / "cache"))
    module = module_of(tiny_bert_dir)
    trainer = fit(module, data, freezing, cache, forgetting, max_epochs=3)
    trainer.test(module, data, verbose=False)
    trainer.test(module, data, verbose=False)  # the general texts have been seen before
    assert cache.hit_rate > 0 and forgetting.result is not None
    assert [layer.l2 for layer in forgetting.result.layers[:3]] == [0, 0, 0]
    assert all(math.isfinite(number) for number in forgetting.result.metrics().values())


def test_in_a_trainer_of_the_other_namespace(general: Path, data: TextDataModule, tiny_bert_dir: Path) -> None:
    forgetting = Forgetting(general, verbose=False)
    pytorch_lightning.Trainer(max_epochs=1, callbacks=[forgetting], logger=False, **QUIET).fit(
        module_of(tiny_bert_dir), data
    )
    assert forgetting.result is not None and forgetting.result.ranking_correlation < 1


def test_a_strategy_that_divides_the_model_is_refused(general: Path) -> None:
    trainer = SimpleNamespace(strategy=object.__new__(DeepSpeedStrategy))
    with pytest.raises(MisconfigurationException, match="Forgetting cannot run with DeepSpeedStrategy"):
        Forgetting(general)._check_strategy(trainer)


def test_nothing_is_forgotten_where_nothing_trains(general: Path, data: TextDataModule, tiny_bert_dir: Path) -> None:
    forgetting = Forgetting(general, verbose=False)
    fit(module_of(tiny_bert_dir), data, LayerFreezing("embeddings, 100%", verbose=False), forgetting)
    result = forgetting.result
    assert result is not None
    assert result.ranking_correlation == pytest.approx(1, abs=1e-5) and result.neighbour_agreement == 1


def test_features_are_the_mean_hidden_states_of_transformers(
    general: Path, data: TextDataModule, tiny_bert_dir: Path
) -> None:
    forgetting = Forgetting(general, verbose=False)
    module = module_of(tiny_bert_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    text = general.read_text().splitlines()[3]
    module.eval()
    with torch.no_grad():
        states = module.model.encoder(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
    fit(module, data, forgetting, max_steps=1)
    kept = forgetting.state_dict()["layers"]
    texts = list(dict.fromkeys(line for line in general.read_text().splitlines() if line))
    row = texts.index(text)
    for features, state in zip(kept.values(), states, strict=True):
        torch.testing.assert_close(features[row], state[0].mean(0), rtol=1e-4, atol=1e-5)


def test_the_perplexity_of_a_language_model_before_and_after(
    general: Path, tiny_gpt2_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text\n" + "good good good good\n" * 16)
    data = TextDataModule(str(tiny_gpt2_dir), "causal-lm", train=str(path), batch_size=8)
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_dir)
    texts = list(dict.fromkeys(line for line in general.read_text().splitlines() if line))

    def perplexity(model: Any) -> float:
        losses, tokens = 0.0, 0
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                losses += float(model.eval()(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
        return math.exp(losses / tokens)

    forgetting = Forgetting(general, verbose=False, batch_size=7)
    module = module_of(tiny_gpt2_dir, task="causal-lm", num_classes=None, pooling=None, dropout=0.1)
    fit(module, data, forgetting)
    result = forgetting.result
    assert result is not None
    assert result.perplexity_before == pytest.approx(
        perplexity(AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)), rel=1e-4
    )
    assert result.perplexity_after == pytest.approx(perplexity(module.model), rel=1e-4)
    assert result.perplexity_after != pytest.approx(result.perplexity_before, rel=1e-3)
    assert "perplexity" in str(result)


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_with_the_callback_is_bit_equal_to_one_without(
    cached: bool, general: Path, data: TextDataModule, tiny_bert_dir: Path
) -> None:
    weights = []
    for extra in ([], [Forgetting(general, verbose=False, every_n_epochs=1)]):
        cache = [FrozenPrefixCache(verbose=False)] if cached else []
        module = module_of(tiny_bert_dir)
        fit(module, data, LayerFreezing("embeddings, 50%", verbose=False), *cache, *extra, max_epochs=3)
        assert all(c.reasons == {} and c.hit_rate > 0.4 for c in cache)
        weights.append([value.clone() for value in module.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_it_logs_by_epoch_and_at_the_end(
    general: Path, data: TextDataModule, tiny_bert_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forgetting = Forgetting(general, every_n_epochs=1)
    logger = CSVLogger(tmp_path, name="run")
    fit(module_of(tiny_bert_dir), data, forgetting, logger=logger, log_every_n_steps=1)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("forgetting/ranking_correlation")]
    assert len(rows) >= 2
    result = forgetting.result
    assert result is not None
    for name, value in result.metrics().items():
        assert float(rows[-1][name]) == pytest.approx(value), name
    assert f"Forgetting on {result.texts} general texts: similarity ranking" in capsys.readouterr().out


def test_a_resumed_run_compares_with_the_same_original(
    general: Path, data: TextDataModule, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    whole = Forgetting(general, verbose=False)
    first = fit(module_of(tiny_bert_dir), data, whole, default_root_dir=tmp_path, max_epochs=1)
    path = tmp_path / "first.ckpt"
    first.save_checkpoint(path)
    resumed = Forgetting(general, verbose=False)
    module = module_of(tiny_bert_dir)
    trainer = Trainer(max_epochs=2, callbacks=[resumed], logger=False, **QUIET)
    trainer.fit(module, data, ckpt_path=str(path))
    for name, features in whole.state_dict()["layers"].items():
        assert torch.equal(features, resumed.state_dict()["layers"][name])
    assert whole.result is not None and resumed.result is not None
    assert resumed.result.layers[-1].l2 > 0
    assert resumed.result.step == 2 * whole.result.step


def test_a_resume_with_other_texts_is_refused(
    general: Path, data: TextDataModule, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    trainer = fit(module_of(tiny_bert_dir), data, Forgetting(general, verbose=False), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = Forgetting(general, verbose=False, max_texts=5)
    with pytest.raises(MisconfigurationException, match="cannot be resumed: the original was measured on other texts"):
        Trainer(max_epochs=2, callbacks=[other], logger=False, **QUIET).fit(
            module_of(tiny_bert_dir), data, ckpt_path=str(tmp_path / "a.ckpt")
        )


def test_a_resume_from_a_checkpoint_without_it_says_what_it_compares_with(
    general: Path, data: TextDataModule, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    trainer = fit(module_of(tiny_bert_dir), data, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match="Forgetting compares with the weights of .*a.ckpt"):
        Trainer(max_epochs=2, callbacks=[Forgetting(general, verbose=False)], logger=False, **QUIET).fit(
            module_of(tiny_bert_dir), data, ckpt_path=str(tmp_path / "a.ckpt")
        )


def test_a_test_of_a_checkpoint_measures_that_one(
    general: Path, data: TextDataModule, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    forgetting = Forgetting(general, verbose=False)
    trainer = Trainer(max_epochs=2, callbacks=[forgetting], logger=False, default_root_dir=tmp_path, **QUIET)
    module = module_of(tiny_bert_dir)
    trainer.fit(module, data)
    final = forgetting.result
    trainer.save_checkpoint(tmp_path / "final.ckpt")
    with torch.no_grad():
        for weight in module.model.encoder.parameters():
            weight.mul_(1.5)
    trainer.test(module, data, verbose=False)
    assert final is not None and forgetting.result is not None
    assert forgetting.result.layers[-1].l2 > final.layers[-1].l2
    # In another process the original comes with the checkpoint.
    loaded = Forgetting(general, verbose=False)
    Trainer(callbacks=[loaded], logger=False, **QUIET).test(
        module_of(tiny_bert_dir), data, ckpt_path=str(tmp_path / "final.ckpt"), verbose=False
    )
    assert loaded.result is not None
    assert loaded.result.layers == final.layers


def test_a_second_fit_has_its_own_original(general: Path, data: TextDataModule, tiny_bert_dir: Path) -> None:
    forgetting = Forgetting(general, verbose=False)
    module = module_of(tiny_bert_dir)
    fit(module, data, forgetting)
    before = forgetting.state_dict()["layers"]
    fit(module, data, forgetting, LayerFreezing("embeddings, 100%", verbose=False))
    assert forgetting.result is not None
    assert forgetting.result.ranking_correlation == pytest.approx(1, abs=1e-5)
    assert not torch.equal(list(before.values())[-1], list(forgetting.state_dict()["layers"].values())[-1])


@pytest.mark.slow
def test_it_works_from_yaml(
    general: Path, reviews_csv: Path, tiny_bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
model: {{encoder: {tiny_bert_dir}}}
data: {{class_path: TextDataModule, init_args: {{data: {reviews_csv}}}}}
trainer:
  max_epochs: 1
  logger: {{class_path: CSVLogger, init_args: {{save_dir: runs}}}}
  callbacks:
    - {{class_path: Forgetting, init_args: {{text: {general.name}}}}}
"""
    )
    main(["fit", f"--config={config}"])
    (metrics,) = tmp_path.glob("runs/**/metrics.csv")
    assert "forgetting/neighbour_agreement" in metrics.read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"text": "nowhere.txt"}, "The text file 'nowhere.txt' cannot be read"),
        ({"max_texts": 2}, "max_texts is 2: expected at least 3"),
        ({"neighbours": 0}, "neighbours is 0: expected at least 1"),
        ({"tokenizer": "./nowhere"}, "folder './nowhere' does not exist"),
    ],
)
def test_wrong_settings_are_refused_before_training(
    settings: dict[str, Any], problem: str, general: Path, data: TextDataModule, tiny_bert_dir: Path
) -> None:
    with pytest.raises(MisconfigurationException, match=problem):
        fit(module_of(tiny_bert_dir), data, Forgetting(**{"text": str(general), "verbose": False} | settings))


def test_a_file_with_fewer_than_three_texts_is_refused(
    data: TextDataModule, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "few.txt"
    path.write_text("good\ngood\nbad\n\n")
    with pytest.raises(MisconfigurationException, match="has 2 different texts: expected at least 3"):
        fit(module_of(tiny_bert_dir), data, Forgetting(path))


def test_a_pickled_callback_is_its_configuration(general: Path, data: TextDataModule, tiny_bert_dir: Path) -> None:
    forgetting = Forgetting(general, verbose=False)
    fit(module_of(tiny_bert_dir), data, forgetting)
    copy = pickle.loads(pickle.dumps(forgetting))
    assert copy.result is None and copy.state_dict() == {}
    assert copy.text == str(general)
