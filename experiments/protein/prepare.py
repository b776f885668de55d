"""Fetch what the protein experiment needs: a language model of antibodies, and antibodies with their isotypes.

    python experiments/protein/prepare.py

``data/antiberty/`` is AntiBERTy, a BERT of 8 layers. ``data/antibodies.csv`` has variable regions of human heavy
chains as amino acids with spaces between them (text), their isotype (label), and the V gene, J gene and length of the
junction, by which related ones are kept together (lineage). The data comes with a Debian package: apt-get and dpkg-deb
are needed.
"""

import csv
import gzip
import io
import itertools
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import Package, PrepareError, debian_file, run, wheel_files, write_csv

ANTIBERTY = Package("antiberty==0.1.3", "30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a")
ALAKAZAM = Package(
    "r-cran-alakazam=1.2.1-1", "bc26cb5256cb5c0fe1415d416dad75d3c99eb5b3137b8861f393ee9191c63428", client="apt-get"
)
MOST_RELATIVES = 20
TABLE = "usr/lib/R/site-library/alakazam/extdata/example_airr.tsv.gz"
_CODONS = map("".join, itertools.product("TCAG", repeat=3))
AMINO_ACIDS = dict(zip(_CODONS, "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG", strict=True))


def make_model(target: Path) -> None:
    """Write the weights of the encoder, and a tokenizer with the model's vocabulary."""
    try:
        from transformers import AutoTokenizer, BertModel, logging
    except ImportError as error:
        raise PrepareError(f"{error.name} is missing: expected `pip install lightning-freeze`.") from error
    logging.set_verbosity_error()  # what it lists are heads that are not wanted here
    logging.disable_progress_bar()
    files = wheel_files(ANTIBERTY, "antiberty/trained_models/")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        for name in ("config.json", "pytorch_model.bin"):
            (Path(scratch) / name).write_bytes(files[f"AntiBERTy_md_smooth/{name}"])
        (Path(scratch) / "vocab.txt").write_bytes(files["vocab.txt"])
        (Path(scratch) / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "BertTokenizer", "do_lower_case": false}', encoding="utf-8"
        )
        BertModel.from_pretrained(scratch, add_pooling_layer=False).save_pretrained(target)
        tokenizer = AutoTokenizer.from_pretrained(scratch)
        if len(tokenizer) != len(files["vocab.txt"].split()):
            raise PrepareError(f"the tokenizer has {len(tokenizer)} tokens: expected those of vocab.txt.")
        tokenizer.save_pretrained(target)


def make_antibodies(target: Path) -> None:
    """Write the chains whose variable region is whole: each once, and of a large lineage the first ones."""
    table = gzip.decompress(debian_file(ALAKAZAM, TABLE)).decode("utf-8")
    found: dict[str, dict[str, str]] = {}
    relatives: Counter[str] = Counter()
    for row in csv.DictReader(io.StringIO(table), delimiter="\t"):
        protein = translated(row["sequence_alignment"])
        if protein and row["c_call"]:
            v_gene, j_gene = (row[name].split(",")[0].split("*")[0] for name in ("v_call", "j_call"))
            lineage = f"{v_gene} {j_gene} {row['junction_length']}"
            if protein not in found and relatives[lineage] < MOST_RELATIVES:
                found[protein] = {"label": row["c_call"], "lineage": lineage}
                relatives[lineage] += 1
    write_csv(target, [{"text": " ".join(protein), **row} for protein, row in found.items()])


def translated(aligned: str) -> str:
    """The amino acids of a sequence that is aligned in IMGT's numbering, whose gaps are whole codons.

    X stands for a codon that is not fully known. The result is empty if there is a stop codon.
    """
    codons = [aligned[place : place + 3].upper() for place in range(0, len(aligned) - 2, 3)]
    protein = "".join(AMINO_ACIDS.get(codon, "X") for codon in codons if set(codon) - {".", "-"})
    return "" if "*" in protein else protein


if __name__ == "__main__":
    run("protein", {"antiberty": make_model, "antibodies.csv": make_antibodies})
