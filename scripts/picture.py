"""Make the README's picture of a page: its headline, the first defect and its images.

tox -e browser brings playwright: python scripts/picture.py PAGE docs/report.png
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.browser.conftest import chromium

SIZE = {"width": 1000, "height": 700}
HIDDEN = "nav { display: none }"
END = "document.querySelector('#images').getBoundingClientRect().bottom + 24"


def picture(page: Path) -> bytes:
    """Return the picture of a page as PNG in 64 colours: it is mostly text."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        tab = browser.new_page(viewport=SIZE)
        tab.goto(page.absolute().as_uri())
        tab.add_style_tag(content=HIDDEN)
        clip = {"x": 0, "y": 0, "width": SIZE["width"], "height": tab.evaluate(END)}
        whole = tab.screenshot(full_page=True, clip=clip)
        browser.close()
    stream = io.BytesIO()
    Image.open(io.BytesIO(whole)).convert("RGB").quantize(64).save(stream, "PNG", optimize=True)
    return stream.getvalue()


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(picture(Path(sys.argv[1])))
