"""The page of a verification: every section, nothing but text from outside, a bounded size, one line for bad input."""

from __future__ import annotations

import base64
import io
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from harness.mutants.positions import OFFSET
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.report.html._commands import timings_page
from harness.report.html._gallery import MOST_BYTES
from harness.report.html._page import date_of
from harness.report.html._run import run_page, seen_in
from harness.runs._case import cases_of
from harness.runs._decodes import Decodes, verify_decodes
from harness.runs._identity import code_of
from harness.runs._plan import Plan
from harness.runs._records import BrokenLaw, LawsTried
from harness.runs._runfile import RunFile, RunFileOptions, pictures_of, read_run
from harness.speculative.sampler import build_decoder
from harness.version import __version__
from tests.helpers import command, with_weight
from tests.unit.report.reading import SECTIONS, read
from tests.unit.report.sample_runs import HERE, MODELS, SCRIPT, Loud, large, page_of, run
from tests.unit.report.test_timings_page import FAST
from tests.unit.report.test_timings_page import run as timings


def test_a_defect_is_told_from_verdict_to_provenance(tmp_path: Path):
    result = run(tmp_path / "a.db", OFFSET)
    page = read(page_of(tmp_path / "a.db"))
    assert [section["id"] for section in page.all("section")] == list(SECTIONS)
    first, words = result.first_divergence, page.words
    assert first is not None
    assert "DEFECT" in words
    assert "The decoder is wrong: something differs from sequential decoding" in words
    assert "Contract A, token-identical: with the same seed" in words
    head = words[: words.index("Skip to the report") + 2000].partition("Images The reference")[0]
    assert f"where – Seed {first.seed}, image {first.image}, label {first.label}. Scale {first.scale} of" in head
    assert f"component – {first.component}. The inputs sit at other positions" in head
    assert f"what was seen – {first.detail}" in head
    assert f"Then: mend what the first defect names: {first.component}; then ask again." in head
    assert "Next: decode only the batch of the first defect and name the line of code (IDENTICAL there:" in head
    assert f"{result.alone} --locate" in head
    assert "Not asked" not in head
    titles = [section["id"] for section in page.all("section")]
    assert titles.index("images") < titles.index("result")
    shown = [image["alt"] for image in page.all("img")]
    assert shown[0].endswith(f"seed {first.seed}, image {first.image}, label {first.label}")
    same = f"The token there, {first.actual}, is the reference's all the same"
    other = f"The decoder drew token {first.actual}. On the same prefix the reference draws {first.expected}."
    assert (same if first.actual == first.expected else other) in words
    assert f"Position {first.position} of the image: row" in words
    assert re.search(r"The prefix that agreed: \d+ tokens? \(", words)
    assert "score, decoder score, reference random number E race, decoder race, reference" in words
    assert result.alone in words
    assert f"sdvar-harness replay {tmp_path / 'a.db'} --case 0" in words
    assert sum(image["alt"].startswith("Image of the reference") for image in page.all("img")) == 4
    marked = sum(set(picture.marks) != {"="} for picture in pictures_of(tmp_path / "a.db"))
    assert sum(attributes.get("class") == "marker" for attributes in page.all("span")) == 3 * marked > 0
    assert "Drafted scales accepted" in words
    assert "cfg 1.5" in words
    assert len(page.all("abbr")) >= 3
    assert "weights target" in words


def test_the_named_case_is_the_one_that_replay_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def wrong_at_the_second_length(models, settings):
        return (OFFSET if settings.draft_len == 3 else build_decoder)(models, settings)

    plan = Plan.of([Settings(1), Settings(3)], [Request((0,), seed) for seed in range(3)])
    result = verify_decodes(
        MODELS, Decodes(wrong_at_the_second_length, plan, HERE), store=RunFileOptions(tmp_path / "a.db", recipe={})
    )
    number = int(re.findall(r"--case (\d+)", read(page_of(tmp_path / "a.db")).words)[0])
    assert str(cases_of(tmp_path / "a.db")[number].defect) == str(result.first_divergence)


