"""Opens pages in headless Chromium, without a library: the browser prints the page as it has become."""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MARK = "data-seen="

#: Measures the page in a frame once it is laid out.
_FRAME = """<!doctype html>
<html><body style="margin:0">
<iframe id="frame" style="border:0;width:{width}px;height:2000px" srcdoc="{page}"></iframe>
<script>
window.onload = () => {{
  const page = document.getElementById("frame").contentDocument;
  const boxes = [...page.querySelectorAll(".chart")].map(section => {{
    const svg = section.querySelector("svg"), box = svg.getBoundingClientRect();
    const shapes = [...svg.querySelectorAll("path, image, use")].filter(s => s.getBoundingClientRect().width > 0);
    return {{
      key: section.id, width: box.width, height: box.height, shapes: shapes.length,
      texts: [...svg.querySelectorAll("text")].map(t => t.textContent),
      smallest: Math.min(...[...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect().height)),
      rows: section.querySelectorAll("details tr").length,
    }};
  }});
  const seen = {{
    charts: boxes, pageWidth: page.documentElement.scrollWidth,
    background: getComputedStyle(page.body).backgroundColor, color: getComputedStyle(page.body).color,
    scripts: page.querySelectorAll("script").length, text: page.body.innerText,
  }};
  document.body.setAttribute("data-seen", JSON.stringify(seen));
}};
</script></body></html>"""


class Seen(NamedTuple):
    """What a browser makes of a page.

    Attributes:
        console: Everything in its console.
        found: What was measured in it.
    """

    console: list[str]
    found: dict[str, Any]


def browser() -> str | None:
    """Path of a browser; ``LIGHTNING_FREEZE_BROWSER`` names another one."""
    given = os.environ.get("LIGHTNING_FREEZE_BROWSER")
    return given or next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


def open_page(page: str, width: int, folder: Path, is_dark: bool = False) -> Seen:
    """Open a page in a window of some width.

    Args:
        page: Its HTML.
        width: Width of the window in CSS pixels.
        folder: Where files may be written.
        is_dark: Whether the reader prefers dark pages.
    """
    program = browser()
    assert program is not None
    frame = folder / f"frame-{width}.html"
    frame.write_text(_FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    options += [f"--blink-settings=preferredColorScheme={0 if is_dark else 1}", f"--user-data-dir={folder / 'profile'}"]
    options += ["--enable-logging=stderr", "--v=0", f"--window-size={width + 40},2000", "--dump-dom"]
    done = subprocess.run([program, *options, frame.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert _MARK in done.stdout, done.stderr[-2000:]
    found = done.stdout.partition(f'{_MARK}"')[2].partition('"')[0]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(console, json.loads(html.unescape(found)))
