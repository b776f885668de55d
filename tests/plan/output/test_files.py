from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plan.projects import BATCH, Classifier

from lightning_freeze import GradualUnfreezing, LayerFreezing, TrainingPlan, plan_training
from lightning_freeze.errors import ConfigurationError


@pytest.fixture(scope="module")
def plan() -> TrainingPlan:
    return plan_training(Classifier(), [GradualUnfreezing()], BATCH, max_epochs=7, memory="200KiB")


class Texts(HTMLParser):
    """The texts of a page, and the addresses that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.loaded: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.mark.slow
def test_json_holds_what_the_plan_says(plan: TrainingPlan, tmp_path: Path) -> None:
    data = json.loads(plan.save(tmp_path / "plan.json").read_text())
    assert data["phases"][0]["trains"] == ["head"]
    assert [phase["trainable"] for phase in data["phases"]] == [phase.trainable for phase in plan.phases]
    assert data["relative_time"] == plan.total_time()
    assert data["schedules"][0][0] == "head until EpochTrigger(1)"


def test_page_needs_nothing_else(plan: TrainingPlan, tmp_path: Path) -> None:
    text = plan.save(tmp_path / "plan.html").read_text()
    page = Texts()
    page.feed(text)
    assert "script" not in page.tags
    assert all(address.startswith(("#", "data:")) for address in page.loaded)
    assert "http" not in text.replace("http://www.w3.org/", "").replace("https://www.w3.org/", "")
    assert len(text) < 1_500_000
    assert text.count("<svg") == 3
    assert "Phases" in page.texts
    assert any("(too large)" in each for each in page.texts)


def test_names_are_text(tmp_path: Path) -> None:
    groups = {"<script>alert(1)</script>": ["model.bert"], "top&tail$\\frac$": ["model.classifier"]}
    plan = plan_training(Classifier(), [LayerFreezing("<script>alert(1)</script>", groups=groups)], BATCH)
    text = plan.save(tmp_path / "plan.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "top&amp;tail$\\frac$</text>" in text


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_pictures(plan: TrainingPlan, tmp_path: Path, ending: str) -> None:
    path = plan.save(tmp_path / f"plan.{ending}")
    if ending == "svg":
        texts = {element.text for element in ET.fromstring(path.read_text()).iter() if element.text}
        assert {"When which layer trains", "Memory", "Time", "embeddings", "head", "limit"} <= texts
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_plan_without_costs_has_the_timeline_alone(tmp_path: Path) -> None:
    module = Classifier()
    module.automatic_optimization = False
    text = plan_training(module, [LayerFreezing("75%")], BATCH).save(tmp_path / "plan.html").read_text()
    assert text.count("<svg") == 1
    assert "Manual optimization" in text


def test_other_endings_are_refused(plan: TrainingPlan, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"plan.htm: expected a file that ends with .*Did you mean '.html'"):
        plan.save(tmp_path / "plan.htm")
    with pytest.raises(ConfigurationError, match="expected a folder that exists"):
        plan.save(tmp_path / "none" / "plan.html")


def test_the_extra_is_named(plan: TrainingPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"lightning-freeze\[report\]"):
        plan.save(tmp_path / "plan.png")
    assert plan.save(tmp_path / "plan.json").exists()
