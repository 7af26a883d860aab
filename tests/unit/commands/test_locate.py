"""`--locate` from the command line: the line of a decoder in its own process, and what is said where there is none."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from harness.commands.parts import of_decode
from harness.decoders._runner import Terms
from harness.judge._verdict import PartVerdict
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.runs._replay import KEEPS, NOT_FOUND, RIGHT
from harness.verification import Question
from tests.helpers import Layout, tiny
from tests.published.checkout import make
from tests.unit.commands.running import run
from tests.unit.judge.planted_lines import TEMPLATE, TEN

LOOP = """        for image in self.images:
            image.late = len(self.seeds) > 1
"""
SMALL = ("--seeds", "1", "--labels", "0", "--draft-len", "2")


def written(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str, name: str) -> tuple[str, ...]:
    """Write a decoder into a folder, go there, and return the options that name it."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.chdir(folder)
    return "--implementation", f"{name}:factory"


def test_verify_and_replay_name_the_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    tested = written(monkeypatch, tmp_path, TEN[0].source, "offset_decoder")
    outputs = ("--run", "run.db", "--json", "result.json", "--html", "page.html")
    assert run(monkeypatch, "verify", *tested, *pair, *SMALL, "--locate", *outputs) == 1
    number = TEN[0].lines[0]
    # the draft's inputs are made at another line than the target's
    reached = r"\(reached from offset_decoder\.py:\d+, in \w+\)"
    text = rf"line: offset_decoder\.py:{number}, in inputs {reached}: x_1lD = network\.embed\(raw_1lC\) \+ "
    assert re.search(text, capsys.readouterr().out)
    line = json.loads((tmp_path / "result.json").read_text())["line"]
    assert (line["file"], line["line"], line["function"]) == (str(tmp_path / "offset_decoder.py"), number, "inputs")
    assert line["stack"][-1].endswith("in decode: image.decode()")
    assert "offset_decoder.py" in (tmp_path / "page.html").read_text()
    assert run(monkeypatch, "replay", "run.db", "--locate") == 1
    assert re.search(text, capsys.readouterr().out)


def test_the_line_is_searched_unasked_where_that_is_quick_and_else_it_is_said_how_to_ask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    tested = written(monkeypatch, tmp_path, TEN[0].source, "unasked_decoder")
    text = f"line: unasked_decoder.py:{TEN[0].lines[0]}, in inputs (reached from "
    assert run(monkeypatch, "verify", *tested, *pair, *SMALL) == 1
    said, announced = capsys.readouterr()
    assert text in said
    assert "searching the line of code: about " in announced
    assert re.search(r"; with the input of scales? .* put right at unasked_decoder.py:\d+, every value is right", said)
    assert run(monkeypatch, "verify", *tested, *pair, *SMALL, "--no-locate") == 1
    said, announced = capsys.readouterr()
    assert "line: " not in said
    assert "searching" not in announced
    monkeypatch.setattr("harness.runs._replay.LOCATE_S", 0.0)
    assert run(monkeypatch, "verify", *tested, *pair, *SMALL) == 1
    assert "line: not searched (about 1 min); --locate does it" in (said := capsys.readouterr().out)
    assert "next: name the line of code: sdvar-harness verify " in said


def test_a_fault_of_a_batch_is_repeated_with_its_batch_and_the_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    planted = "raw_1lC * (2 if self.request.B > 1 else 1)"
    old = "network.embed(raw_1lC)"
    assert old in TEMPLATE
    tested = written(monkeypatch, tmp_path, TEMPLATE.replace(old, f"network.embed({planted})"), "batch_decoder")
    drawn = ("--seeds", "4:6", "--labels", "1,0", "--batch", "2", "--draft-len", "2")
    assert run(monkeypatch, "verify", *tested, *pair, *drawn, "--no-locate") == 1
    said = capsys.readouterr().out.splitlines()
    first = next(line for line in said if line.startswith("first defect: "))
    step = next(line for line in said if line.startswith("next: decode only the batch of the first defect"))
    words = shlex.split(step.partition("): ")[2])
    assert words[-9:] == [*["--seeds", "4", "--labels", "1,0", "--batch", "2", "--draft-len", "2", "--locate"]]
    assert run(monkeypatch, *words[1:]) == 1  # a command that decodes one image says IDENTICAL
    said = capsys.readouterr().out.splitlines()
    assert next(line for line in said if line.startswith("first defect: ")) == first
    line = next(line for line in said if line.startswith("line: "))
    assert planted in line
    assert "; only in its batch of 2: alone the image is right" in line
    assert run(monkeypatch, "verify", *tested, *pair, "--seeds", "4", "--labels", "1", "--draft-len", "2") == 0


