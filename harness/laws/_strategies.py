"""Cases that Hypothesis draws, simplest first, so that a failure shrinks to the smallest pyramid."""

from functools import lru_cache

import hypothesis
from hypothesis import strategies as st

from harness.laws._case import CHOICES, PYRAMIDS, Case

_ORDER = (
    ("V", "D", "depth", "shared_adaln", "l2_norm", "weights"),
    ("labels", "seed", "cfg", "top_k", "top_p", "order"),
    ("draft_len", "bonus", "policy", "dtype", "draft_dtype"),
)  # as it was first drawn in: another order draws other cases


@lru_cache(maxsize=8)
def cases(patch_nums: tuple[tuple[int, ...], ...] = PYRAMIDS) -> st.SearchStrategy[Case]:
    """Return networks, requests, settings and draft qualities in one record, pyramids simplest first."""
    groups = [st.fixed_dictionaries({name: st.sampled_from(CHOICES[name]) for name in names}) for names in _ORDER]
    return st.builds(
        lambda sides, draft, *parts: Case(sides, draft=draft, **{k: v for part in parts for k, v in part.items()}),
        st.sampled_from(patch_nums), st.sampled_from(CHOICES["draft"]), *groups,
    )  # fmt: skip


@lru_cache(maxsize=8)
def drawn(patch_nums: tuple[tuple[int, ...], ...], count: int, seed: int) -> tuple[Case, ...]:
    """Return what Hypothesis draws for so many examples: a function of the arguments."""
    collected: list[Case] = []
    limits = hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate,), verbosity=hypothesis.Verbosity.quiet,
    )  # fmt: skip

    def collect(case: Case) -> None:
        collected.append(case)

    hypothesis.seed(seed)(limits(hypothesis.given(cases(patch_nums))(collect)))()
    return tuple(collected)
