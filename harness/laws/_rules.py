"""Laws of rules: what a policy and a draft length say, every round, against an oracle written from their page."""

import copy
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.errors import InputError
from harness.judge import require, undrawn
from harness.laws._case import CHOICES, Case
from harness.laws._law import (
    EVERY,
    EXACT,
    LOSSY,
    NotOffered,
    Subject,
    law,
    policy_name,
    require_rounds,
    require_shown_rounds,
    require_tokens,
)
from harness.laws._oracle import Ranked, Scripted, decode_drafted, levelled, needs_exact
from harness.models.network import Around, Cache, Condition
from harness.protocol import PATCH_NUMS_256, TOKEN, Request, Round, ScalePyramid, SeededNoise, Trace
from harness.reference import PolicyRule, decode_by_policy, filter_logits, length_after, length_begin, length_wanted
from harness.reference.sequential import sample_sequential
from harness.speculative import Policy, Proposal, Window, parse_policy
from harness.speculative.parts import PARTS
from harness.speculative.sampler import SpeculativeDecoder

_BY_ORACLE = (*EXACT, *LOSSY)
_LONG = (1, 2, 3, 4, 5, 6, 7)
_DECIDES = "rounding decides what is accepted"
_UNSAID = "decoder.policy does not say which rule it follows"
_KEEPS = "kl:9"  # the draft's own tokens, nearly always
_BORDER = "collaborative:2"  # beyond scale 1 the draft decides alone, and no bonus scale is taken
# Besides those of `CHOICES`: rates at which most scales are rejected, so that what they become is seen, and a K above
# the number of tokens that a filter leaves.
_SHARP = (
    "match:0.9", "match:0.9+partial", "topk-match:1:0.8+partial", "topk-match:2:1", "topk-match:3:0.4",
    "coupled-match:1", "kl:0.02+partial", _KEEPS,
)  # fmt: skip


def _draft_lens(case: Case) -> tuple[str, ...]:
    """Return rules of every kind that fit the pyramid: a number, a schedule, and dynamic ones of two bounds."""
    S = case.pyramid.S
    schedule = "/".join(str(min(S, 1 + (si + case.seed) % 3)) for si in range(S))
    return (str(case.length), schedule, f"dynamic:1:{min(2, S)}", f"dynamic:{min(2, S)}:{S}")


def _both(turns: list[Round]) -> bool:
    """Whether some rounds rejected a scale, and some accepted one."""
    return any(turn.corrected for turn in turns) and any(turn.accepted for turn in turns)


def _require_policy(decoded: Trace, case: Case, draft_len: str, where: str) -> list[Round]:
    """Require tokens, rounds and any shown law of a naive decoder of docs/policies.md; return its rounds."""
    request, noise = case.request, case.noise()
    tokens_BL, rounds = decode_by_policy(case.models, request, noise, case.policy, draft_len, case.bonus)
    require_tokens(decoded.tokens_BL, tokens_BL, where)
    if decoded.rounds:
        require_rounds(decoded.rounds, rounds, where)
    if decoded.law_BLV is not None:
        wrong = undrawn(decoded.law_BLV, tokens_BL, case.noise(), case.pyramid)
        require(wrong is None, f"{where}: the law that is shown, at image and draw {wrong}", "law")
    return [turn for turns in rounds for turn in turns]


def _follows(subject: Subject, case: Case) -> None:
    if not subject.follows(case):
        raise NotOffered(_UNSAID)


def _at_the_border(case: Case) -> list[str]:
    """Return `kl` with bounds on both sides of the first token's KL, and between it and that of draft from target."""
    laws = []
    for network in (case.models.target, case.models.draft):
        shown = sample_sequential(network, case.models.vae, case.request, case.noise()).shown
        laws.append(filter_logits(shown.guided_BLV[0, 0], case.top_k, case.top_p).softmax(-1).double())
    target_V, draft_V = laws
    kl, other = (
        float(torch.where(p_V > 0, p_V * (p_V / q_V).log(), 0.0).sum())
        for p_V, q_V in ((target_V, draft_V), (draft_V, target_V))
    )
    if not 1e-6 < kl < float("inf"):
        return []
    bounds = [0.85 * kl, 1.2 * kl, *([math.sqrt(kl * other)] if 1e-6 < other < float("inf") else [])]
    return [f"kl:{bound:.6g}{'+partial' * ((case.seed + k) % 2)}" for k, bound in enumerate(bounds)]


