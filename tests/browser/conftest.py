"""Chromium for the tests of pages: the one that is installed, never a download."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

NAMES = "chromium", "chromium-browser", "google-chrome"
MISSING = "no Chromium on the PATH: tests of pages need one (Debian: apt-get install chromium)"


def chromium() -> str | None:
    """Return the path of a Chromium."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    path = chromium()
    if path is None:
        pytest.exit(MISSING, returncode=1)  # one line, and no test that passes because there was nothing to look with
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox refuses to run as root, as a CI container does
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()
