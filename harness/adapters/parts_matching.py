"""Laws of SDVAR's acceptance, by its own statement: the share of top-1 hits of a scale, over the whole batch.

Promise: what it keeps of contract A, B or C is told apart from whether it does what it says.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.adapters.parts_state import flexible, state_at
from harness.adapters.probe import Probe, Told, Wrong, require
from harness.adapters.turns import scales_of

THRESHOLD = 0.5
NAMES = ("basic_token_matching", "advanced_token_matching")


def examine_matching(probe: Probe, sdvar: Any) -> None:
    """Ask the laws of both rules. Effects: on `probe.rows`."""
    for name in NAMES:
        if not callable(getattr(sdvar, name, None)):
            probe.absent(name)
            continue
        probe.law(name, "accept.extremes", "All hits keep every scale, no hit keeps none, and a miss ends the run.",
            partial(_extremes, probe, sdvar, name))  # fmt: skip
        if name != NAMES[0]:
            continue
        probe.law(name, "accept.share", "A scale is kept iff the batch's share of top-1 hits reaches the threshold.",
            partial(_share, probe, sdvar, name))  # fmt: skip
        probe.law(name, "accept.contract", "Which contract does the rule keep?",
            partial(_contract, probe, sdvar, name))  # fmt: skip


def _logits(probe: Probe, tokens: Tensor, hits: Tensor) -> Tensor:
    """Return logits (B,l,V) whose best token is the drafted one exactly where `hits` says so, by a wide margin."""
    V = probe.target.network.config.V
    best = torch.where(hits, tokens, (tokens + 1) % V)
    return 12.0 * torch.nn.functional.one_hot(best, V).float()


def _ask(probe: Probe, sdvar: Any, name: str, hits: list[Tensor], first: int = 0) -> int:
    count = len(hits)
    tokens = probe.drafted(first, count)
    logits = [_logits(probe, idx, hit) for idx, hit in zip(tokens, hits, strict=True)]
    given: dict[str, Any] = {
        "draft_tokens": tokens,
        "target_logits": logits,
        "state": state_at(probe, sdvar, first, count),
        "B": probe.request.B,
        "similarity_threshold": THRESHOLD,
        "verbose": False,
    }
    made = flexible(getattr(sdvar, name), **given)
    kept = scales_of(made)
    if kept is None:
        raise Wrong(f"it returns a {type(made).__name__}, not a number of scales")
    return kept


def _hits(probe: Probe, si: int, share: float) -> Tensor:
    """Return hits (B,l), `share` of them, spread over images and positions."""
    shape = (probe.request.B, probe.pyramid.tokens(si))
    flat = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(si))
    flat[order[: round(share * len(flat))]] = True
    return flat.view(shape).to(probe.code.models.device)


def _extremes(probe: Probe, sdvar: Any, name: str) -> None:
    count = min(3, probe.pyramid.S)
    for shares, due in (([1.0] * count, count), ([0.0] * count, 0), ([1.0] + [0.0] * (count - 1), 1)):
        got = _ask(probe, sdvar, name, [_hits(probe, si, share) for si, share in enumerate(shares)])
        require(got == due, f"shares of hits {shares}: {got} scales accepted, not {due}")
    got = _ask(probe, sdvar, name, [_hits(probe, si, share) for si, share in enumerate([0.0] + [1.0] * (count - 1))])
    require(got == 0, f"a scale without a hit before scales full of hits: {got} scales accepted, not 0")


def _threshold(probe: Probe, sdvar: Any, name: str) -> float | None:
    """Return the threshold that it is given, or that the object was built with; None where nobody can know it."""
    parameters = inspect.signature(getattr(sdvar, name)).parameters
    if "similarity_threshold" in parameters:
        return THRESHOLD
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return None  # it may have a threshold of its own
    if probe.threshold is not None:
        return probe.threshold
    built = inspect.signature(type(sdvar)).parameters.get("similarity_thresh")
    known = built is not None and isinstance(built.default, int | float)
    return float(built.default) if known and built is not None else None


def _share(probe: Probe, sdvar: Any, name: str) -> None:
    si, due = probe.pyramid.S - 1, _threshold(probe, sdvar, name)
    lowest = None
    for step in range(21):
        share = step / 20
        hits = _hits(probe, si, share)
        exact = float(hits.float().mean())
        kept = _ask(probe, sdvar, name, [hits], si) == 1
        if kept and lowest is None:
            lowest = exact
        require(kept or lowest is None, f"a share of {exact:.2f} is kept no longer where {lowest} is")
        if due is not None and abs(exact - due) > 1e-6 and kept != (exact > due):
            found = "kept" if kept else "not kept"
            raise Wrong(f"a share of {exact:.2f} of the batch's tokens is {found}, with a threshold of {due:g}")
    _uneven(probe, sdvar, name, due)


def _uneven(probe: Probe, sdvar: Any, name: str, due: float | None) -> None:
    """Require that hits in some images only count as a share of the whole batch."""
    si = probe.pyramid.S - 1
    uneven = torch.zeros_like(_hits(probe, si, 0.0))
    uneven[: max(1, probe.request.B // 2)] = True
    share = float(uneven.float().mean())
    even = _ask(probe, sdvar, name, [_hits(probe, si, share)], si) == 1  # as many hits, in every image
    for hits in (uneven, uneven.flip(0)):
        kept = _ask(probe, sdvar, name, [hits], si) == 1
        right = even if due is None else share > due
        if kept != right and (due is None or abs(share - due) > 1e-6):
            raise Wrong(f"hits in some images only ({share:.2f} of the batch): {'kept' if kept else 'not kept'}")


def _contract(probe: Probe, sdvar: Any, name: str) -> None:
    """Tell what the rule keeps: what it does to misses and to neighbours, and that it reads no number."""
    si, B = probe.pyramid.S - 1, probe.request.B
    due = _threshold(probe, sdvar, name)
    share = 0.95 if due is None else min(0.95, due + 0.05)
    hits = _hits(probe, si, share)
    wrong = int((~hits).sum())
    found = []
    if wrong and _ask(probe, sdvar, name, [hits], si) == 1:
        found.append(f"it keeps {wrong} of {hits.numel()} tokens to which the target gives hardly a chance")
    if B > 1:
        one, other = torch.ones_like(hits), torch.ones_like(hits)
        other[1:] = False
        if _ask(probe, sdvar, name, [one], si) != _ask(probe, sdvar, name, [other], si):
            found.append("image 0, the same in both, is kept or not as its neighbours are")
    if found:
        raise Told(f"contract C alone, neither A nor B: {'; '.join(found)}")
    raise Told("no token was kept that the target would not draw: A or B is not ruled out by this")
