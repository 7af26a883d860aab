"""Pages in a real browser: no error, no network, no horizontal scroll on a phone, light and dark, axe finds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.laws._engine import Scope
from harness.mutants.positions import OFFSET
from harness.report._history import History, run_files
from harness.report.html._commands import changes_page, history_page, regeneration_page, timings_page
from harness.report.html._laws import hunt_page, laws_page
from harness.runs._decodes import recorded_result
from harness.runs._runfile import read_run
from harness.speculative.sampler import build_decoder
from tests.browser.conftest import MISSING
from tests.browser.looks import DESK, PHONE, faults
from tests.unit.report.sample_runs import Loud, large, page_of, run
from tests.unit.report.test_history import answered
from tests.unit.report.test_hunt_page import some
from tests.unit.report.test_laws_page import ABSENT, BROKEN, DIGITS, HELD, UNPROVEN
from tests.unit.report.test_recordings_page import page_of as checked_page
from tests.unit.report.test_recordings_page import regenerated as regenerated_file
from tests.unit.report.test_recordings_page import some as recording
from tests.unit.report.test_timings_page import FAST, SLOW
from tests.unit.report.test_timings_page import run as timings

pytestmark = pytest.mark.browser
SCHEMES = "light", "dark"


def passing(path: Path) -> bytes:
    run(path / "a.db")
    return page_of(path / "a.db")


def planted(path: Path) -> bytes:
    run(path / "a.db", OFFSET)
    return page_of(path / "a.db")


def lossy(path: Path) -> bytes:
    run(path / "a.db", policy="match:0.5")
    return page_of(path / "a.db")


def many(path: Path) -> bytes:
    run(path / "a.db")
    large(path / "large.db", read_run(path / "a.db")[0], 250, 20, 32)
    return page_of(path / "large.db")


def crashed(path: Path) -> bytes:
    run(path / "a.db", lambda models, settings: settings.options and Loud(), options=(("a" * 400, "b" * 400),))
    return page_of(path / "a.db")


def hunted(path: Path) -> bytes:
    return hunt_page(some())


def regenerated(path: Path) -> bytes:
    return regeneration_page([regenerated_file()], "cpu")


def checked(path: Path) -> bytes:
    return checked_page(recording(wrong=True))


def obeyed(path: Path) -> bytes:
    return laws_page([HELD, BROKEN, UNPROVEN, ABSENT, DIGITS], "mine:f", Scope(20, 3))


def timed(path: Path) -> bytes:
    return timings_page(timings(FAST, SLOW), "cpu")


def history(path: Path) -> bytes:
    for name, factory in (("a", build_decoder), ("b", OFFSET), ("c", build_decoder)):
        answered(path / f"{name}{'-long' * 30}.db", factory)
    return history_page(History.of(run_files([path])))


def changed(path: Path) -> bytes:
    names = "a.db", "b.db"
    for name, factory in zip(names, (build_decoder, OFFSET), strict=True):
        answered(path / name, factory)
    one, other = (recorded_result(path / name) for name in names)
    return changes_page((one, other), ("a.db", "b.db"))


PAGES = passing, planted, lossy, many, crashed, hunted, regenerated, checked, obeyed, timed, history, changed


@pytest.fixture(scope="module", params=PAGES, ids=lambda make: make.__name__)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    (folder / "page.html").write_bytes(request.param(folder))
    return folder / "page.html"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_browser_finds_nothing_wrong_on_a_phone(browser, page: Path, scheme: str):
    assert faults(browser, page, scheme, PHONE) == []


def test_a_browser_finds_nothing_wrong_on_a_desk(browser, page: Path):
    assert faults(browser, page, "light", DESK) == []


def test_light_and_dark_are_two_looks(browser, page: Path):
    seen = set()
    for scheme in SCHEMES:
        with browser.new_context(color_scheme=scheme) as context:
            tab = context.new_page()
            tab.goto(page.as_uri())
            seen.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2


def test_the_first_key_leads_past_the_links(browser, page: Path):
    with browser.new_context() as context:
        tab = context.new_page()
        tab.goto(page.as_uri())
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "Skip to the report"
        assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_place_component_and_reason_come_before_images_and_images_before_tables(browser, tmp_path: Path, width: int):
    (tmp_path / "page.html").write_bytes(planted(tmp_path))
    with browser.new_context(viewport={"width": width, "height": 844}) as context:
        tab = context.new_page()
        tab.goto((tmp_path / "page.html").as_uri())
        tops = {
            name: tab.evaluate(f"document.querySelector({name!r}).getBoundingClientRect().top")
            for name in ("h1", "header .bullets", "img", "table")
        }
        assert list(tops.values()) == sorted(tops.values())
        assert tops["header .bullets"] < 844  # without scrolling
        widths = tab.evaluate("[...document.images].map(image => image.getBoundingClientRect().width)")
        assert min(widths) >= 192


@pytest.mark.parametrize(("width", "cards"), [(PHONE, True), (DESK, False)])
def test_a_wide_table_is_cards_on_a_phone(browser, tmp_path: Path, width: int, cards: bool):
    (tmp_path / "page.html").write_bytes(planted(tmp_path))
    with browser.new_context(viewport={"width": width, "height": 844}) as context:
        tab = context.new_page()
        tab.goto((tmp_path / "page.html").as_uri())
        assert tab.evaluate("getComputedStyle(document.querySelector('table.wide td')).display") == (
            "flex" if cards else "table-cell"
        )
        overflow = tab.evaluate("document.querySelector('table.wide').scrollWidth")
        assert not cards or overflow <= width


@pytest.mark.parametrize(
    ("markup", "said"),
    [
        ("<script>console.log(1)</script>", "console: "),  # the page's own policy refuses it, which is an error there
        ('<img src="https://sdvar.invalid/a.png" alt="a">', "image: a does not show"),
        ('<div style="width:500px">wide</div>', "width: "),
        ('<p style="color:#999;background:#fff">pale</p>', "axe: color-contrast"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "axe: image-alt"),
        ('<div style="overflow:auto;height:2em"><p>a<p>b<p>c<p>d</div>', "axe: scrollable-region-focusable"),
    ],
)
def test_what_is_wrong_is_seen(browser, tmp_path: Path, markup: str, said: str):
    text = passing(tmp_path).decode()
    bent = tmp_path / "bent.html"
    bent.write_text(text.replace("</main>", f"{markup}</main>"))
    assert any(fault.startswith(said) for fault in faults(browser, bent, "light"))


def test_a_request_is_seen_where_no_policy_forbids_it(browser, tmp_path: Path):
    bent = tmp_path / "bent.html"
    bent.write_text('<html lang="en"><title>t</title><h1>h</h1><img src="https://sdvar.invalid/a.png" alt="a">')
    assert "request: https://sdvar.invalid/a.png" in faults(browser, bent, "light")


def test_without_a_browser_one_line_says_so(tmp_path: Path):
    words = [sys.executable, "-m", "pytest", "-q", "-m", "browser", "-k", "passing and phone", __file__]
    root = Path(__file__).parents[2]
    made = subprocess.run(
        words, cwd=root, env={"PATH": str(tmp_path), "PYTHONPATH": str(root)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert made.returncode == 1
    assert made.stdout.count(MISSING) == 1
    assert "Traceback" not in made.stdout + made.stderr