def test_a_right_decoder_has_nothing_to_mark(tmp_path: Path):
    run(tmp_path / "a.db")
    page = read(page_of(tmp_path / "a.db"))
    assert "✓ IDENTICAL" in page.words
    assert "No difference in 4 images under 1 setting: every token is the one" in page.words
    assert "Not asked, so that nothing is proved of it: requests without a filter, " not in page.words
    assert re.search(r"Not asked, so that nothing is proved of it: top-k alone, .*, bonus scales, ", page.words)
    assert "The first" not in page.words
    assert "no pixel differs" in page.words
    assert not any(attributes.get("class") == "marker" for attributes in page.all("span"))
    assert not any("cell wrong" in attributes.get("class", "") for _, attributes in page.elements)


def test_a_broken_law_is_shown_with_what_was_seen_and_is_no_image(tmp_path: Path):
    run(tmp_path / "a.db")
    tried = LawsTried(2, 68, (BrokenLaw("quantizer, encode", f"law numbers.encode: {SCRIPT}", 3),))
    with closing(RunFile.go_on(tmp_path / "a.db")) as file:
        assert file.noted("laws") is None
        file.note("laws", tried.as_dict())
        assert file.noted("laws")["held"] == 68
    page = read(page_of(tmp_path / "a.db"))
    assert "✕ DEFECT" in page.words
    assert "Every token is right; a law of a correct decoder is broken." in page.words
    assert "The decoder is wrong" not in page.words
    result = run(tmp_path / "wrong.db", OFFSET)
    result.take_laws(tried)
    assert (
        "The decoder is wrong: something differs"
        in read(run_page(result, seen_in(tmp_path / "wrong.db", result))).words
    )
    result = run(tmp_path / "lossy.db", policy="match:0.5")
    result.take_laws(tried)
    page_words = read(run_page(result, seen_in(tmp_path / "lossy.db", result))).words
    assert "No decode is wrong; a law of a correct decoder is broken." in page_words
    assert "laws, in 2 cases each: 68 held, 1 broken" in page.words
    assert "Laws that are broken" in page.words
    assert page.words.count(f"law numbers.encode: {SCRIPT}") == 2  # the first defect, and the table
    assert "It is of the run as a whole: no image shows it alone." in page.words
    assert "The worst images" not in page.words


def test_a_lossy_policy_shows_its_distance_and_calls_nothing_wrong(tmp_path: Path):
    run(tmp_path / "a.db", policy="match:0.5")
    page = read(page_of(tmp_path / "a.db"))
    assert "distance" in [section["id"] for section in page.all("section")]
    assert "Contract C, quality-preserving" in page.words
    assert "tokens, mean tokens, median tokens, worst" in page.words
    # two shares of tokens, each with what it is of
    assert "% of those compared, each after the decoder's own tokens; none is claimed" in page.words
    assert "of all tokens of an image those that differ" in page.words
    assert "Nothing wrong in 4 images under 1 setting" in page.words
    assert "contract C does not claim them" in page.words
    assert not any("cell wrong" in attributes.get("class", "") for _, attributes in page.elements)


def test_what_a_decoder_says_is_text(tmp_path: Path):
    path = tmp_path / "<b>&.db"
    run(path, lambda models, settings: settings.options and Loud(), options=(("<i>", SCRIPT),))
    html = page_of(path)
    page = read(html)
    assert SCRIPT in page.words
    assert SCRIPT.encode() not in html
    assert not page.all("b") and not page.all("i")
    assert "onerror" not in {name for image in page.all("img") for name in image}
    assert "\\x1b[31m" in page.words
    assert "\\udcff" in page.words
    assert "\\u202e" in page.words
    assert not any(character in html.decode() for character in "\x1b\x00\u202e")
    assert [section["id"] for section in page.all("section")] == [
        "story", "result", "worst", "compared", "cost", "provenance"
    ]  # nothing is empty  # fmt: skip
    assert "The decoder ended with an error before its images were whole." in page.words
    trace = page.words[page.words.index("Traceback (most recent call last):") :]
    assert "in decode raise RuntimeError(f" in trace
    assert "harness/decoders" not in trace.partition("Next: ")[0]  # it begins in the decoder's own code
    assert "There is nothing that every decode let be compared." in page.words
    assert "first places of defects1 of 2 defects in all" in page.words
    assert "tokens compared" not in page.words
    assert "left out" not in page.words  # nothing was compared: that is no praise


