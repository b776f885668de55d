"""Whatever a user types or points at is used as meant, or ends in one message that names it, with exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from projects import FIT, QUIET, checkpoint, fails

import lightning_freeze.cli
from lightning_freeze.cli import command_line
from lightning_freeze.cli.parsing.user_errors import message_for
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module import TransformerModule

pytestmark = [pytest.mark.usefixtures("project"), pytest.mark.filterwarnings("ignore:.*")]

ADD = "--trainer.callbacks+="
ARGUMENT = "--trainer.callbacks."
WRONG = [
    # A misspelt name: the nearest one.
    ([f"{ADD}GradualUnfreezin"], "trainer.callbacks: 'GradualUnfreezin' is not the name of a class. Did you mean "
     "'GradualUnfreezing'?"),
    ([f"{ADD}GradualUnfreezing", f"{ARGUMENT}trigger=EpochTriger"], "Did you mean 'EpochTrigger'?"),
    ([f"{ADD}GradualUnfreezing", f"{ARGUMENT}trigger=EpochTrigger(2)"], "{class_path: EpochTrigger, init_args: {...}}"),
    ([f"{ADD}LISA", f"{ARGUMENT}steps=3"], "LISA has no argument 'steps': expected one of 'activated_"),
    ([f"{ADD}LayerFreezing", f"{ARGUMENT}layer=3"], "LayerFreezing has no argument 'layer'. Did you mean 'layers'?"),
    (["--model.optimizer=Adm"], "model.optimizer: 'Adm' is not the name of a class. Did you mean 'Adam'?"),
    (["--model.lr_scheduler=CosineAnneling"], "Did you mean 'CosineAnnealingLR'?"),
    (["--trainer.logger=WandbLoger"], "Did you mean 'WandbLogger'?"),
    # A value of another type.
    ([f"{ADD}GradualUnfreezing", f"{ARGUMENT}layers_per_phase=two"], "trainer.callbacks.layers_per_phase is 'two': "
     "expected a whole number."),
    (["--data.batch_size=many"], "data.batch_size is 'many': expected a whole number."),
    (["--data.split=[0.5,0.5]"], "data.split is [0.5, 0.5]: expected a list of 3."),
    (["--model.pooling=max"], "model.pooling is 'max': expected one of 'mean', 'cls', 'last', 'none'."),
    (["--model.optimizer=torch.nn.Linear"], "'torch.nn.Linear' is no Optimizer."),
    ([f"{ADD}PhasedFineTuning"], "trainer.callbacks: PhasedFineTuning needs phases."),
    (["--trainer.max_time=5"], "trainer.max_time: `Timer(duration='5')` is not a valid duration."),
    (["--trainer.callbacks=[{GradualUnfreezing: {}}]"], "GradualUnfreezing is a class, not an option: expected "
     "{class_path: GradualUnfreezing, init_args: {...}}."),
    (["--model.lr_scheduler=StepLR"], "model.lr_scheduler needs step_size."),
    (["--data.labels=[no, yes]"], "data.labels is False: expected text. YAML reads no, off, on and yes as booleans. "
     "Put quotes around it."),
    ([f"{ADD}X", "--trainer.callbacks=[{class_path: LayerFreezing, init_args: {layers: '3', layers: '4'}}]"],
     "'X' is not the name of a class"),
    (["--trainer.callbacks=[{class_path: LayerFreezing, init_args: {layers: '3', layers: '4'}}]"], "stands twice"),
    (["--data.batch_size=4:8"], "data.batch_size is '4:8': expected a number."),
    (["--trainer.max_epochs", "1:30"], "trainer.max_epochs is '1:30': expected a number."),
    # Lightning, torch and transformers complain.
    (["--trainer.strategy=dpp"], "trainer.strategy is 'dpp'"),
    (["--trainer.strategy=deepspeed"], "trainer.strategy: To use the `DeepSpeedStrategy`, you must have DeepSpeed"),
    (["--trainer.accelerator=tpuu"], "trainer.accelerator is 'tpuu'"),
    (["--trainer.devices=-5"], "trainer.devices is '-5'"),
    (["--trainer.profiler=x"], "trainer.profiler is 'x'"),
    (["--model.optimizer.lr=-1"], "Invalid learning rate: -1.0"),
    (["--model.model_kwargs={num_hidden_layers: x}"], "model: Validation error for field 'num_hidden_layers'"),
    (["--seed_everything=-7"], "seed_everything is -7"),
    # Lightning does not complain.
    (["--trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val is -1: expected 0 or more."),
    (["--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches is 0: expected 1 or more."),
    # Only the whole name of an option counts: values are looked at by it.
    (["--trainer.max_ep=3"], "There is no option --trainer.max_ep. Did you mean 'trainer.max_epochs'?"),
    (["--conf=run.yaml"], "There is no option --conf. Did you mean 'config'?"),
    # Files.
    (["--config=nope.yaml"], "File does not exist"),
    (["--config=tiny"], "Path is not a file"),
    (["--config=tiny/model.safetensors"], "--config cannot be read as text"),
    (["--model.encoder=reviews.csv"], "model.encoder is 'reviews.csv', a file"),
    (["--trainer.default_root_dir=/proc/nope"], "'/proc/nope' (trainer.default_root_dir) cannot be used: No such file"),
    (["--ckpt_path=."], "(ckpt_path) cannot be used: Is a directory."),
    (["--ckpt_path=registry:x"], "ckpt_path is 'registry:x': Checkpoint file not found"),
    # Errors of libraries that say nothing about options.
    (["--model.lr_scheduler={class_path: StepLR, init_args: {step_size: 0}}", "--trainer.max_epochs=1",
      "--trainer.max_steps=-1"], "model.lr_scheduler: integer modulo"),
    (["--model.model_kwargs={quantization_config: x}"], "The encoder './tiny' could not be loaded: "),
    (["--model.optimizer=schedulefree.AdamWScheduleFree"], "Optimizer was not in train mode"),
    ([f"{ADD}EarlyStopping", f"{ARGUMENT}monitor=val_loss", f"{ARGUMENT}mode=mn"],
     "trainer.callbacks.mode is 'mn': `mode`"),
    ([f"{ADD}StochasticWeightAveraging", f"{ARGUMENT}swa_lrs=[0.1]", "--trainer.max_epochs=1",
      "--trainer.max_steps=-1"],
     "error: model.lr_scheduler: swa_lr must have"),
    (["--data.batch_size=" + "9" * 20], "data.batch_size is 99999999999999999999"),
    (["--data.labels=[]"], "data.labels is []: expected a list of class names."),
    # What has no effect.
    (["--model.optimizer.lr=0.1", "--model.optimizer=AdamW"], "--model.optimizer.lr stands before --model.optimizer"),
    (["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=1", "--model.warmup_ratio=0.3"],
     "TransformerModule(warmup_ratio=0.3) has no effect beside lr_scheduler: expected one of the two."),
    (["--model.optimizer.lr=0.1", "--model.optimizer=Adam"], "--model.optimizer.lr stands before --model.optimizer"),
    (["--model.num_classes=7"], "model.num_classes is taken from data.num_classes"),
]  # fmt: skip


@pytest.mark.fast_cases(15)
@pytest.mark.parametrize(("args", "words"), WRONG, ids=[" ".join(args)[:60] for args, _ in WRONG])
def test_wrong_value_is_one_short_message(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "fit", *QUIET, *FIT, "--trainer.max_steps=1", *args)
    assert words in message and len(message) < 450, message
    assert message.count("Did you mean") <= 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "No command is given: expected one of 'fit'"),
        (
            ["fitt"],
            "'fitt' is no command: expected one of 'fit', 'validate', 'test', 'predict', 'plan', 'advise', 'compare', "
            "'layers', 'cache', 'merge-checkpoint'.",
        ),
        (["cache", "prune", ".", "--max-size", "9" * 400 + "GiB"], "is no cache"),
    ],
)
def test_wrong_command(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in fails(capsys, *args)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert not [name for name in command_line.COMMANDS[4:] if f"`lightning-freeze {name}" not in text]


def config(callbacks: str = "", data: str = "", more: str = "") -> list[str]:
    Path("run.yaml").write_text(
        "trainer:\n  fast_dev_run: true\n  enable_progress_bar: no\n  enable_model_summary: off\n  accelerator: cpu\n"
        f"  callbacks: {callbacks or 'null'}\nmodel: {{encoder: ./tiny, task: classification}}\n"
        f"data: {{data: reviews.csv, {data}}}\n{more}"
    )
    return ["fit", "--config=run.yaml"]


def built(monkeypatch: pytest.MonkeyPatch, args: list[str]) -> Any:
    """The trainer of a command that ends well."""
    trainers = []
    build = command_line.FreezeCLI.instantiate_trainer

    def instantiate(self: Any, **kwargs: Any) -> Trainer:
        trainers.append(build(self, **kwargs))
        return trainers[-1]

    monkeypatch.setattr(command_line.FreezeCLI, "instantiate_trainer", instantiate)
    command_line.main(args)
    return trainers[0]


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("written", "meant"),
    [("0:3", "0:3"), ("1:3", "1:3"), ("3", "3"), ("':2'", ":2"), ("-1", "-1"), ("75%", "75%")],
)
def test_selector_in_yaml_is_what_is_written(written: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = f"[{{class_path: LayerFreezing, init_args: {{layers: {written}}}}}]"
    trainer = built(monkeypatch, config(form))
    assert [c.layers for c in trainer.callbacks if type(c).__name__ == "LayerFreezing"] == [meant]


def test_numbers_are_text_where_text_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = "[{train: 3, until: {class_path: EpochTrigger, init_args: {n: 1}}}, {train: 0:3}]"
    form = (
        f"[{{class_path: PhasedFineTuning, init_args: {{phases: {phases}}}}}, {{class_path: DiscriminativeLR, "
        "init_args: {factors: {0: 0.1, 1:3: 0.5, head: 1}}}]"
    )
    trainer = built(monkeypatch, config(form))
    found = {type(callback).__name__: callback for callback in trainer.callbacks}
    assert [phase.train for phase in found["PhasedFineTuning"].phases] == ["3", "0:3"]
    assert found["DiscriminativeLR"].factors == {"0": 0.1, "1:3": 0.5, "head": 1}


def test_labels_that_are_numbers() -> None:
    Path("numbers.csv").write_text("text,label\n" + "good film,1\nbad film,0\n" * 20)
    args = config(data="labels: [0, 1]")
    command_line.main([*args, "--data.data=numbers.csv"])


@pytest.mark.fast_cases(7)
@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"data": "labels: [no, yes]"}, "labels[0] is False: expected text. YAML reads no, off, on and yes as "
         "booleans. Put quotes around it"),
        ({"data": "labels: [0.5, 1]"}, "labels[0] is 0.5: expected text. Put quotes around it"),
        ({"callbacks": "[{class_path: LayerFreezing, init_args: {layers: on}}]"}, "layers is True: expected text"),
        ({"data": "batch_size: 4:8"}, "batch_size is '4:8': expected a number"),
        ({"data": "batch_size: 4, batch_size: 8"}, "the key 'batch_size' stands twice"),
        ({"more": "data: {data: other.csv}\n"}, "the key 'data' stands twice, in lines 8 and 9"),
        ({"more": "seed_everything: [\n"}, "line"),
        ({"more": "x: &a [*a, *b]\n"}, "undefined alias"),
        ({"more": "seed_everything: " + "[" * 3000 + "]" * 3000}, ""),
        ({"more": "sed_everything: 3\n"}, "There is no option sed_everything. Did you mean 'seed_everything'?"),
        ({"callbacks": "[{class_path: lightning_freeze.GradualUnfrezing}]"}, "Did you mean 'GradualUnfreezing'?"),
        ({"callbacks": "[{class_path: lightning_freze.GradualUnfreezing}]"}, "Did you mean 'GradualUnfreezing'?"),
        ({"callbacks": "[{class_path: GradualUnfreezing, init_arg: {}}]"}, "init_args: {...}} and no other keys."),
        ({"callbacks": "[null]"}, "trainer.callbacks is None: expected {class_path: NAME, init_args: {...}}."),
        ({"callbacks": "[{class_path: 3}]"}, "expected {class_path: NAME, init_args: {...}}."),
        ({"callbacks": "[{class_path: ModelCheckpoint, init_args: {train_time_interval: {hours: 1}}}]"}, "h:m:s"),
        ({"data": "labels: positive"}, "data.labels is 'positive': expected a list."),
    ],
)  # fmt: skip
def test_wrong_yaml_is_one_message(form: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, *config(**form))
    assert words in message and len(message) < 500, message


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("content", ["", "3", "text", "[1, 2]", "\x00", "{a: 1}", "!!python/name:os.system"])
def test_config_file_that_is_none(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.yaml").write_text(content)
    fails(capsys, "fit", "--config=odd.yaml")


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    "content", ["", "# trainer: {}\n", "- a\n", "trainer: {max_epochs: 1, max_epochs: 2}\n", "a: [\n"]
)
def test_message_about_a_config_file_names_it(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("first.yaml").write_text("seed_everything: 1\n")
    Path("odd.yaml").write_text(content)
    assert "--config odd.yaml: " in fails(capsys, "fit", "--config=first.yaml", "--config=odd.yaml", *FIT)


def test_class_of_another_kind(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.yaml").write_text("data: {class_path: torch.nn.Linear}\n")
    message = fails(capsys, "fit", "--config=odd.yaml", "--model.encoder=./tiny")
    assert message == "error: --config odd.yaml: data: 'torch.nn.Linear' is no LightningDataModule."


def test_section_of_a_config_file_is_a_map_or_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for written in ("3", "[1]"):
        Path("odd.yaml").write_text(f"trainer: {written}\n")
        assert "trainer is " in fails(capsys, "fit", "--config=odd.yaml", *FIT)
    Path("odd.yaml").write_text("trainer:\n#  max_epochs: 1\ndata:\nmodel:\n")
    command_line.main(["fit", "--config=odd.yaml", *FIT, *QUIET, "--trainer.fast_dev_run=true"])


def test_monitor_needs_restore_best_or_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    args = [f"{ADD}GradualUnfreezing", f"{ARGUMENT}monitor=val_loss"]
    message = fails(capsys, "fit", *QUIET, *FIT, "--trainer.fast_dev_run=true", *args)
    assert "monitor" in message and "restore_best" in message


def corrupt_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nope"}')


def cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


def config_of_other_types(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 0}))


def corrupt_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    "spoil",
    [
        *(corrupt_config, unknown_type, config_of_other_types, cut_weights, no_tokenizer, corrupt_tokenizer),
    ],
)
def test_corrupt_model_folder_is_one_message(
    spoil: Callable[[Path], None], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project / "broken"
    folder.mkdir()
    for path in Path("tiny").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    spoil(folder)
    fails(capsys, "fit", *QUIET, *FIT, "--model.encoder=./broken", "--trainer.fast_dev_run=true")


def test_links_and_devices_as_data_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.csv").symlink_to("nowhere.csv")
    os.mkfifo("pipe.csv")
    assert "a link to 'nowhere.csv', which does not exist" in fails(capsys, "fit", *FIT, "--data.data=broken.csv")
    assert "no regular file" in fails(capsys, "fit", *FIT, "--data.data=pipe.csv")
    assert "no regular file" in fails(capsys, "fit", *FIT, "--data.data=/dev/zero")


@pytest.mark.slow
def test_checkpoint_of_another_shape_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    command_line.main(["fit", *FIT, *QUIET, "--trainer.max_epochs=1"])
    content = torch.load(checkpoint(), weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("classifier.weight"))
    content["state_dict"][name] = torch.zeros(5, 16)
    torch.save(content, "other.ckpt")
    capsys.readouterr()
    message = fails(capsys, "test", *FIT, *QUIET, "--ckpt_path=other.ckpt")
    assert "ckpt_path" in message and "size mismatch" in message
    torch.save({"state_dict": content["state_dict"]}, "bare.ckpt")
    fails(capsys, "fit", *FIT, *QUIET, "--trainer.max_steps=2", "--ckpt_path=bare.ckpt")
    torch.save([1, 2], "list.ckpt")
    assert "not a checkpoint" in fails(capsys, "test", *FIT, *QUIET, "--ckpt_path=list.ckpt")
    content["hyper_parameters"] = {"width": 3}
    torch.save(content, "foreign.ckpt")
    assert "foreign.ckpt" in fails(capsys, "test", *FIT, *QUIET, "--ckpt_path=foreign.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loss", "weights"])
def test_run_that_diverged_is_not_praised(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = TransformerModule.training_step

    def diverges(self: TransformerModule, batch: Any, batch_idx: int) -> Any:
        loss = step(self, batch, batch_idx)
        if kind == "weights":
            with torch.no_grad():
                next(self.parameters()).fill_(float("inf"))
            return None
        return loss * float("nan")

    monkeypatch.setattr(TransformerModule, "training_step", diverges)
    message = fails(capsys, "fit", *FIT, *QUIET, "--trainer.max_epochs=1", code=1)
    assert "The run has diverged" in message and "No checkpoint of it is of use" in message


@pytest.mark.slow
def test_tracebacks_of_bugs_and_of_user_code_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (KeyError("x"), AttributeError("x"), TypeError("x"), RuntimeError("x"), ZeroDivisionError()):

        def broken(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(TransformerModule, "training_step", broken)
        with pytest.raises(type(error)):
            command_line.main(["fit", *FIT, *QUIET, "--trainer.fast_dev_run=true"])


def test_only_what_is_raised_on_purpose_is_a_message() -> None:
    from lightning_freeze.cache.store.sizes import parse_size, show_size

    def caught(work: Callable[[], object]) -> Exception:
        with pytest.raises(Exception) as error:
            work()
        return error.value

    assert message_for(caught(lambda: parse_size("x"))) is not None
    assert message_for(caught(lambda: show_size("x"))) is None  # type: ignore[arg-type]
    assert message_for(caught(lambda: int("x"))) is None
    assert message_for(caught(lambda: json.loads("{"))) is None, "a test called it, no library"
    assert message_for(caught(lambda: Trainer(max_epochs=-3))) is not None
    assert message_for(ConfigurationError("wrong")) == "wrong"


def test_debug_shows_the_traceback_of_a_parser_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_FREEZE_DEBUG", "1")
    with pytest.raises(Exception, match="batch_size"):
        command_line.main(["fit", *FIT, "--data.batch_size=many"])


class Attack:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("place", ["file", "url"])
def test_checkpoint_runs_no_code(
    place: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(project / "torch_home"))
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.1", "x": Attack()}, "bad.ckpt")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(project)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = "bad.ckpt" if place == "file" else f"http://127.0.0.1:{server.server_port}/bad.ckpt"
    try:
        with pytest.raises(SystemExit) as end:
            command_line.main(["fit", *FIT, *QUIET, "--trainer.max_steps=1", f"--ckpt_path={address}"])
    finally:
        server.shutdown()
        server.server_close()
    assert not Path("attacked").exists()
    assert end.value.code == 2 and "ckpt" in capsys.readouterr().err


@pytest.mark.slow
def test_predictions_are_not_written_through_a_link(capsys: pytest.CaptureFixture[str]) -> None:
    command_line.main(["fit", *FIT, *QUIET, "--trainer.max_epochs=1"])
    folder = Path("lightning_logs/version_1")
    folder.mkdir()
    Path("victim").write_text("kept")
    for name in ("predictions.csv", "predictions.csv.part"):
        (folder / name).symlink_to(Path("victim").absolute())
    command_line.main(["predict", *FIT, *QUIET, "--data.predict=reviews.csv", f"--ckpt_path={checkpoint()}",
                       "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.",
                       "--trainer.logger.version=version_1"])  # fmt: skip
    assert "predictions: " in capsys.readouterr().out
    assert Path("victim").read_text() == "kept"


@pytest.mark.slow
def test_main_can_be_imported_and_the_room_run() -> None:
    assert lightning_freeze.cli.main is command_line.main
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "lightning_freeze.cli", "fitt"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 2 and done.stderr.startswith("error: 'fitt' is no command")


def test_saved_yaml_can_be_read_by_any_yaml_reader(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["fit", *FIT, f"{ADD}GradualUnfreezing", "--print_config"])
    trigger = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"][0]["init_args"]["trigger"]
    assert trigger == {"class_path": "lightning_freeze.EpochTrigger", "init_args": {"n": 1}}
