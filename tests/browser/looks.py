"""What a browser finds wrong with a page: console, network, width, accessibility."""

from __future__ import annotations

from pathlib import Path

PHONE, DESK = 390, 1200  # pixels
UNFOLD = "document.querySelectorAll('details').forEach(fold => fold.open = true)"


def faults(browser, page: Path, scheme: str, width: int = PHONE) -> list[str]:
    """List what is wrong with a page, everything unfolded.

    Args:
        browser: of playwright.
        page: the file.
        scheme: light or dark.
        width: of the window, pixels.
    """
    from axe_playwright_python.sync_playwright import Axe  # only tox -e browser installs it

    found: list[str] = []
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        tab = context.new_page()
        tab.on("console", lambda message: found.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: found.append(f"error: {error}"))
        tab.on("request", lambda request: found.extend(_outside(request.url, page)))
        tab.goto(page.as_uri(), wait_until="load")
        tab.evaluate(UNFOLD)
        wide = tab.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            found.append(f"width: {wide} of {width} pixels")
        for image in tab.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.alt)"):
            found.append(f"image: {image} does not show")
        for broken in Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]:
            found += [f"axe: {broken['id']}: {node['html'][:120]}" for node in broken["nodes"][:3]]
    return found


def _outside(url: str, page: Path) -> list[str]:
    return [] if url.startswith("data:") or url.partition("#")[0] == page.as_uri() else [f"request: {url}"]
