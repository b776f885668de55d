"""Each filter in docs/warnings.md silences the warning of its section, and no other one."""

import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "warnings.md"


def sections():
    """Title, quoted warning and filter of each section that has them."""
    found = {}
    for part in PAGE.read_text().split("\n## ")[1:]:
        quote = " ".join(line[2:] for line in part.splitlines() if line.startswith("> "))
        if quote:
            found[part.splitlines()[0]] = (quote, re.search(r'\*\*Silence\.\*\* `message="(.*)"`', part).group(1))
    return found


SECTIONS = sections()


def test_all_nine_are_there():
    assert len(SECTIONS) == 9


@pytest.mark.parametrize("title", SECTIONS)
def test_the_filter_silences_its_own_warning_only(title):
    pattern = SECTIONS[title][1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message=pattern)
        for quote, _ in SECTIONS.values():
            warnings.warn(quote, stacklevel=1)
    assert {str(w.message) for w in caught} == {quote for other, (quote, _) in SECTIONS.items() if other != title}
