"""A small checkpoint and the base weights are the whole checkpoint, bit for bit."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from frozen_runs import Model, assert_same, content, omitted, run
from safetensors.torch import save_file
from toys import weights

from lightning_freeze import GradualUnfreezing, LayerFreezing, StepTrigger
from lightning_freeze.checkpoints.merging import merged, omitted_weights
from lightning_freeze.checkpoints.weight_files import read_weights, write_checkpoint
from lightning_freeze.errors import ConfigurationError


def both(tmp_path: Path, **options: bool) -> list[tuple[Path, Path]]:
    """Pairs of a small and a whole checkpoint of the same step."""
    for kind, save in (("small", False), ("whole", True)):
        torch.manual_seed(0)
        run(GradualUnfreezing(StepTrigger(2), verbose=False, save_frozen=save), path=tmp_path / kind)
    return [(path, tmp_path / "whole" / path.name) for path in sorted((tmp_path / "small").glob("*.ckpt"))]


def comparable(path: Path) -> dict:
    saved = content(path)
    saved["callbacks"] = {k: v for k, v in saved["callbacks"].items() if not k.startswith("ModelCheckpoint")}
    return saved


def test_merged_checkpoints_equal_whole_ones_bit_for_bit(tmp_path: Path) -> None:
    base = Model()
    for small, whole in both(tmp_path):
        result = merged(comparable(small), list(base.state_dict().items()), "the module")
        write_checkpoint(result, tmp_path / "merged.ckpt", overwrite=True)
        assert_same(comparable(tmp_path / "merged.ckpt"), comparable(whole))
        assert content(tmp_path / "merged.ckpt")["state_dict"]._metadata == content(whole)["state_dict"]._metadata
        assert abs((tmp_path / "merged.ckpt").stat().st_size - whole.stat().st_size) < 2000


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("kind", ["base.safetensors", "base.pt", "base.ckpt", "folder"])
def test_base_weights_are_found_by_content_in_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    small, whole = both(tmp_path)[0]
    named = {f"other.{name}": tensor for name, tensor in weights(Model().encoder).items()}
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
        half = dict(list(named.items())[: len(named) // 2])
        save_file(half, path / "model-00001-of-00002.safetensors")
        save_file({k: v for k, v in named.items() if k not in half}, path / "model-00002-of-00002.safetensors")
    elif kind.endswith("safetensors"):
        save_file(named, path)
    else:
        torch.save({"state_dict": named} if kind.endswith("ckpt") else named, path)
    result = merged(content(small), read_weights(path), kind)
    assert_same(dict(result["state_dict"]), dict(content(whole)["state_dict"]))
    # Weights with the same content, such as those of new norms, do not share memory.
    norms = [result["state_dict"][f"encoder.layers.{i}.norm.weight"].data_ptr() for i in range(3)]
    assert len(set(norms)) == 3


def test_a_legacy_file_beside_others_that_hold_no_weights_is_read(tmp_path: Path) -> None:
    state = weights(Model())
    for name in ("optimizer.bin", "training_args.bin"):
        torch.save(argparse.Namespace(lr=1), tmp_path / name)
    with pytest.raises(ConfigurationError, match=r"optimizer.bin' holds no weights that can be read"):
        list(read_weights(tmp_path))
    torch.save(state, tmp_path / "pytorch_model.pt")
    assert_same(dict(read_weights(tmp_path)), state)  # of another kind
    (tmp_path / "pytorch_model.pt").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_same(dict(read_weights(tmp_path)), state)
    with pytest.raises(ConfigurationError, match=r"training_args.bin' holds no weights that can be read"):
        list(read_weights(tmp_path / "training_args.bin"))


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    class Tied(Model):
        def __init__(self, **options: object) -> None:
            super().__init__(width=64, **options)
            self.encoder.layers[1].linear.weight = self.encoder.layers[0].linear.weight

    for kind, save in (("small", False), ("whole", True)):
        freezing = LayerFreezing("embeddings,:", verbose=False, save_frozen=save)
        the_trainer, _ = run(freezing, module=Tied(make_optimizers=lambda m: torch.optim.SGD(m.parameters(), lr=0.1)))
        the_trainer.save_checkpoint(tmp_path / f"{kind}.ckpt")
    result = merged(content(tmp_path / "small.ckpt"), list(weights(Tied()).items()), "the module")
    write_checkpoint(result, tmp_path / "merged.ckpt", overwrite=False)
    assert abs((tmp_path / "merged.ckpt").stat().st_size - (tmp_path / "whole.ckpt").stat().st_size) < 2000
    assert_same(content(tmp_path / "merged.ckpt")["state_dict"], content(tmp_path / "whole.ckpt")["state_dict"])


def test_other_weights_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    small, _ = both(tmp_path)[0]
    assert len(omitted_weights(content(small))) == len(omitted(small)) > 0
    with pytest.raises(ConfigurationError, match=r"of the 17 weights .* not in base.pt \(layers: embeddings, 0, 1"):
        merged(content(small), list(Model(base=3).state_dict().items()), "base.pt")


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"old")
    with pytest.raises(ConfigurationError, match=r"exists: expected another name, or --overwrite"):
        write_checkpoint({}, path, overwrite=False)

    def fails(content: object, file: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(ConfigurationError, match="No space left"):
        write_checkpoint({}, path, overwrite=True)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