def _policies(subject: Subject, case: Case) -> list[Case]:
    """Return the case under its own policy and some others that the decoder follows, some ten a case."""
    known = [policy for policy in dict.fromkeys(CHOICES["policy"]) if policy_name(policy) in _BY_ORACLE]
    known += _SHARP
    start = 5 * (case.seed + len(case.patch_nums) + case.V + case.weights)
    wanted = [
        case.policy, *(known[(start + k) % len(known)] for k in range(7)), "match:0.9", _KEEPS, *_at_the_border(case),
    ]  # fmt: skip
    quality = {_KEEPS: "far"} | dict.fromkeys(set(_SHARP) - {_KEEPS}, "near")
    asked = [replace(case, policy=policy, draft=quality.get(policy, case.draft)) for policy in dict.fromkeys(wanted)]
    asked.append(replace(case, policy=_BORDER, draft="near", bonus=True))
    cases = [each for each in asked if subject.follows(each)]
    if not cases:
        raise NotOffered(_UNSAID)
    return cases


@law("rules.recount", "counts")
def recount(subject: Subject, case: Case) -> bool:
    """Calls and rows of both networks are those that a spy in the network counts."""
    case = replace(case, cfg=case.cfg or 1.0)  # so that a call is both guidance halves, at once or apart
    spies = {name: _Spy(getattr(case.models, name), Counter()) for name in ("draft", "target")}
    watched = replace(case.models, **spies)  # type: ignore[arg-type]
    decoded: Trace = subject.decoder(case, watched).decode(case.request, watched.noise(case.request))
    if not spies["target"].counts and not spies["draft"].counts:
        raise NotOffered("no pass through Network.hidden")
    for name, spy in spies.items():
        for word in ("calls", "rows"):
            counts = getattr(decoded, f"{name}_{word}")
            if counts:  # counts are optional (docs/own-decoder.md), and `verify` says where they are not compared
                seen = spy.counts[word] * case.B / case.request.R
                told = f"{name}_{word} {counts} add up to {sum(counts)}"
                require(sum(counts) == seen, f"{told}, and a spy counted {seen:g}")
    for image, rounds in enumerate(decoded.rounds):
        for name in ("target_rows", "draft_rows"):
            total, counts = sum(getattr(turn, name) for turn in rounds), getattr(decoded, name)
            said = f"image {image}: {name} {counts}, its rounds add up to {total}"
            require(not counts or counts[image] == total, said)
    return case.pyramid.S > 1


@law("rules.edges", "accept")
def edges(subject: Subject, case: Case) -> bool:
    """A RATE of 0 keeps every drafted scale, one above 1 none; tokens tied with the K-th are in."""
    _follows(subject, replace(case, policy="coupled"))
    for name in ("match:{}", "coupled-match:{}", "topk-match:1:{}"):
        for rate, is_accepted in (("0", True), ("1.5", False)):
            extreme = replace(case, policy=name.format(rate))
            try:
                decoded = subject.decode(extreme)
            except InputError:
                raise NotOffered(f"policy {extreme.policy}") from None
            for rounds in decoded.rounds:
                accepted = {turn.accepted == turn.drafted for turn in rounds}
                require(accepted == {is_accepted}, f"policy {extreme.policy}: rounds accepted whole: {accepted}")
    tied = replace(case, policy="topk-match:1:1", top_k=0, top_p=0.0)
    models = replace(case.models, target=levelled(case.models.target))
    for rounds in subject.decode(tied, models=models).rounds:
        rejected = [turn for turn in rounds if turn.accepted < turn.drafted]
        require(not rejected, f"policy {tied.policy}, all tokens equally likely: a scale was rejected: {rejected[:1]}")
    known = [each for each in _RANKS if each[1] <= case.V]
    for policy, rank, top_k, is_accepted in known if case.exact else ():
        ranked = replace(case, policy=policy, cfg=0.0, top_k=top_k, top_p=0.0)
        where = f"policy {policy}, top_k {top_k}, every drafted token the target's number {rank}"
        for rounds in decode_drafted(subject, ranked, Ranked(ranked.models.target, rank)).rounds:
            accepted = {turn.accepted == turn.drafted for turn in rounds}
            require(accepted <= {is_accepted}, f"{where}: rounds accepted whole: {accepted}")
    return case.pyramid.S > 1


