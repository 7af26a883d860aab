"""One table of policies: parser, help and documentation say what it says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.protocol._decoder import Settings
from harness.speculative import _policies as policies
from harness.speculative._policies import IMPOSED, TABLE, Number, parse_policy
from tests.helpers import command

DOCS = Path(__file__).parents[3] / "docs" / "policies.md"
USUAL = [row for row in TABLE if not row.bench]


def form(row: policies.Row) -> str:
    """Return a policy's text with words for its numbers."""
    return ":".join((row.policy.name, *(number.word for number in row.numbers)))


@pytest.mark.parametrize("row", TABLE, ids=form)
def test_every_row_keeps_what_it_says(row: policies.Row):
    policy = parse_policy(row.example, bench=True)
    assert (policy.name, policy.contract, policy.reason) == (row.example, row.policy.contract, row.policy.reason)
    if row.numbers:  # what the numbers decide is bound: the template alone is no policy
        other = replace(policy, name=row.policy.name)
        assert other != row.policy
    if row.partial:
        assert parse_policy(f"{row.example}+partial").accept.keywords["rule"][-1] is True  # type: ignore[attr-defined]
        assert policy.accept.keywords["rule"][-1] is False  # type: ignore[attr-defined]
    else:
        with pytest.raises(InputError, match=r"\+partial changes"):
            parse_policy(f"{row.example}+partial", bench=True)


@pytest.mark.parametrize("row", TABLE, ids=form)
def test_a_wrong_count_of_numbers_names_them_all_and_an_example_that_parses(row: policies.Row):
    with pytest.raises(InputError) as refused:
        parse_policy(f"{row.example}:1", bench=True)
    assert all(str(number) in refused.value.rule for number in row.numbers)
    assert parse_policy(refused.value.remedy.split()[-1], bench=True).name == row.example


def test_what_only_a_bench_may_use_is_unknown_elsewhere():
    names = ", ".join(row.policy.name for row in USUAL)
    with pytest.raises(InputError) as refused:
        parse_policy("imposed:0.5")
    assert str(refused.value) == f"policy=imposed:0.5: must be one of {names}; pass --policy coupled"
    assert IMPOSED not in names
    assert parse_policy("imposed:0.50", bench=True).name == "imposed:0.5"


def test_verify_refuses_an_imposed_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert command(monkeypatch, "verify", "--policy", "imposed:0.5", "--quiet") == 2
    assert capsys.readouterr().err.startswith("error: policy=imposed:0.5: must be one of coupled, greedy, rejection, ")


def test_the_page_has_a_line_of_every_policy():
    lines = re.findall(r"^\| `(\S+)` \| (\w) \| [^|]+ \| [^|]{10,} \|$", DOCS.read_text(), re.M)
    assert lines == [(form(row), row.policy.contract.letter) for row in TABLE]


@pytest.mark.parametrize(
    ("number", "good", "bad"),
    [
        (Number("RATE"), ["0", "0.5", "7"], ["-1", "nan", "inf", "", "x"]),
        (Number("K", 1, whole=True), ["1", "123456789"], ["0", "1.0", "-1", "", "1234567890", "١"]),
        (Number("RATE", 0, 1), ["0", "1"], ["1.01", "-0.1"]),
    ],
)
def test_a_number_is_read_within_its_range(number: Number, good: list[str], bad: list[str]):
    assert [number.read(text) for text in good] == [float(text) for text in good]
    assert all(number.read(text) != number.read(text) for text in bad)  # NaN


def test_the_settings_know_which_policies_are_greedy():
    for row in TABLE:
        assert Settings(policy=row.example).greedy is row.policy.greedy, row.example
