"""Counts in words, and letters that a terminal lacks."""

from __future__ import annotations

import pytest

from harness.wording import LETTERS, READABLE, count_of, spelled


def test_one_is_singular_and_all_else_plural():
    assert [count_of(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert count_of(2, "batch", "batches") == "2 batches"
    assert count_of(1, "batch", "batches") == "1 batch"


def test_a_letter_that_is_lacking_is_spelled():
    assert spelled("|Δf_hat| ≤ 0.5 · 2×", "ascii") == "|df_hat| <= 0.5 - 2x"
    assert spelled("日", "ascii") == "\\u65e5"
    assert "Δ × …".encode("latin-1", READABLE) == b"d \xd7 ..."


@pytest.mark.parametrize("letter", LETTERS)
def test_every_substitute_is_ascii_and_prints(letter: str):
    assert LETTERS[letter].isascii()
    assert LETTERS[letter].isprintable()
    assert not letter.isascii()