def test_one_defect_is_one_place_and_wrong_tokens_stand_apart(tmp_path: Path):
    run(tmp_path / "a.db")
    large(tmp_path / "large.db", read_run(tmp_path / "a.db")[0], 3, 4, 32)
    words = read(page_of(tmp_path / "large.db")).words  # every image has twenty records from position 30 on
    assert "first places of defects1 " in words
    assert "wrong tokens240 2.941 % of those compared" in words
    assert "positions 4 30 seed 0, image 0 draft_len=2 0 12 100 %" in words


class Worsens:
    """The harness's own decoder, with one wrong token in one image, and all wrong in a later decode."""

    contract = "token-identical"

    def __init__(self, models, settings) -> None:
        self.inner = build_decoder(models, settings)

    def decode(self, request, noise):
        trace = self.inner.decode(request, noise)
        tokens_BL = trace.tokens_BL.clone()
        if request.seed:
            tokens_BL[:, 1:] += 1
        else:
            tokens_BL[1, 0] += 1
        return replace(trace, tokens_BL=tokens_BL % MODELS.target.config.V)


def test_images_maps_and_rounds_begin_with_the_image_of_the_first_defect(tmp_path: Path):
    first = run(tmp_path / "a.db", Worsens).first_divergence
    assert first is not None
    assert (first.seed, first.image) == (0, 1)
    assert pictures_of(tmp_path / "a.db")[0].seed == 1  # the worst one
    page = read(page_of(tmp_path / "a.db"))
    assert page.all("img")[0]["alt"].endswith("seed 0, image 1, label 1")
    titled = re.findall(r"Seed \d, image \d, label \d: draft_len=2", page.words)
    of_maps, of_rounds = titled[0], titled[-1]
    assert of_maps == of_rounds == "Seed 0, image 1, label 1: draft_len=2", titled


def test_a_page_says_when_by_which_command_and_on_which_code(tmp_path: Path):
    result = run(tmp_path / "a.db")
    assert result.record is not None and result.record.identity is not None
    ended = max(row.ended for row in read_run(tmp_path / "a.db")[1])
    page = read(page_of(tmp_path / "a.db"))
    name = result.record.identity.decoder.title
    assert f"sdvar-harness · tiny · {date_of(ended)} · {name}" in page.words
    assert f"Command: {shlex.join(['sdvar-harness', *result.record.command])}" in page.words
    assert date_of(0) == "1970-01-01 00:00 UTC"
    others = read(timings_page(timings(FAST), "cpu")).words
    assert f"· {date_of(time.time())[:13]}" in others
    commit = code_of("harness:build_decoder").title.removeprefix("harness:build_decoder")
    assert f"· sdvar-harness {__version__}{commit} " in others


