"""A decoder that drafts nothing is asked one draft length, unless several are asked for; and shares say what of."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from harness import Request, Trace, build_decoder, verify
from harness.commands.verify import VerifyDecoding, VerifyJudging, other_for, settings_tested
from harness.decoders import Terms
from harness.protocol import Settings
from harness.report import show_verification
from harness.verification import LENGTHS, Question, usual_settings
from tests.helpers import Layout, command, tiny

MINE, OPTIONS = "mine:factory", (("ratio", "2"),)


@pytest.mark.parametrize("sequential", [True, False])
def test_without_a_draft_length_a_sequential_decoder_is_asked_one(sequential: bool):
    asked = LENGTHS[:1] if sequential else LENGTHS
    settings = settings_tested(VerifyDecoding(), MINE, OPTIONS, sequential)
    assert [(each.draft_len, each.policy, each.options) for each in settings] == [
        (n, "coupled", OPTIONS) for n in asked
    ]
    judging = VerifyJudging(against="other:factory", sequential=sequential)
    other = other_for(judging, MINE, settings, VerifyDecoding())
    assert other is not None
    assert [each.draft_len for each in other.settings] == list(asked)
    assert len(usual_settings(MINE, Settings(1), 10, sequential)) == len(asked)
    several = settings_tested(VerifyDecoding(draft_len="2,3"), MINE, (), sequential)
    assert [each.draft_len for each in several] == [2, 3]  # as it is asked
    published = settings_tested(VerifyDecoding(), "published:code", (), sequential)
    assert [each.option("refiner") for each in published] == ["target", "draft"]


def test_a_design_asks_a_sequential_decoder_every_request_once():
    models, settings = tiny(Layout((1, 2, 3))), (Settings(1, options=OPTIONS),)
    alone, drafting = (
        Question(MINE, settings, (), Terms(sequential=sequential), cover=True).decodes(models).plan
        for sequential in (True, False)
    )
    assert alone.settings == settings
    assert [task.request for task in alone.tasks] == [task.request for task in drafting.tasks]
    assert alone.decodes == len(alone.tasks)
    assert len(drafting.settings) > len(set(drafting.drafts)) == 2


def test_the_share_of_tokens_that_differ_says_what_it_is_of(monkeypatch: pytest.MonkeyPatch, capsys):
    words = ("verify", "--seeds", "0", "--labels", "0", "--draft-len", "2", "--policy", "match:0.5")
    assert command(monkeypatch, *words) == 0
    said = (
        r"draft_len=2: of all tokens of an image \d+\.\d% are others than in sequential decoding of the same seed, mean"
    )
    assert re.search(said, capsys.readouterr().out)


def told(factory, settings: list[Settings], sequential: bool) -> tuple[str, list[str]]:
    """Return the head and the row of the terminal's table, of two images."""
    asked, terms = [Request((0,), 0), Request((1,), 1)], Terms(in_process=True, sequential=sequential)
    log = io.StringIO()
    result = verify(tiny(Layout((1, 2, 3))), factory, settings, asked, terms=terms)
    for number, row in enumerate(row for setting in result.settings for row in setting.rows):
        row.__dict__.update(seconds=2.0 + number, reference_seconds=1.0)
    show_verification(result, Console(file=log, width=300, soft_wrap=True, markup=False, highlight=False), False)
    lines = log.getvalue().partition("\n\n")[0].splitlines()
    return " ".join(" ".join(lines[1:-2]).split()), lines[-1].split()


def without_rounds(models, settings):
    decoder = build_decoder(models, settings)

    def decode(request, noise) -> Trace:
        return replace(decoder.decode(request, noise), rounds=[])

    return SimpleNamespace(contract="token-identical", decode=decode)


def test_the_table_of_a_sequential_decoder_has_no_draft_length_and_no_empty_column():
    head, row = told(without_rounds, [Settings(1)], True)
    assert (row[0], "accepted" in head, "-" in row) == ("sequential", False, False)
    assert told(without_rounds, [Settings(3)], True)[1][0] == "sequential"
    head, row = told(build_decoder, [Settings(1)], False)
    assert (row[0], "accepted" in head) == ("draft_len=1", True)


def test_both_times_of_a_row_are_of_the_same_decodes():
    """Beside what four decodes took stands what the reference takes for four, though it ran twice."""
    head, row = told(build_decoder, [Settings(1), Settings(2)], False)
    assert head.index("decoder") < head.index("reference")
    assert row[-2:] == [f"{2 + 3 + 4 + 5:.1f}", "4.0"]
