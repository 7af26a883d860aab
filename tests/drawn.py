"""What Hypothesis draws for tests, as plural nouns."""

from __future__ import annotations

from hypothesis import strategies as st

from harness.laws._case import CHOICES, PYRAMIDS
from harness.laws._strategies import cases

pyramids = st.sampled_from(PYRAMIDS)
networks = cases().map(lambda case: case.wide().models)
requests = cases().map(lambda case: case.request)
small_cases = cases(tuple(CHOICES["patch_nums"]))
# How many of the drafted scales are accepted, round by round; the last number holds for all later rounds.
acceptance_patterns = st.lists(st.integers(0, 4), min_size=1, max_size=6).map(tuple)