def test_what_a_decoder_keeps_between_decodes_is_said_and_the_whole_run_shows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    built, embedded = "        self.models, self.length = models,", "network.embed(raw_1lC)"
    assert built in TEMPLATE and embedded in TEMPLATE
    source = TEMPLATE.replace(built, f"        self.seeds = set()\n{built}")
    source = source.replace("        for image in self.images:\n", "        self.seeds.add(request.seed)\n" + LOOP, 1)
    source = source.replace(embedded, f"{embedded[:-1]} * (2 if self.late else 1))")
    tested = written(monkeypatch, tmp_path, source, "keeping_decoder")
    drawn = ("--seeds", "4:6", "--labels", "1,0", "--batch", "2", "--draft-len", "2")
    assert run(monkeypatch, "verify", *tested, *pair, *drawn, "--run", "run.db") == 1
    said = capsys.readouterr().out.splitlines()
    assert f"line: {NOT_FOUND}" in said  # and no line "only in its batch"
    steps = [line for line in said if line.startswith(("next:", "then:"))]
    kept = "what is kept between decodes or settings, or goes wrong over many (one batch alone is right)"
    assert steps == [f"next: mend {kept}; then ask again"]
    assert run(monkeypatch, "replay", "run.db") == 3
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"CANNOT REPRODUCE case 0 ({KEEPS}; or what it imports was changed): ")
    step = next(line for line in said if line.startswith("next:"))
    assert run(monkeypatch, *shlex.split(step.partition("right: ")[2])[1:]) == 1


def test_nobody_is_said_to_keep_anything_where_the_batch_alone_is_wrong_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    """What writes into the autoencoder's last layer makes no wrong value."""
    tested = ("--implementation", "tests.odd:writes_pixels")
    assert run(monkeypatch, "verify", *tested, *pair, *SMALL, "--locate") == 1
    said = capsys.readouterr().out
    assert "line: not found: no value of a plain run that is recorded is wrong" in said
    assert "next: mend what the first defect names: weights; then ask again" in said


def test_parts_name_the_line_of_the_decode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    written(monkeypatch, tmp_path, TEN[0].source, "parts_decoder")
    terms, settings = Terms(sequential=True, in_process=True), (Settings(2),)
    question = Question("parts_decoder:factory", settings, (Request((0,), 1),), terms)
    row = of_decode(tiny(Layout((1, 2, 3))), question, True)
    assert row.verdict is PartVerdict.BROKEN
    assert f"; line: parts_decoder.py:{TEN[0].lines[0]}, in inputs (reached from " in row.found
    assert "; line: " not in of_decode(tiny(Layout((1, 2, 3))), question, False).found


def test_a_decode_that_crashes_and_another_decoder_in_the_references_place_are_not_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    crashing = TEN[0].source.replace("wrong = int(", "wrong = len(")
    tested = written(monkeypatch, tmp_path, crashing, "crashing_decoder")
    line = crashing[: crashing.index("wrong = len(")].count("\n") + 1
    assert run(monkeypatch, "verify", *tested, *pair, *SMALL, "--locate") == 1
    said = "in verify: wrong = len((idx_l != proposal).sum()) (TypeError: len() of a 0-d "
    assert f"line: crashing_decoder.py:{line}, {said}" in capsys.readouterr().out
    assert run(monkeypatch, "verify", *tested, *pair, *SMALL, "--locate", "--against", "harness:build_decoder") == 1
    assert "line: not searched: another decoder stood in the reference's place" in capsys.readouterr().out


def test_of_two_checkouts_the_change_that_is_met_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
):
    old, new = (make(tmp_path / name, "var") for name in ("old", "new"))
    file = new / "models" / "network.py"
    changed = "# a line more\n" + file.read_text().replace("else cfg * si", "else 1.1 * cfg * si")
    file.write_text(changed)
    number = next(n for n, text in enumerate(changed.splitlines(), 1) if "1.1 * cfg" in text)
    tested = ("--implementation", "published:var", "--checkout", str(new), "--seeds", "1", "--labels", "0")
    asked = ("verify", *tested, *pair, "--sequential", "--locate", "--against-checkout")
    assert run(monkeypatch, *asked, str(old)) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "line: network.py:" in said, said[said.find("line: ") :]
    assert f" lies at what was changed there, lines {number} to {number}" in said
    # the other way round the one that is tried is right
    swapped = [{str(new): str(old), str(old): str(new)}.get(word, word) for word in (*asked, str(old))]
    assert run(monkeypatch, *swapped) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"line: {RIGHT} " in said
    assert "keeps" not in said