# (policy, rank of every drafted token in the target's law, filter, whether all are accepted)
_RANKS = (
    ("topk-match:1:1", 1, 0, True), ("topk-match:1:1", 2, 0, False), ("topk-match:2:1", 2, 0, True),
    ("topk-match:2:0.1", 3, 0, False), ("topk-match:2:0.1", 2, 1, False),
    ("match:1", 1, 0, True), ("match:0.1", 2, 0, False),
)  # fmt: skip


@dataclass(frozen=True)
class _Spy(Around):
    """A network that counts the guidance rows of its passes, and their positions."""

    counts: Counter[str]

    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Cache, mask_11nK: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        R, n = x_RnD.shape[:2]
        self.counts["calls"] += R
        self.counts["rows"] += R * n
        return self.network.hidden(x_RnD, condition, cache, mask_11nK, positions)


@law("rules.coin", "accept", "noise")
def coin(subject: Subject, case: Case) -> bool:
    """Under a bench's imposed:RATE a scale of any size is accepted by its own coin, with chance RATE."""
    needs_exact(case, _DECIDES)
    decoder: Any = subject.decoder(case)
    if not isinstance(decoder, SpeculativeDecoder):
        raise NotOffered("not composed of the harness's parts")
    turns, many = list[Round](), _coins(case)
    for rate in (0.3, 0.7):
        policy = parse_policy(f"imposed:{rate}", bench=True)
        tossing = copy.copy(decoder)
        tossing.options = replace(decoder.options, policy=policy)
        actual = tossing.decode(case.request, case.noise())
        turns += _require_policy(actual, replace(case, policy=policy.name), str(case.length), f"policy {policy.name}")
        _tossed(policy, rate, many)
    return _both(turns)


@law("rules.oracle", "accept", "draft_len", "bonus", policies=_BY_ORACLE)
def oracle(subject: Subject, case: Case) -> bool:
    """Tokens and rounds are those of a naive decoder written from docs/policies.md."""
    needs_exact(case, _DECIDES)
    turns = list[Round]()
    for k, tried in enumerate(_policies(subject, case)):
        draft_len = _draft_lens(tried)[(case.seed + k) % 4]
        made = subject.held.setdefault(f"{tried!r} {draft_len}", [])
        if len(made) < 2:  # twice: what a decoder keeps of the first decode shows in the second
            actual = subject.decoder(tried, draft_len=draft_len).decode(tried.request, tried.noise())
            where = f"policy {tried.policy}, draft_len {draft_len}{', bonus' if tried.bonus else ''}"
            made.append(_require_policy(actual, tried, draft_len, where))
        turns += made[-1]
    return _both(turns)


@law("rules.labour", "decode", "cache")
def labour(subject: Subject, case: Case) -> bool:
    """Target first, the draft after it: each draws its own scales and computes no more than it must.

    Of the target one pass a scale over the first ENTRY scales, and over those from EXIT on; of the draft one pass over
    the first ENTRY scales and the next, and one for every scale after. For every ENTRY, 0 and S included, with EXIT S
    (`code`), and for every ENTRY with the last scale again the target's (`middle`).
    """
    needs_exact(case, _DECIDES)
    pyramid, S = case.pyramid, case.pyramid.S
    alone_BL = replace(case, policy="coupled").sequential().tokens_BL
    labours = [(f"code:{entry}", entry, S) for entry in range(S + 1)]
    for policy, entry, end in [*labours, *((f"middle:{entry}:{S - 1}", entry, S - 1) for entry in range(S))]:
        handing = replace(case, policy=policy)
        if not subject.follows(handing):
            if policy_name(policy) == "middle":
                break
            raise NotOffered(_UNSAID)
        actual, drawn = subject.decode(handing), pyramid.draws.begin(entry)
        where = f"policy {handing.policy}"
        of_target = f"{where}, scales that the target decides alone"
        require_tokens(actual.tokens_BL[:, :drawn], alone_BL[:, :drawn], of_target)
        _require_policy(actual, handing, str(handing.length), where)
        counts = {
            "target_calls": entry + S - end, "target_rows": pyramid.L if end < S else pyramid.begin(entry),
            "draft_calls": end - entry, "draft_rows": pyramid.begin(end) if entry < end else 0,
        }  # fmt: skip
        for name, count in counts.items():
            counted = getattr(actual, name)
            require(not counted or counted == [count] * case.B, f"{where}: {name} {counted}, not {count} an image")
    return S > 1


