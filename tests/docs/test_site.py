"""The site: pages in the navigation, the numbers of its pictures, and the citation."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- (?:[^#\n]*: )?(\S+\.md)$", config, re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == pages


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    import lightning_freeze

    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    assert set(re.findall(r"^::: lightning_freeze\.(\w+)$", text, re.MULTILINE)) == set(lightning_freeze.__all__)


def test_the_speed_chart_takes_its_numbers_from_the_page() -> None:
    pictures = script("pictures")
    page = pictures.PERFORMANCE.read_text(encoding="utf-8")
    rows = pictures.measured(page)
    bert = next(values for label, values in rows.items() if label.startswith("BERT"))
    assert bert == {"LayerFreezing": 2.32, "cache, cold": 3.45, "cache, warm": 4.51, "ideal": 4.57}
    partly = pictures.measured(page.replace("| 2.32 | 3.45 |", "| - | - |"))
    bert = next(values for label, values in partly.items() if label.startswith("BERT"))
    assert set(bert) == {"cache, warm", "ideal"}, "what was not measured has no bar"


def test_a_row_that_the_page_no_longer_has_is_named() -> None:
    pictures = script("pictures")
    page = pictures.PERFORMANCE.read_text(encoding="utf-8").replace("| ViT-base, 9", "| ViT-large, 9")
    with pytest.raises(ValueError, match="ViT-base, 9 of 12"):
        pictures.measured(page)


def test_the_citation_names_the_version_and_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert f'version = "{citation["version"]}"' in PROJECT
    assert f'license = "{citation["license"]}"' in PROJECT
    assert citation["authors"] == [{"name": "The lightning-freeze project"}]
