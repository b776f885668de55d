"""Weight decay spares norms and biases; the default schedule rises and falls linearly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from reviews import make_reviews, save_csv
from torch import nn

from lightning_freeze.data import TextDataModule
from lightning_freeze.module import TransformerModule
from lightning_freeze.module.optim import DefaultAdamW, build_optimizer, linear_warmup_decay, split_decay


class ScaleNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 2))


def network() -> nn.Module:
    first = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = first.weight
    return nn.Sequential(nn.Embedding(5, 4), first, nn.LayerNorm((2, 2)), ScaleNorm(), tied)


def test_norms_and_biases_do_not_decay() -> None:
    module = network()
    groups = split_decay(module)
    assert [group["name"] for group in groups] == ["decay", "no_decay"]
    assert {id(p) for p in groups[0]["params"]} == {id(module[0].weight), id(module[1].weight)}
    assert groups[1]["weight_decay"] == 0.0


def test_frozen_and_shared_parameters_stand_in_one_group() -> None:
    module = network().requires_grad_(False)
    parameters = [parameter for group in split_decay(module) for parameter in group["params"]]
    assert sorted(map(id, parameters)) == sorted(map(id, module.parameters()))


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        (lambda params: torch.optim.AdamW(params, weight_decay=0.3), ["decay", "no_decay"]),
        (lambda params: torch.optim.SGD(params, lr=0.1), ["decay", "no_decay"]),
        (lambda params: torch.optim.LBFGS(params), [None]),
    ],
)
def test_optimizers_with_and_without_weight_decay(factory: Callable[[Any], Any], names: list[str]) -> None:
    optimizer = build_optimizer(factory, network())
    assert [group.get("name") for group in optimizer.param_groups] == names


def test_the_users_decay_holds_where_it_should() -> None:
    optimizer = build_optimizer(lambda params: torch.optim.AdamW(params, weight_decay=0.3), network())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_a_wrong_setting_keeps_its_own_message() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate"):
        build_optimizer(lambda params: torch.optim.AdamW(params, lr=-1.0), network())


def rates(total: int, warmup: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = linear_warmup_decay(optimizer, total, warmup)
    values = []
    for _ in range(total + 1):
        values.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return values


def test_linear_warmup_and_decay() -> None:
    assert rates(10, 0.2) == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])
    assert rates(4, 0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates(1, 0.1) == pytest.approx([1.0, 0.0])


def test_a_run_without_an_end() -> None:
    with pytest.raises(MisconfigurationException, match=r"no known end: expected trainer\.max_epochs"):
        linear_warmup_decay(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), float("inf"), 0.1)


def from_flags(encoder: Path, *flags: str) -> torch.optim.Optimizer:
    """Build the optimizer that the command line builds."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(TransformerModule, "model")
    given = [f"--model.optimizer{flag}" for flag in flags]
    config = parser.parse_args([f"--model.encoder={encoder}", "--model.num_classes=2", *given])
    again = parser.parse_string(parser.dump(config))  # as a saved config is read
    module: TransformerModule = parser.instantiate_classes(again).model
    return build_optimizer(module.optimizer_factory, module)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "NAdam", "Adagrad", "transformers.Adafactor"])
def test_a_class_that_is_named_has_its_own_defaults(name: str, tiny_bert_dir: Path) -> None:
    optimizer = from_flags(tiny_bert_dir, f"={name}")
    found = transformers.Adafactor if "." in name else getattr(torch.optim, name)
    assert type(optimizer) is found
    assert optimizer.defaults == found([nn.Parameter(torch.zeros(1))]).defaults


@pytest.mark.parametrize("flags", [["=Adam", ".lr=0.25"], [".lr=0.25", "=Adam"]], ids=["after", "before"])
def test_what_was_given_is_added(flags: list[str], tiny_bert_dir: Path) -> None:
    defaults = from_flags(tiny_bert_dir, *flags).defaults
    assert (defaults["lr"], defaults["weight_decay"], defaults["eps"]) == (0.25, 0.0, 1e-8)


@pytest.mark.parametrize("given", ["5e-5", "1e-3"])
def test_what_was_given_is_added_even_if_it_is_a_default(given: str, tiny_bert_dir: Path) -> None:
    assert from_flags(tiny_bert_dir, "=SGD", f".lr={given}").defaults["lr"] == float(given)


def test_the_default_optimizer(tiny_bert_dir: Path) -> None:
    for optimizer in (from_flags(tiny_bert_dir), DefaultAdamW([nn.Parameter(torch.zeros(1))])):
        assert type(optimizer) is torch.optim.AdamW
        assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (5e-5, 0.01)
    changed = from_flags(tiny_bert_dir, ".lr=0.25", ".betas=[0.8, 0.9]").defaults
    assert (changed["lr"], changed["weight_decay"], changed["betas"]) == (0.25, 0.01, (0.8, 0.9))


def test_an_optimizer_that_sets_its_own_rate_has_no_schedule(tmp_path: Path, tiny_bert_dir: Path) -> None:
    module = TransformerModule(str(tiny_bert_dir), num_classes=2, optimizer=transformers.Adafactor)
    data = TextDataModule(str(tiny_bert_dir), train=str(save_csv(tmp_path / "a.csv", make_reviews(8))))
    trainer = Trainer(max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(module, data)
    assert trainer.lr_scheduler_configs == []
    assert trainer.callback_metrics["train_loss"].isfinite()


def test_a_factory_that_builds_something_else() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"optimizer returned a list: expected a torch\.optim\.Optimizer"
    ):
        build_optimizer(lambda params: list(params), network())  # type: ignore[arg-type, return-value]