@pytest.mark.slow
def test_verify_and_report_make_the_same_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_file, one, two = (tmp_path / name for name in ("a.db", "one.html", "two.html"))
    words = "--implementation", "harness.mutants.positions:OFFSET", "--in-process", "--seeds", "0", "--labels", "0"
    # the line of code is searched where the decoder is at hand, and no run file keeps it
    asked = ("verify", *words, "--draft-len", "2", "--quiet", "--html", str(one), "--run", str(run_file), "--no-locate")
    assert command(monkeypatch, *asked) == 1
    assert command(monkeypatch, "report", str(run_file), "--html", str(two)) == 0
    told = re.compile(rb"Decodes took [0-9.]+ s in all")
    assert told.sub(b"", one.read_bytes()) == told.sub(b"", two.read_bytes())
    alone = tmp_path / "alone.html"
    assert command(monkeypatch, "verify", *words, "--draft-len", "2", "--quiet", "--html", str(alone)) == 1
    page = read(alone.read_bytes())
    assert "sdvar-harness replay" not in page.words  # there is no file to repeat it from
    assert "sdvar-harness verify --implementation harness.mutants.positions:OFFSET" in page.words
    assert len(page.all("img")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.db", "alone.html", "one.html", "two.html"]


def test_weights_that_are_no_numbers_give_a_page(tmp_path: Path):
    models = replace(MODELS, target=with_weight(MODELS.target, "head.bias", lambda bias: bias * float("nan")))
    result = run(tmp_path / "a.db", models=models)
    page = read(run_page(result, seen_in(tmp_path / "a.db", result)))
    assert "component – weights. The networks hold numbers that are none" in page.words
    assert "target.head.bias" in page.words


def test_a_run_that_is_not_finished_says_so(tmp_path: Path):
    run(tmp_path / "a.db")
    kept, rows = read_run(tmp_path / "a.db")
    for name, some in (("part", rows[:1]), ("none", [])):
        file = RunFile.create(tmp_path / name, kept)
        file.write(some)
        file.close()
        words = read(page_of(tmp_path / name)).words
        assert f"the run is not finished: {2 * len(some)} of 4 images are judged" in words
    assert "INCONCLUSIVE" in words
    assert "Nothing wrong was found in 0 images under 1 setting" in words


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch, capsys):
    run(tmp_path / "a.db")
    (tmp_path / "text").write_text("no run")
    (tmp_path / "empty").write_bytes(b"")
    html = tmp_path / "page.html"
    for words, said in (
        ([str(tmp_path / "none"), "--html", str(html)], "no such file"),
        ([str(tmp_path / "text"), "--html", str(html)], "is a text that begins with 'no run'"),
        ([str(tmp_path / "empty"), "--html", str(html)], "is empty"),
        ([str(tmp_path / "a.db"), "--html", str(tmp_path / "a.db")], "is the file of --run too"),
        ([str(tmp_path / "a.db"), "--html", str(tmp_path / "no" / "page.html")], "is not there"),
        ([str(tmp_path / "a.db"), "--html", str(tmp_path)], "is a folder, not a file"),
        (
            [str(tmp_path / "a.db"), "--html", "--quiet"],
            "html=--quiet: begins with -, as an option does; pass --html FILE, or",
        ),
    ):
        before = (tmp_path / "a.db").read_bytes()
        assert command(monkeypatch, "report", *words) == 2
        output = capsys.readouterr()
        assert said in output.err
        assert output.err.count("\n") == 1
        assert not html.exists()
        assert (tmp_path / "a.db").read_bytes() == before


def test_every_command_but_a_page_does_without_the_libraries_of_pages():
    code = "import sys; sys.modules |= {'matplotlib': None, 'jinja2': None}; import harness.report.html, harness.bench"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_library_one_line_says_what_to_install(tmp_path: Path, monkeypatch, capsys):
    run(tmp_path / "a.db")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert command(monkeypatch, "report", str(tmp_path / "a.db"), "--html", str(tmp_path / "page.html")) == 2
    assert 'is made by Jinja2, which is not installed; pip install ".[report]" in the clone' in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_page_replaces_a_page_whole_or_not_at_all(tmp_path: Path, monkeypatch, capsys):
    run(tmp_path / "a.db")
    html = tmp_path / "page.html"
    html.write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert command(monkeypatch, "report", str(tmp_path / "a.db"), "--html", str(html)) == 2
    assert "No space left" in capsys.readouterr().err
    assert html.read_text() == "before"


@pytest.mark.parametrize(
    ("batches", "batch", "side", "most"),
    [(1, 40, 256, 3e6), pytest.param(250, 20, 256, 8e6, marks=pytest.mark.slow), (250, 20, 32, 8e6)],
)
def test_a_page_is_small_and_made_at_once(batches: int, batch: int, side: int, most: float, tmp_path: Path):
    run(tmp_path / "a.db")
    large(tmp_path / "large.db", read_run(tmp_path / "a.db")[0], batches, batch, side)
    page_of(tmp_path / "a.db")  # imports what draws
    begin = time.process_time()
    for _ in range(3):
        page_of(tmp_path / "a.db")
    start = time.process_time()
    html = page_of(tmp_path / "large.db")
    spent, yardstick = time.process_time() - start, start - begin
    print(f"{len(html)} bytes in {spent:.2f} s, three of a few images in {yardstick:.2f} s")
    assert spent < 50 * yardstick  # 25 to 37 seen; seconds say more of the processor than of the page
    assert len(html) < most
    page = read(html)
    assert f"{batches * batch:,} images in all" in page.words  # the page of 40 large ones has no room for all
    sources = [image["src"] for image in page.all("img")]
    assert sum(map(len, sources)) <= MOST_BYTES
    assert sources
    assert all(Image.open(io.BytesIO(_decoded(source))).size == (side, side) for source in sources)


def _decoded(source: str) -> bytes:
    return base64.b64decode(source.partition(",")[2])
