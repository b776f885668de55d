"""Pages from templates, in which every name and text is escaped. Needs jinja2 (extra ``report``)."""

from __future__ import annotations

import importlib.util
from typing import Any

#: What pages and figures need beyond the dependencies of the package.
LIBRARIES = ("matplotlib", "jinja2")


def missing_libraries() -> list[str]:
    """The libraries of the extra ``report`` that are not installed."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def render_page(room: str, template: str, **values: Any) -> str:
    """Fill in a template.

    Args:
        room: The package that holds ``templates/``; templates may extend ``page.html.jinja`` of this room.
        template: Name of the template.
        **values: Values for the template. Text is escaped; only what is marked as safe is HTML.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    loader = ChoiceLoader([PackageLoader(room), PackageLoader("lightning_freeze.pages")])
    return Environment(loader=loader, autoescape=True).get_template(template).render(**values)
