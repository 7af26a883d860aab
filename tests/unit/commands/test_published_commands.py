"""`parts`, `init` and `verify` of published code as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.judge._verdict import Verdict
from harness.laws import LAWS, run_conformance
from tests.helpers import command
from tests.published.checkout import make


@pytest.fixture(autouse=True)
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """One network for the digits would take minutes: a tiny pair stands in for it."""
    from tests.helpers import Layout, tiny

    monkeypatch.setattr("harness.commands._inputs.load_digits", lambda: tiny(Layout((1, 2, 3, 4))))


def test_parts_of_a_right_checkout_hold(monkeypatch, tmp_path: Path, capsys):
    checkout = make(tmp_path, "sdvar")
    arguments = ["parts", "--implementation", "published:sdvar-parallel", "--checkout", str(checkout)]
    out = tmp_path / "parts.json"
    assert command(monkeypatch, *arguments, "--json", str(out)) == 0
    said = capsys.readouterr().out
    assert "contract C alone, neither A nor B" in said
    assert "CONSISTENT 31 laws of parts: 30 held" in said
    found = json.loads(out.read_text())
    assert found["verdict"] == "CONSISTENT"
    assert len(found["parts"]) == 31


def test_parts_name_the_part_that_is_wrong(monkeypatch, tmp_path: Path, capsys):
    checkout = make(tmp_path, "sdvar", "mask-corner", "draft-crashes")
    arguments = ["parts", "--implementation", "published:sdvar-parallel", "--checkout", str(checkout), "--in-process"]
    assert command(monkeypatch, *arguments) == 1
    said = capsys.readouterr().out
    assert "top-left corner" in " ".join(said.split())
    assert "wrong: _get_attention_mask, draft_generate_batch, target_verify_batch, decode" in said


def test_parts_that_hold_excuse_no_sampler_that_is_wrong(monkeypatch, tmp_path: Path, capsys):
    checkout = make(tmp_path, "var", "wrong-positions")
    arguments = ["parts", "--implementation", "published:var", "--checkout", str(checkout), "--in-process"]
    assert command(monkeypatch, *arguments) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "decode decode.contract BROKEN component positions" in said
    assert "13 held, 3 broken; wrong: sampler: input, sampler: cache, decode" in said


def test_parts_of_the_harness_itself_hold(monkeypatch, capsys):
    assert command(monkeypatch, "parts", "--examples", "6", "--quiet") == 0
    assert "laws of parts" in capsys.readouterr().out


def test_verify_takes_options_and_shows_them(monkeypatch, tmp_path: Path, capsys):
    checkout = make(tmp_path, "sdvar", "addparam-th")
    arguments = ["verify", "--implementation", "published:sdvar-parallel", "--checkout", str(checkout), "--in-process"]
    arguments += ["--option", "gamma=3", "--option", "similarity_threshold=0.2", "--seeds", "0:1", "--labels", "0,1"]
    assert command(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "gamma=3 similarity_threshold=0.2" in said
    assert "coupled" not in said


def test_verify_against_another_checkout(monkeypatch, tmp_path: Path, capsys):
    right, wrong = make(tmp_path, "var"), make(tmp_path, "var", "wrong-positions")
    arguments = [
        "verify",
        "--implementation",
        "published:var",
        "--checkout",
        str(right),
        "--in-process",
        "--seeds",
        "0:1",
    ]
    assert command(monkeypatch, *arguments, "--labels", "0", "--against-checkout", str(wrong)) == 1
    assert "first difference: component positions (x_RLD of scale 1 differs by" in capsys.readouterr().out


BAD = [
    (["verify", "--implementation", "published:var"], "checkout=None: published code is a folder"),
    (
        ["verify", "--implementation", "published:vae"],
        "is no published sampler .*; pass one of published:var",
    ),
    (["verify", "--implementation", "published:var", "--checkout", "nowhere"], "checkout=.*nowhere: no such folder"),
    (["verify", "--option", "gamma=2"], "option=gamma: the harness's own decoder takes --policy"),
    (["verify", "--implementation", "tests.naive:naive", "--option", "gamma"], "option=gamma: must read NAME=VALUE"),
    (["parts", "--implementation", "published:var", "--checkout", "nowhere"], "checkout=.*nowhere: no such folder"),
    (["parts", "--seed", "-1"], "seed=-1: must lie in"),
    (["init", "mydecoder.txt"], "path=mydecoder.txt: must be a Python module"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_input_is_one_line_and_status_2(monkeypatch, capsys, tmp_path: Path, arguments: list[str], said: str):
    import re

    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert re.search(said, err), err
    assert err.count("\n") == 1


def test_init_writes_a_decoder_that_is_identical_and_keeps_every_law(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "init", "mine_of_test.py") == 0
    assert command(monkeypatch, "init", "mine_of_test.py") == 2
    assert "exists already" in capsys.readouterr().err
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = [
        "verify",
        "--implementation",
        "mine_of_test:factory",
        "--in-process",
        "--labels",
        "0,1",
        "--seeds",
        "0:1",
    ]
    assert command(monkeypatch, *arguments, "--draft-len", "2") == 0
    assert "IDENTICAL" in capsys.readouterr().out
    report = run_conformance(
        "mine_of_test:factory", 4, patch_nums=[(1, 2), (1, 2, 3)], laws=[law for law in LAWS if "decode" in law.watches]
    )
    assert report.verdict is not Verdict.DEFECT, str(report)
    broken = [str(row) for row in report.rows if row.verdict is Verdict.DEFECT]
    assert broken == []


KINDS = [("var", "var"), ("code", "code"), ("sdvar-test3", "sdvar"), ("sdvar-parallel", "sdvar")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "checkout"), KINDS)
def test_laws_take_published_code_in_float32(tmp_path: Path, kind: str, checkout: str):
    progress: list[object] = []
    report = run_conformance(
        f"published:{kind}", 3, checkout=make(tmp_path, checkout), dtype="float32", patch_nums=[(1, 2), (1, 2, 3)],
        laws=[law for law in LAWS if "decode" in law.watches and law.id != "acceptance.distribution"],
        progress=progress.append,
    )  # fmt: skip
    assert report.verdict is Verdict.IDENTICAL, str(report)
    assert len(progress) > len(report.rows)


def test_a_law_finds_a_mistake_of_published_code_and_its_replay_fails_too(tmp_path: Path):
    from harness.laws import Violation, check

    checkout = make(tmp_path, "sdvar", "caches-emptied")
    report = run_conformance(
        "published:sdvar-parallel", 4, checkout=checkout, dtype="float32", shrink_s=5.0,
        patch_nums=[(1, 2, 3)], laws=[law for law in LAWS if law.id == "positions.trace"],
    )  # fmt: skip
    assert report.verdict is Verdict.DEFECT
    (violation,) = report.violations
    assert f"(('checkout', '{checkout}'),)" in str(violation)
    with pytest.raises(Violation):
        check("positions.trace", "published:sdvar-parallel", violation.case, (("checkout", str(checkout)),))


def test_ten_built_in_scales_are_the_true_reason_for_skipping(tmp_path: Path):
    checkout = make(tmp_path, "sdvar", "ten-scales")
    laws = [law for law in LAWS if law.id == "state.once"]
    report = run_conformance("published:sdvar-test3", 2, laws=laws, checkout=checkout, dtype="float32")
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "SDVAR in models/var.py has its scales built in: masks of 680 positions" in str(report)