# Images whose coins are counted; a share is off by more than six standard deviations with a chance below 1e-7.
_TOSSES, _SIGMAS = 200, 6.0


@law("rules.length", "draft_len", policies=EVERY)
def length(subject: Subject, case: Case) -> bool:
    """Every round drafts what the draft length's rule says, decode after decode."""
    _follows(subject, case)
    # long enough for a length to grow beyond a bound, and to shrink again
    case = replace(
        case, patch_nums=_LONG, V=min(case.V, 5), D=16, depth=1, labels=(case.labels * 4)[:4],
        draft="close" if case.seed % 3 else "single",
    )  # fmt: skip
    if case.exact:
        _grows_and_shrinks(subject, case)
    S, rule, several = case.pyramid.S, PolicyRule.of(case.policy), False
    for draft_len in (*_draft_lens(case)[1:], f"dynamic:1:{S}"):
        decoder = subject.decoder(case, draft_len=draft_len)
        for seed in (case.seed, case.seed + 1):
            request = replace(case.request, seed=seed)
            decoded = decoder.decode(request, case.noise(request))
            require_shown_rounds(decoded)
            for image, rounds in enumerate(decoded.rounds):
                current = length_begin(draft_len, S)
                for turn in rounds:
                    wanted = length_wanted(draft_len, turn.first, current, S)
                    if rule.draft_alone(turn.first):
                        wanted = S
                    if rule.target_alone(turn.first):
                        wanted = 0
                    last = min(S, turn.first + wanted)
                    same = (rule.draft_alone(si) == rule.draft_alone(turn.first) for si in range(turn.first, last))
                    expected = next((k for k, alike in enumerate(same) if not alike), last - turn.first)
                    at = f"draft_len {draft_len}, seed {seed}, image {image}, round from scale {turn.first}"
                    require(turn.drafted == expected, f"{at}: drafted {turn.drafted} scales, not {expected}")
                    current = length_after(draft_len, current, turn.accepted == turn.drafted, S)
                    several = several or expected > 1
    return several


def _grows_and_shrinks(subject: Subject, case: Case) -> None:
    """Require that a dynamic length ends at HIGH while all is accepted, and goes down by one after a rejection."""
    case = replace(case, policy="coupled", labels=(0, 1), order="image", bonus=False)
    draft = Scripted.of(case, ((0, 4),))  # of label 0, in the third round
    for draft_len, expected in _GROWN.items():
        decoded = decode_drafted(subject, case, draft, draft_len)
        require_shown_rounds(decoded)
        seen = tuple(tuple(turn.drafted for turn in turns) for turns in decoded.rounds)
        where = f"draft_len {draft_len}, scale 4 of image 0 rejected, all else accepted"
        require(seen == expected, f"{where}: rounds draft {seen} scales, not {expected}")


# What rounds draft of seven scales, by image: the third one is rejected, or all are accepted.
_GROWN = {"dynamic:1:2": ((1, 2, 2, 1, 1), (1, 2, 2, 2)), "dynamic:1:7": ((1, 2, 3, 2), (1, 2, 3, 1))}


def _coins(case: Case) -> Window:
    """Return the real pyramid's scales, for many images."""
    pyramid = ScalePyramid(PATCH_NUMS_256)
    noise = SeededNoise(Request((0,) * _TOSSES, case.seed, order="batch"), pyramid, 2, case.at)
    return Window(noise, pyramid, list(range(_TOSSES)), 0, pyramid.S - 1, "law")


def _tossed(policy: Policy, rate: float, window: Window) -> None:
    """Require that at every scale the share of images whose scale is accepted is RATE, whatever its size."""
    pyramid, device = window.pyramid, window.exponential(TOKEN).device
    tokens_bn = torch.zeros(_TOSSES, pyramid.L, dtype=torch.int64, device=device)
    probs_bnV = torch.full((_TOSSES, pyramid.L, 2), 0.5, device=device)
    whole_bs = policy.accept(PARTS, Proposal(tokens_bn, probs_bnV), probs_bnV, window).whole_bs
    far = _SIGMAS * (rate * (1 - rate) / _TOSSES) ** 0.5
    for si, share in enumerate(whole_bs.double().mean(0).tolist()):
        said = f"policy {policy.name}: {share:.3f} of {_TOSSES} images accept scale {si} ({pyramid.tokens(si)} tokens)"
        require(abs(share - rate) < far, said)
