"""Every config under experiments/ runs, on a tiny model and a tiny file, and really takes in what it shares."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_tokenizers import byte_level
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from lightning_freeze.cli.command_line import main
from lightning_freeze.cli.comparison_worker import prepare
from lightning_freeze.cli.parsing.config_files import load_yaml
from lightning_freeze.comparison.fits import tasks_of
from lightning_freeze.comparison.settings import read_settings

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
#: Settings of scripts that fit plans one after another.
SEQUENCES = sorted(path for path in EXPERIMENTS.rglob("*.yaml") if path.stem in ("sequence", "warm", "measure_time"))
CONFIGS = sorted(
    path
    for path in EXPERIMENTS.rglob("*.yaml")
    if not path.name.startswith(("base", "compare")) and path not in SEQUENCES
)
COMPARISONS = sorted(EXPERIMENTS.rglob("compare*.yaml"))


def first_of_each_folder(paths: list[Path]) -> list[Any]:
    """Every path; all but the first of each folder are slow tests, since there are many."""
    firsts = {path.parent: path for path in reversed(paths)}
    return [path if firsts[path.parent] == path else pytest.param(path, marks=pytest.mark.slow) for path in paths]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture
def reviews(tmp_path) -> Path:
    """Sixty short sentences of twenty reviews or dialogues."""
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        groups = ["review", "dialogue", "source", "lineage"]
        writer.writerow(["text", "label", "sentiment", "strength", "rating", *groups])
        for i in range(60):
            text = f"it is {'good' if i % 2 else 'bad'} number {i}"
            label = ["negative", "positive"][i % 2]
            writer.writerow([text, label, label, ["strong", "weak"][i // 2 % 2], i % 9 - 4, *[i // 3] * len(groups)])
    return path


@pytest.fixture
def dialogues(tmp_path) -> Path:
    """Thirty questions with answers, as prompts with responses and as messages."""
    path = tmp_path / "dialogues.jsonl"
    rows = []
    for i in range(30):
        question, answer = f"Where is number {i}?", f"It is in house {i % 3}."
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"prompt": question, "response": answer, "messages": turns, "module": i // 2})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def tiny_chat_dir(tmp_path_factory) -> Path:
    """A language model of as many blocks as the configs freeze and more, and its tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    config = GPT2Config(vocab_size=400, n_embd=8, n_layer=16, n_head=2, n_positions=64, eos_token_id=2, bos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_minilm_dir(tiny_bert_dir, tmp_path_factory) -> Path:
    """A BERT of six blocks, as many as MiniLM has, because configs name them."""
    folder = tmp_path_factory.mktemp("models") / "tiny-minilm"
    shutil.copytree(tiny_bert_dir, folder)
    config = BertConfig.from_pretrained(folder)
    config.num_hidden_layers = 6
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_vit_dir(tmp_path_factory) -> Path:
    """A ViT for images of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    sizes = {"hidden_size": 8, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=8, patch_size=4, num_channels=1, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_wav2vec2_dir(tmp_path_factory) -> Path:
    """A Wav2Vec2 with a short stack of convolutions."""
    folder = tmp_path_factory.mktemp("models") / "tiny-wav2vec2"
    sizes = {"hidden_size": 8, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 8}
    convolutions = {"conv_dim": [8, 8], "conv_kernel": [20, 8], "conv_stride": [20, 4], "feat_extract_norm": "layer"}
    config = Wav2Vec2Config(
        **sizes,
        **convolutions,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
        layerdrop=0.0,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_classes(monkeypatch):
    """Configs name data modules of their folders, which the command finds in the repository root."""
    monkeypatch.syspath_prepend(EXPERIMENTS.parent)


def is_language_model(config: Path) -> bool:
    return yaml.safe_load((config.parent / "base.yaml").read_text())["model"].get("task") == "causal-lm"


def flags_of(config: Path, data: Path, encoder: Path) -> list[str]:
    """What replaces the data and the model of a config."""
    content = yaml.safe_load((config.parent / "base.yaml").read_text()) | yaml.safe_load(config.read_text())
    arguments = content.get("data", {}).get("init_args", {})
    if "train" in arguments:
        return [f"--model.encoder={encoder}", f"--data.train={data}", f"--data.test={data}"]
    makes_its_own_data = content.get("data", {}).get("class_path", "").startswith("experiments.")
    return [f"--model.encoder={encoder}", *([] if makes_its_own_data else [f"--data.data={data}"])]


def all_configs(comparison: Path) -> list[Path]:
    """The configs in the folder of a comparison, itself among them."""
    return sorted(comparison.parent.glob("*.yaml"))


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_review_experiments_are_there():
    expected = {"discriminative", "full", "gradual", "head_only", "plateau", "static"}
    assert {path.stem for path in CONFIGS if path.parent.name == "reviews"} == expected


@pytest.mark.fast_cases(5, "reviews/discriminative")
@pytest.mark.parametrize("config", first_of_each_folder(CONFIGS), ids=name)
def test_fast_dev_run(
    config,
    reviews,
    dialogues,
    tiny_minilm_dir,
    tiny_chat_dir,
    tiny_vit_dir,
    tiny_wav2vec2_dir,
    tmp_path,
    monkeypatch,
):
    monkeypatch.chdir(tmp_path)  # what a config writes, it writes here
    general = tmp_path / "experiments" / config.parent.name / "data" / "general.txt"
    general.parent.mkdir(parents=True)
    general.write_text("the film was good\nthe book was dull\nit is great\na slow plot\n")
    encoder, data = (tiny_chat_dir, dialogues) if is_language_model(config) else (tiny_minilm_dir, reviews)
    encoder = {"vision": tiny_vit_dir, "audio": tiny_wav2vec2_dir}.get(config.parent.name, encoder)
    flags = flags_of(config, data, encoder)
    own = yaml.safe_load(config.read_text())
    if config.parent.name == "vision":
        pytest.importorskip("sklearn")  # its images
    if "model.peft" in own:
        pytest.importorskip("peft")
    if "model.teacher" in own:  # the config beside it makes the teacher
        main(["fit", f"--config={config.parent / 'teacher.yaml'}", *flags, "--trainer.max_epochs=1"])
    main(["fit", f"--config={config}", *flags, "--trainer.fast_dev_run=true"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    ["autofreeze", "block_coordinate", "fisher_unfreezing", "freeze_out", "lisa", "slimfit", "spectrum_freezing"],
)
def test_a_strategy_trains_for_more_than_a_step(strategy, reviews, tiny_bert_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = EXPERIMENTS / "strategies" / f"{strategy}.yaml"
    length = "--data.batch_size=4", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1"
    main(["fit", f"--config={config}", f"--model.encoder={tiny_bert_dir}", f"--data.data={reviews}", *length])
    (metrics,) = tmp_path.rglob("metrics.csv")  # the checkpoint is of the best epoch, which need not be the last
    rows = list(csv.DictReader(metrics.open()))
    assert max(int(row["step"]) for row in rows) == 35  # 48 of 60 rows, in batches of 4, three times


@pytest.mark.fast_cases(5, "reviews/discriminative")
@pytest.mark.parametrize("config", first_of_each_folder(CONFIGS), ids=name)
def test_config_takes_in_its_base(config, capsys, monkeypatch):
    monkeypatch.chdir(EXPERIMENTS.parent)
    with pytest.raises(SystemExit) as exit_:
        main(["fit", f"--config={config}", "--print_config"])
    assert not exit_.value.code
    printed = leaves(yaml.safe_load(capsys.readouterr().out))
    own = yaml.safe_load(config.read_text())
    assert own.pop("config") == "base.yaml"
    base = yaml.safe_load((config.parent / "base.yaml").read_text())
    assert not [key for key, value in own.items() if key in base and isinstance(value, dict)]
    for key, value in leaves(base).items():
        if not any(key == mine or key.startswith(f"{mine}.") for mine in own) and not key.endswith("class_path"):
            assert printed[key] == value, key


@pytest.mark.slow
@pytest.mark.parametrize("comparison", COMPARISONS, ids=name)
def test_every_plan_of_a_comparison_is_a_config_that_can_be_built(
    comparison, reviews, dialogues, tiny_minilm_dir, tiny_chat_dir, tiny_vit_dir, tiny_wav2vec2_dir, monkeypatch
):
    monkeypatch.chdir(reviews.parent)
    for path in re.findall(r"experiments/\w+/data/[\w.-]+", "".join(map(Path.read_text, all_configs(comparison)))):
        stand_in = {".csv": reviews, ".jsonl": dialogues, ".txt": dialogues, "": tiny_minilm_dir}[Path(path).suffix]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        models = {"smollm2": tiny_chat_dir, "vit": tiny_vit_dir, "wav2vec2": tiny_wav2vec2_dir}
        if not Path(path).exists():
            Path(path).symlink_to(models.get(Path(path).name, stand_in))
    settings = read_settings(load_yaml(comparison.read_text()), comparison)
    prepared = prepare(None, str(comparison))
    assert set(prepared["configs"]) == set(prepared["settings"]["plans"])
    # A teacher is trained on one split, so students share it. In all other comparisons the seed decides the split.
    has_teacher = any(config["model"].get("teacher") for config in prepared["configs"].values())
    tasks = tasks_of(settings, prepared["configs"], reviews.parent)
    for seed in settings.seeds:
        splits = {each.config["data"]["init_args"]["split_seed"] for each in tasks if each.seed == seed}
        assert splits == {0 if has_teacher else seed}


def test_no_test_is_cut_to_its_first_rows():
    """Some files are sorted by label, so that their first rows are of one class: a share of a split is drawn."""
    limits = "limit_test_batches", "limit_val_batches"
    assert [f for f in EXPERIMENTS.glob("*/*.yaml") if any(limit in f.read_text() for limit in limits)] == []


def test_the_comparison_of_reviews_holds_all_its_configs():
    plans = {path.stem for path in CONFIGS if path.parent.name == "reviews"}
    settings = load_yaml((EXPERIMENTS / "reviews" / "compare.yaml").read_text())
    assert set(settings["plans"]) == plans and settings["seeds"] == 5


@pytest.mark.parametrize("settings", SEQUENCES, ids=name)
def test_every_plan_of_a_sequence_is_a_config_that_is_there(settings):
    content = yaml.safe_load(settings.read_text())
    assert content["baseline"] in content["plans"] and content["seeds"] == 5
    for files in content["plans"].values():
        for file in [files] if isinstance(files, str) else files:
            assert settings.parent / file in CONFIGS


@pytest.mark.parametrize("folder", ["strategies", "few_shot", "depth"])
def test_comparisons_of_one_folder_have_the_same_plans(folder):
    """The data or its size differs; every config that names no data is a plan of all of them."""
    comparisons = [yaml.safe_load(path.read_text()) for path in COMPARISONS if path.parent.name == folder]
    configs = {path.stem for path in CONFIGS if path.parent.name == folder and "data" not in path.read_text()}
    data = {path.stem for path in CONFIGS if path.parent.name == folder} - configs
    assert {each["base"].removesuffix(".yaml") for each in comparisons} == data
    assert all(set(each["plans"]) == configs for each in comparisons)
