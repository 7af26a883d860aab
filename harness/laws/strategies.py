"""What Hypothesis draws, as plural nouns; simplest first, so that a failure shrinks to the smallest pyramid."""

from __future__ import annotations

from functools import lru_cache

import hypothesis
from hypothesis import strategies as st

from harness.laws.case import CHOICES, PYRAMIDS, Case
from harness.models.pair import ModelPair
from harness.protocol.request import Request

pyramids = st.sampled_from(PYRAMIDS)
_draft_qualities = st.sampled_from(CHOICES["draft"])
_configurations = st.fixed_dictionaries(
    {name: st.sampled_from(CHOICES[name]) for name in ("V", "D", "depth", "shared_adaln", "l2_norm", "weights")}
)
_sampling = st.fixed_dictionaries(
    {name: st.sampled_from(CHOICES[name]) for name in ("labels", "seed", "cfg", "top_k", "top_p", "order")}
)
_speculation = st.fixed_dictionaries(
    {name: st.sampled_from(CHOICES[name]) for name in ("draft_len", "bonus", "policy", "dtype", "draft_dtype")}
)


@lru_cache(maxsize=8)
def cases(patch_nums: st.SearchStrategy[tuple[int, ...]] = pyramids) -> st.SearchStrategy[Case]:
    """Return networks, requests, settings and draft qualities in one record."""
    return st.builds(
        lambda sides, draft, *parts: Case(sides, draft=draft, **{k: v for part in parts for k, v in part.items()}),
        patch_nums, _draft_qualities, _configurations, _sampling, _speculation,
    )  # fmt: skip


@lru_cache(maxsize=8)
def drawn(patch_nums: tuple[tuple[int, ...], ...], count: int, seed: int) -> tuple[Case, ...]:
    """Return what Hypothesis draws for so many examples: a function of the arguments."""
    collected: list[Case] = []
    limits = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate,),
        verbosity=hypothesis.Verbosity.quiet,
    )

    def collect(case: Case) -> None:
        collected.append(case)

    hypothesis.seed(seed)(limits(hypothesis.given(cases(st.sampled_from(patch_nums)))(collect)))()
    return tuple(collected)


networks: st.SearchStrategy[ModelPair] = cases().map(lambda case: case.wide().models)
requests: st.SearchStrategy[Request] = cases().map(lambda case: case.request)
small_cases = cases(st.sampled_from(CHOICES["patch_nums"]))


# How many of the drafted scales are accepted, round by round; the last number holds for all later rounds.
acceptance_patterns = st.lists(st.integers(0, 4), min_size=1, max_size=6).map(tuple)
