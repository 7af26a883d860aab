"""Numbers are read strictly, by one reader, in every option that takes one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.numerals import MOST_NUMBERS, real, whole, wholes
from tests.helpers import command

NO_WHOLES = ["1_2", "１", " 1", "1 ", "1\n", "", "1.0", "1e3", "0x1", "nan", "+-1", "٣", "9" * 31]
NO_REALS = ["1_5", "１.5", " 1", "1 ", "", "nan", "inf", "-inf", "1e400", "1;5", "0x1p3", ".", "e5", "infinity"]
READ = [
    (whole, "-3", -3), (whole, "+07", 7), (real, "1.5", 1.5), (real, "-.5e-1", -0.05), (real, "3.", 3.0),
    (wholes, "0,3,5", (0, 3, 5)), (wholes, "-1:2", (-1, 0, 1)), (wholes, "4:4", ()),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "text", "value"), READ)
def test_numbers_are_read(reader: Callable[[str], object], text: str, value: object):
    assert reader(text) == value


@pytest.mark.parametrize(("readers", "texts"), [((whole, wholes), NO_WHOLES), ((real,), NO_REALS)])
def test_anything_else_is_no_number(readers: tuple[Callable[[str], object], ...], texts: list[str]):
    for reader in readers:
        for text in texts:
            with pytest.raises(ValueError, match="is not a"):
                reader(text)


def test_a_range_without_end_is_refused():
    with pytest.raises(ValueError, match=f"names more than {MOST_NUMBERS} numbers"):
        wholes(f"0:{MOST_NUMBERS + 1}")
    with pytest.raises(ValueError, match="is not a whole number"):
        wholes("0:4:2")


@pytest.mark.parametrize(
    "words",
    [
        "--labels 0_1", "--seeds 0_1", "--cfg 1_5", "--top-k 1_0", "--top-p nan", "--draft-len 1_0", "--batch １",
        "--policy match:0_5", "--policy handoff:１", "--timeout 1e400", "--laws 1_0", "--images 0_1", "--heads 1_6",
        "--patch-nums 1_2", "--draft-len dynamic:1:１", "--draft-len 1/_2",
    ],
)  # fmt: skip
def test_no_option_takes_it_for_another_number(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    files = ("--draft", "a", "--target", "a", "--vae", "a") if words.startswith(("--heads", "--patch")) else ()
    assert command(monkeypatch, "verify", *words.split(), *files, "--quiet") == 2
    option, value = words.split()
    said = capsys.readouterr().err
    assert value in said
    assert option.strip("-").replace("-", "_").replace("images", "") in said.replace("-", "_")
