"""Cases for Hypothesis, smallest first so that a failure shrinks to the smallest pyramid."""

from __future__ import annotations

from hypothesis import strategies as st

from harness.laws import Case
from harness.laws.case import QUALITIES
from harness.pyramid import PATCH_NUMS_256

small_pyramids = st.sets(st.integers(2, 6), max_size=4).map(lambda sides: (1, *sorted(sides)))
real_pyramids = st.just(PATCH_NUMS_256)
# one in 32: a decode of 680 tokens takes some twenty times as long as one of a small pyramid
pyramids = st.integers(0, 31).flatmap(lambda k: real_pyramids if k == 31 else small_pyramids)
draft_qualities = st.sampled_from(QUALITIES)
labels = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)
guidance_values = st.sampled_from((0.0, 1.5, 0.5, 4.0))


@st.composite
def cases(draw: st.DrawFn, patch_nums: st.SearchStrategy[tuple[int, ...]] = pyramids) -> Case:
    """Networks, requests, settings and draft qualities in one record."""
    sides = draw(patch_nums)
    V = draw(st.sampled_from((3, 5, 8, 13)))
    return Case(
        patch_nums=sides,
        V=V,
        D=draw(st.sampled_from((16, 32))),
        depth=draw(st.integers(1, 2)),
        shared_adaln=draw(st.booleans()),
        l2_norm=draw(st.booleans()),
        weights=draw(st.integers(0, 5)),
        draft=draw(draft_qualities),
        labels=draw(labels),
        seed=draw(st.integers(0, 1000)),
        cfg=draw(guidance_values),
        top_k=draw(st.sampled_from((0, 0, V // 2 + 1, 1))),
        top_p=draw(st.sampled_from((0.0, 0.0, 0.5, 0.9))),
        order=draw(st.sampled_from(("image", "batch"))),
        draft_len=draw(st.integers(1, len(sides))),
        bonus=draw(st.booleans()),
        dtype=draw(st.sampled_from(("float32", "float64"))),
    )
