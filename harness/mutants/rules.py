"""Planted bugs of rules: policies read otherwise than their page says, draft lengths off, calls and rows miscounted.

Those of the labour divided come last: the target decides the coarse scales alone, and the draft the fine ones.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness import speculative
from harness.decoders import Factory
from harness.mutants._mutant import Alone, Mutant, arguments_of, patched, policy, production, reporting, telling
from harness.protocol import ACCEPT, ScalePyramid, Trace
from harness.speculative import PARTS, Acceptance, DecodeState, DraftLength, Parts, Pass, Policy, Proposal, Window

_LENGTH = "harness.speculative._draft_length:DraftLength."


def _rule(name: str, change: Callable[[Any], Any]) -> Callable[[Policy], Policy]:
    """Return a change of the policies of one name that changes what their rule is bound to."""

    def changed(true: Policy) -> Policy:
        accept: Any = true.accept
        if true.name.partition("+")[0].partition(":")[0] != name:
            return true
        return replace(true, accept=partial(accept.func, rule=change(accept.keywords["rule"])))

    return changed


def _not_partial(rule: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*rule[:-1], False)


def _judging(by: object, change: Callable[..., Acceptance]) -> Factory:
    """Plant another judgement of one kind of rule: (the true one, what that is given) -> acceptance."""

    def changed(true: Policy) -> Policy:
        accept: Any = true.accept
        return replace(true, accept=partial(change, accept)) if getattr(accept, "func", None) is by else true

    return policy(changed)


def _reversed(true: Any, parts: Parts, proposal: Proposal, probs_bnV: Tensor, window: Window) -> Acceptance:
    own = speculative.accept_by_kl(parts, proposal, probs_bnV, window, (-1.0, False))  # everything is rejected
    judged = true(parts, Proposal(proposal.tokens_bn, probs_bnV), proposal.probs_bnV, window)
    stands_bn = (judged.tokens_bn == proposal.tokens_bn) & true.keywords["rule"][1]
    tokens_bn = torch.where(stands_bn, proposal.tokens_bn, own.tokens_bn)
    return Acceptance(tokens_bn, tokens_bn == proposal.tokens_bn, judged.whole_bs)


def _summed(true: Any, parts: Parts, proposal: Proposal, probs_bnV: Tensor, window: Window) -> Acceptance:
    judged: Acceptance = true(parts, proposal, probs_bnV, window)
    narrow = [(true.keywords["rule"][0] / window.pyramid.tokens(si), False) for si in window.scales]
    by_bound = [speculative.accept_by_kl(parts, proposal, probs_bnV, window, each).whole_bs for each in narrow]
    return replace(judged, whole_bs=torch.stack([whole_bs[:, k] for k, whole_bs in enumerate(by_bound)], 1))


def _kept_by_test(true: Any, parts: Parts, proposal: Proposal, probs_bnV: Tensor, window: Window) -> Acceptance:
    judged: Acceptance = true(parts, proposal, probs_bnV, window)
    own_bn = parts.draw(probs_bnV, window.exponential("token"))
    return replace(judged, accepted_bn=true.keywords["rule"][0](proposal, probs_bnV, own_bn).bool())


def _top(among: Callable[[Tensor, Tensor, int], Tensor]) -> Factory:
    """Plant another test of `topk-match`: (drafted_bn, target's law, K) -> bool_bn."""

    def test(proposal: Proposal, target_probs_bnV: Tensor, own_bn: Tensor, k: int) -> Tensor:
        return among(proposal.tokens_bn, target_probs_bnV, k)

    return policy(_rule("topk-match", lambda rule: (partial(test, k=rule[0].keywords["k"]), *rule[1:])))


def _of_drafted(probs_bnV: Tensor, drafted_bn: Tensor) -> Tensor:
    return probs_bnV.gather(-1, drafted_bn[..., None])[..., 0]


def _kth(probs_bnV: Tensor, k: int) -> Tensor:
    return probs_bnV.topk(k).values[..., -1]


def _top_by_index(drafted_bn: Tensor, probs_bnV: Tensor, k: int) -> Tensor:
    among_bn = (probs_bnV.topk(k).indices == drafted_bn[..., None]).any(-1)
    return among_bn & (_of_drafted(probs_bnV, drafted_bn) > 0)


def _one_late(true: Policy) -> Policy:
    begin, end = true.trusted
    return replace(true, trusted=(begin + (begin > 0), end + (begin == 0))) if true.trusted != (0, 0) else true


def _after(high: Callable[[DraftLength, int], int], low: Callable[[DraftLength, int], int]) -> dict[str, Any]:
    """Bound a dynamic length otherwise: by (rule, S) after an acceptance, by (rule, length) after a rejection."""

    def after(self: DraftLength, current: int, accepted_all: bool, S: int) -> int:
        if self.schedule:
            return current
        return min(current + 1, high(self, S)) if accepted_all else low(self, current)

    return {_LENGTH + "after": after}


def _high(rule: DraftLength, S: int) -> int:
    return rule.high or S


def _shifted(self: DraftLength, first: int, current: int, S: int) -> int:
    if not self.schedule:
        return min(current, S - first)
    return min(self.schedule[0 if len(self.schedule) == 1 else max(0, first - 1)], S - first)


def _coin(coin: Callable[[tuple[Tensor, ...]], list[Tensor]]) -> dict[str, Any]:
    """Toss another coin: (u_bl of every scale of the window) -> number_b of every scale."""

    def accept(parts: Parts, proposal: Proposal, probs_bnV: Tensor, window: Window, rate: float) -> Acceptance:
        u_bn = window.read_as("accept").uniform(ACCEPT)
        own_bn = speculative.race(parts, probs_bnV, window)
        whole_bs = torch.stack([u_b < rate for u_b in coin(window.split(u_bn))], 1)
        return Acceptance(own_bn, own_bn == proposal.tokens_bn, whole_bs)

    return {"harness.speculative._policies:accept_by_coin": accept}


def _whole_of_group(self: Acceptance, proposal: Proposal, window: Window) -> list[Tensor]:
    scales = zip(self.whole_bs.unbind(1), window.split(proposal.tokens_bn), window.split(self.tokens_bn), strict=True)
    return [torch.where(whole_b.all(), drafted_bl, else_bl) for whole_b, drafted_bl, else_bl in scales]


def _draft_rows(trace: Trace) -> None:
    trace.draft_rows = [min(count, sum(t.draft_rows for t in trace.rounds[0])) for count in trace.draft_rows]
    trace.draft_calls = [len(rounds) for rounds in trace.rounds]


# fmt: off
REVERSED_KL = Alone("rules.reversed-kl", "KL(draft, target)", "the arguments of another library",
    _judging(speculative.accept_by_kl, _reversed))
SUMMED_KL = Alone("rules.summed-kl", "the sum of KL over a scale", "sum for mean",
    _judging(speculative.accept_by_kl, _summed))
HALF_BOUND = Alone("rules.half-bound", "BOUND is taken in bits", "a logarithm of base 2",
    policy(_rule("kl", lambda rule: (rule[0] * 0.6931, rule[1]))))
PARTIAL_LOST = Alone("rules.partial-lost", "+partial is parsed and ignored", "an option that is never passed on",
    policy(lambda true: _rule("match", _not_partial)(_rule("kl", _not_partial)(true))))
ALWAYS_PARTIAL = Alone("rules.always-partial", "tokens that pass stay in a rejected scale, always",
    "a default that wins", policy(_rule("match", lambda rule: (*rule[:-1], True))))
OWN_MATCH = Alone("rules.own-match", "`match` compares with the target's own draw", "two tests that change places",
    policy(_rule("match", lambda rule: (speculative.is_own_draw, *rule[1:]))))
FILTERED_TOP = Alone("rules.filtered-top", "a filtered token counts as one of the K most likely",
    "a tie at probability 0", _top(lambda drafted, probs, k: _of_drafted(probs, drafted) >= _kth(probs, k)))
STRICT_TOP = Alone("rules.strict-top", "the K-th most likely token is none of K", "> for >=",
    _top(lambda drafted, probs, k: _of_drafted(probs, drafted) > _kth(probs, k)))
TOP_BY_INDEX = Alone("rules.top-by-index", "of tokens tied with the K-th some are none of K", "topk's indices",
    _top(_top_by_index))
TOP_OFF = Alone("rules.top-off", "K+1 most likely tokens", "an index counted from 0",
    policy(_rule("topk-match", lambda r: (partial(speculative.is_in_top, k=r[0].keywords["k"] + 1), *r[1:]))))
STRICT_RATE = Alone("rules.strict-rate", "more than RATE, where at least RATE is expected", "> for >=",
    policy(_rule("match", lambda rule: (rule[0], rule[1] + 1e-9, rule[2]))))
KEPT_BY_TEST = Alone("rules.kept-by-test", "what passes the test counts as kept", "a count of another mask",
    _judging(speculative.accept_by_rate, _kept_by_test))
ENTRY_OFF = Mutant("rules.entry-off", "the labour changes hands one scale late", "<= for <", policy(_one_late))
BORDER = Alone("rules.border", "a bonus scale is taken at the border of `collaborative`",
    "a check of the first scale alone", patched(arguments_of(
        "harness.speculative.sampler:run_round", lambda state, parts, policy, window, bonus: (
            state, parts, policy if policy.trusts(window.first) else replace(policy, trusted=(0, 0)), window, bonus))))
HIGH_IGNORED = Alone("rules.high-ignored", "a dynamic length grows beyond HIGH", "a bound that is parsed and dropped",
    patched(_after(lambda rule, S: S, lambda rule, length: max(length - 1, rule.low))))
LOW_IGNORED = Alone("rules.low-ignored", "a dynamic length shrinks below LOW", "max(1, …)",
    patched(_after(_high, lambda rule, length: max(length - 1, 1))))
RESET = Alone("rules.reset", "a rejection puts a dynamic length back to LOW", "another rule of another paper",
    patched(_after(_high, lambda rule, length: rule.low)))
SHIFTED = Alone("rules.shifted", "a schedule is read one scale off", "an index counted from the last final scale",
    patched({_LENGTH + "count": _shifted}))
MORE_ROWS = Mutant("rules.more-rows", "every round counts a target row too many",
    "a bonus row that was never submitted", telling(lambda turn: replace(turn, target_rows=turn.target_rows + 1)))
DRAFT_CALLS = Mutant("rules.draft-calls", "the draft's passes are counted by round", "a counter in the outer loop",
    reporting(_draft_rows))
COIN_OF_MEAN = Alone("rules.coin-of-mean", "a bench's coin is the mean of a scale's numbers",
    "one number a scale wanted, l at hand", shared=_coin(lambda scales: [u_bl.mean(1) for u_bl in scales]))
COIN_OF_WINDOW = Alone("rules.coin-of-window", "one coin a window", "a draw outside the loop over scales",
    shared=_coin(lambda scales: [scales[0][:, 0] for _ in scales]))
WHOLE_OF_GROUP = Mutant("rules.whole-of-group", "an accepted scale keeps its tokens if all images accept it",
    "all() without a dimension", patched({"harness.speculative._accept:Acceptance.tokens_by_scale": _whole_of_group}))
ONE_BEYOND = Alone("rules.one-beyond", "a dynamic length ends one above HIGH", "<= for < at a bound",
    patched(_after(lambda rule, S: min(S, _high(rule, S) + 1), lambda rule, length: max(length - 1, rule.low))))
HALVED = Alone("rules.halved", "a rejection halves a dynamic length", "the rule of another protocol",
    patched(_after(_high, lambda rule, length: max(length // 2, rule.low))))
BONUS_IGNORED = Mutant("rules.bonus-ignored", "a bonus scale is asked for and never taken",
    "an option dropped on the way", lambda models, settings: production(models, replace(settings, bonus=False)))
FEW_ROWS = Mutant("rules.few-rows", "a round without a draft counts one row", "a row for a pass",
    telling(lambda turn: turn if turn.drafted else replace(turn, target_rows=min(1, turn.target_rows))))
# fmt: on
_ROUND = "harness.speculative._round:"


def _filled_short(state: DecodeState, parts: Parts, policy: Policy, window: Window) -> None:
    for image in window.images:
        if window.first and not state.draft.cache.lengths[image]:
            state.draft.cache.lengths[image] = state.pyramid.end(0)
    speculative.draft_generate_batch(state, parts, policy, window)


def _inputs_lost(state: DecodeState, parts: Parts, policy: Policy, window: Window) -> None:
    raw_before = state.raw_BLC.clone()
    if window.first and not state.draft.cache.lengths[window.images[0]]:
        state.raw_BLC[window.images, : window.span.start] = 0
    speculative.draft_generate_batch(state, parts, policy, window)
    state.raw_BLC[window.images, : window.span.start] = raw_before[window.images, : window.span.start]


def _restarted(state: DecodeState, parts: Parts, this: Pass, policy: Policy) -> None:
    def guide(rows_RnV: Tensor, pyramid: ScalePyramid, cfg: float, first: int, last: int) -> Tensor:
        alone = not policy.speculates and first >= policy.entry > 0
        share = (first - policy.entry) / first if alone else 1.0
        return PARTS.guide(rows_RnV, pyramid, cfg * share, first, last)

    speculative.propose_scale(state, replace(parts, guide=guide), this, policy)


def _filled_along(state: DecodeState, parts: Parts, policy: Policy, window: Window, bonus: bool) -> None:
    if not window.scales:
        step = replace(window, last=window.first, reader="draft")
        speculative.forward_window(state, parts, state.draft, step, speculative.forward)
    speculative.run_round(state, parts, policy, window, bonus)


def _of_code(**changes: Any) -> Any:
    return policy(lambda true: true if true.speculates else replace(true, **changes))


# fmt: off
FILLED_SHORT = Mutant("rules.filled-short", "the draft that takes over has never seen scale 0",
    "a cache taken for filled", patched({_ROUND + "draft_generate_batch": _filled_short}))
INPUTS_LOST = Mutant("rules.inputs-lost", "the draft that takes over fills its cache from empty inputs",
    "inputs that only drafts keep", patched({_ROUND + "draft_generate_batch": _inputs_lost}))
RESTARTED = Mutant("rules.restarted", "guidance begins at t = 0 again where the draft takes over",
    "an index counted from ENTRY", patched({_ROUND + "propose_scale": _restarted}))
OWN_STREAM = Alone("rules.own-stream", "the draft that takes over draws with numbers of its own",
    "the stream of a rejection sampler", _of_code(propose=speculative.race_alone))
TARGET_GREEDY = Mutant("rules.target-greedy", "the target that decides alone takes the most likely tokens",
    "a draw left out", _of_code(extend=speculative.most_likely))
DRAFTED_ANYWAY = Mutant("rules.drafted-anyway", "scales that the target decides alone are drafted all the same",
    "another policy's loop", _of_code(speculates=True))
FILLED_ALONG = Alone("rules.filled-along", "the draft makes a pass for every scale that the target decides",
    "one loop for both", patched({"harness.speculative.sampler:run_round": _filled_along}))
