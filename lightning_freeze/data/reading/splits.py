"""Finds the training, validation, test and prediction splits of a saved dataset by their usual names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_freeze.data.reading.readers import saved_splits
from lightning_freeze.errors import ConfigurationError, listing

SPLITS = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
"""The names under which each split is found, the usual one first."""


def find_split(names: Sequence[str], wanted: str) -> str | None:
    """Return the split of a saved dataset that is meant, or None.

    A split with the usual name is preferred to one whose name begins with it, such as ``validation_matched``.

    Args:
        names: The splits that there are.
        wanted: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``, which takes the test split where there is no other.
    """
    known = ("predict", "prediction", *SPLITS["test"]) if wanted == "predict" else SPLITS[wanted]
    for usual in known:
        if (found := next((name for name in names if name.lower() == usual), None)) is not None:
            return found
    first_words = {name: re.split(r"[^a-z]", name.lower(), maxsplit=1)[0] for name in names}
    return next((name for name, word in first_words.items() if word in known), None)


def split_of_file(file: str, wanted: str) -> str | None:
    """Return the split to read from a saved dataset that is given for one purpose; None for a file without splits.

    Args:
        file: The file or folder.
        wanted: As for :func:`find_split`.

    Raises:
        ConfigurationError: It has several splits, and none is for this purpose.
    """
    names = saved_splits(file)
    found = find_split(names, wanted)
    if found is None and names:
        if len(names) > 1:
            raise ConfigurationError(
                f"The dataset {file!r} has no split for data.{wanted}: its splits are {listing(names)}. Expected one "
                f"named {SPLITS.get(wanted, ('predict', 'test'))[0]!r}, or the folder of one split "
                f"({file.rstrip('/')}/{names[0]})."
            )
        found = names[0]
    if found is not None and found not in (wanted, SPLITS.get(wanted, (wanted,))[0]):
        rank_zero_info(f"{file}: the split {found!r} is read for data.{wanted}.")
    return found


def splits_of_dataset(file: str) -> dict[str, str]:
    """Return the splits of a saved dataset by purpose, and report anything unusual in one line.

    Args:
        file: The folder.

    Returns:
        The names of the splits for ``"train"``, ``"val"`` and ``"test"``, where they are found; nothing where there is
        no split for training.

    Raises:
        ConfigurationError: The dataset has several splits, and none is for training.
    """
    names = saved_splits(file)
    found = {wanted: split for wanted in SPLITS if (split := find_split(names, wanted)) is not None}
    if len(names) < 2 and "train" not in found:
        return {}
    if "train" not in found:
        raise ConfigurationError(
            f"The dataset {file!r} has no split for training: its splits are {listing(names)}, expected one named "
            f"'train'. Name the split that is meant by its folder, as in data.train={file.rstrip('/')}/{names[0]}."
        )
    unused = [name for name in names if name not in found.values()]
    unusual = {wanted: name for wanted, name in found.items() if name not in (wanted, SPLITS[wanted][0])}
    if unused or unusual or "val" not in found:
        used = ", ".join(f"{name!r} for {wanted}" for wanted, name in found.items())
        missing = "" if "val" in found else "; there is no validation split"
        not_used = f"; not used: {listing(unused)}" if unused else ""
        rank_zero_info(f"{file}: {used}{missing}{not_used}.")
    return found
