"""Advice that can be printed and written to files."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback

from lightning_freeze.advice.candidates import build
from lightning_freeze.advice.output.config_text import config_text, entries
from lightning_freeze.advice.output.text import advice_text
from lightning_freeze.advice.records import AdviceRecord
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.pages.rendering import missing_libraries
from lightning_freeze.run_report.writing import json_text

PAGE, NUMBERS, CONFIG = "advice.html", "advice.json", "recommended.yaml"
_HOW = "To use it, give this file after the config: lightning-freeze fit --config CONFIG --config {name}"


class Advice(AdviceRecord):
    """What to freeze, and why; ``print`` shows it. See :class:`~lightning_freeze.advice.records.AdviceRecord`."""

    def callbacks(self) -> list[Callback]:
        """New callbacks of the recommended plan; none for full fine-tuning.

        Raises:
            ConfigurationError: If the recommended plan is the callbacks that were given.
        """
        if any("init_args" not in entry for entry in self.best.entries):
            raise ConfigurationError("The recommended plan is the callbacks that were given: expected to use those.")
        return [build(entry) for entry in entries(self)]

    def save(self, folder: str | Path, config: str | None = None) -> list[Path]:
        """Write the advice to a folder: ``advice.json``, ``recommended.yaml``, ``advice.html`` (extra ``report``).

        Args:
            folder: The folder, which is made if it does not exist.
            config: The text of ``recommended.yaml``; by default the recommended callbacks alone.

        Returns:
            What was written.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        text = config_text(self, how=_HOW.format(name=place / CONFIG)) if config is None else config
        contents = {NUMBERS: json_text(self.to_dict()), CONFIG: text}
        if not missing_libraries():
            from lightning_freeze.advice.output.page import advice_page

            contents[PAGE] = advice_page(self)
        for name, content in contents.items():
            part = place / f"{name}.part"  # an interrupted call leaves the earlier file whole
            part.write_text(content, encoding="utf-8")
            part.replace(place / name)
        return [place / name for name in contents]

    def __str__(self) -> str:
        return advice_text(self)
