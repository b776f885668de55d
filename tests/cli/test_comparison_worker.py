"""The processes of a comparison: everything in its file is checked before the first fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects_to_compare import BASE, COMPARE

from lightning_freeze.cli.comparison_worker import forgetting_metric, prepare
from lightning_freeze.errors import ConfigurationError


@pytest.fixture(autouse=True)
def files(project: Path) -> None:
    Path("base.yaml").write_text(BASE)
    Path("compare.yaml").write_text(COMPARE)


def test_a_plan_acts_as_a_second_config_after_the_base() -> None:
    Path("base.yaml").write_text(BASE.replace("cpu}", "cpu, callbacks: [{class_path: DiscriminativeLR}]}"))
    Path("compare.yaml").write_text(
        """
base: base.yaml
plans:
  adds: {trainer.callbacks+: [{class_path: LayerFreezing, init_args: {layers: 0:2}}]}
  replaces: {trainer: {callbacks: [{class_path: LayerFreezing, init_args: {layers: head}}]}}
  both: {data: {init_args: {batch_size: 4}}, trainer.max_epochs: 7}
"""
    )
    configs = prepare(None, "compare.yaml")["configs"]
    callbacks = {
        name: [each["class_path"].rpartition(".")[2] for each in config["trainer"]["callbacks"]]
        for name, config in configs.items()
    }
    assert callbacks == {
        "adds": ["DiscriminativeLR", "LayerFreezing"],
        "replaces": ["LayerFreezing"],
        "both": ["DiscriminativeLR"],
    }
    assert configs["adds"]["trainer"]["callbacks"][1]["init_args"]["layers"] == "0:2"  # no number to the base of 60
    assert [configs[name]["data"]["init_args"]["batch_size"] for name in ("adds", "both")] == [8, 4]
    assert [configs[name]["trainer"]["max_epochs"] for name in ("adds", "both")] == [1, 7]


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base: base.yaml", "base: bse.yaml", "base is 'bse.yaml', .* Did you mean 'base.yaml'"),
        ("class_path: LayerFreezing", "class_path: LayerFreezin",
         "plan 'head_only': .*'LayerFreezin' is not the name of a class. Did you mean 'LayerFreezing'"),
        ("layers:", "layrs:", "plan 'head_only': .*no argument 'layrs'. Did you mean 'layers'"),
        ("  full:", "  full: {trainer.max_epoch: 3}", "plan 'full': .*max_epoch.*Did you mean 'trainer.max_epochs'"),
        ("  full:", "  full:\n  full:", "the key 'full' stands twice, in lines 6 and 7"),
        ("seeds: 2", "seeds: two", "seeds is 'two': expected a number of seeds"),
        ("seeds: 2", "forgetting: os.pathh", "forgetting is 'os.pathh', and 'os' has no 'pathh'. Did you mean 'path'"),
        ("seeds: 2", "seeds: [", "compare.yaml' is no YAML"),
    ],
)  # fmt: skip
def test_wrong_comparison_files(old: str, new: str, message: str, project: Path) -> None:
    text = Path("compare.yaml").read_text()
    assert old in text
    Path("compare.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigurationError, match=message):
        prepare(None, "compare.yaml")


@pytest.mark.parametrize("given", ["", "."])
def test_a_folder_is_no_comparison_file(given: str, project: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"--config '{given}' cannot be read: Is a directory."):
        prepare(None, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no_such_module.metric", "'no_such_module' cannot be imported: No module named 'no_such_module'."),
        ("os.sep", "cannot be called: expected a metric that takes the module and the data"),
        (
            {"class_path": "Forgetting", "init_args": {"text": "a.txt"}},
            "which is a callback: expected it in trainer.callb",
        ),
        ({"class_path": "fractions.Fraction", "init_args": {"x": 1}}, "forgetting: fractions.Fraction: .*'x'"),
    ],
)
def test_wrong_metrics_of_forgetting(given: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        forgetting_metric(given)  # type: ignore[arg-type]
