"""Laws of acceptance: what the draft may change (speed) and what it may not (anything else)."""

from dataclasses import replace

import torch
from torch import Tensor

from harness.errors import InputError
from harness.judge import Evidence, judge, require, unverified_scales
from harness.laws._batch import in_step
from harness.laws._case import QUALITIES, Case
from harness.laws._enumeration import LANES, output_law, p_value, target_law
from harness.laws._law import (
    FLOAT64,
    KEEPS_AN_EQUAL,
    PLAIN,
    NotOffered,
    Subject,
    law,
    require_accepted_whole,
    require_equal,
    require_rounds,
    require_shown_rounds,
    require_tokens,
)
from harness.laws._oracle import needs_exact, noting, require_draws, run_over
from harness.protocol import PATCH_NUMS_256, PATCH_NUMS_512, Contract, Round, Trace
from harness.reference import decode_by_policy, filter_logits, joint_law, law_distance
from harness.rounding import quick_budget
from harness.speculative.sampler import SpeculativeDecoder

# One false alarm in 10^6 checks if chi-square held to that depth; with pooled cells it is some factors off so far out.
# tests/meta/test_goodness_of_fit.py measures the rate, and the power at this many draws.
DRAWS, ALARM = 3000, 1e-6
_EXACT = 1e-12  # sums of some hundred products of float64 numbers below 1; seen: 1e-15
_EXACT_FLOAT32 = 2.0**-20  # where the draft's probabilities are float32 numbers; seen: 1e-8


def _rejected(decoded: Trace, case: Case) -> bool:
    """Return whether any round replaced a drafted scale; where no rounds are shown, whether the draft is another."""
    if not any(turn.drafted for turn in decoded.turns):
        return case.draft != "identical"
    return any(turn.corrected for turn in decoded.turns)


def _require_right(actual: Trace, case: Case, where: str = "") -> None:
    """Refuse a decode that the judge finds wrong, by the component that it names."""
    evidence = Evidence(
        case.models, case.request, actual, case.sequential(), quick_budget(case.models), case.settings.greedy
    )
    for defect in judge(evidence, drafts=False).defects[:1]:
        require(False, f"{where}{defect}", defect.component)


@law("acceptance.token-identical", "decode", "accept", contract=Contract.TOKENS, wide=False)
def _token_identical(subject: Subject, case: Case) -> bool:
    """Same seed, same tokens as sequential target decoding (ties certified)."""
    actual = subject.decode(case)
    _require_right(actual, case)
    return _rejected(actual, case)


@law(
    "acceptance.identical-draft", "accept", "draft_generate_batch", "cache",
    contract=Contract.LAW, policies=KEEPS_AN_EQUAL,
)  # fmt: skip
def _identical_draft(subject: Subject, case: Case) -> bool:
    """draft = target accepts everything."""
    needs_exact(case, "rounding decides whether a draft = target is accepted whole")
    for draft_len in range(1, case.pyramid.S + 1):
        decoded = subject.decode(replace(case, draft="identical", draft_len=draft_len))
        require_accepted_whole(decoded, f"draft_len {draft_len}")
    return case.pyramid.S > 1


@law("acceptance.honest", "decode", "trace")
def honest(subject: Subject, case: Case) -> bool:
    """The trace's counts add up: nothing accepted that was not drafted, no pass uncounted."""
    decoded = subject.decode(case)
    claimed = Contract.of(subject.decoder(case).contract)
    # a rule of the decoder's own: it claims less than the policy that it was asked for
    lossy = claimed is Contract.QUALITY and case.policy in PLAIN
    require_shown_rounds(decoded)
    for image, rounds in enumerate(decoded.rounds):
        for turn in rounds:
            _honest_round(case, turn, f"image {image}, round at scale {turn.first}: {turn}", lossy)
            rejected = turn.corrected == (turn.accepted < turn.drafted) or lossy or in_step(decoded)
            require(rejected, f"corrected iff a drafted scale was rejected: image {image}, {turn}")
            # a lossy rule looks at something else than whether a token is the target's own draw
            has_reason = turn.corrected_tokens >= 1 or not turn.corrected or not claimed.entails(Contract.LAW)
            require(has_reason, f"a scale was rejected without a wrong token: {image}, {turn}")
        calls, passes = decoded.target_calls[image], sum(turn.target_rows > 0 for turn in rounds)
        alone = sum(map(case.pyramid.tokens, unverified_scales(decoded, image)))
        made_rows = sum(turn.target_rows for turn in rounds)
        if lossy:  # rounds of the draft alone, and passes that came to nothing
            require(calls >= passes, f"image {image}: {calls} target calls in {passes} rounds with target rows")
            require(decoded.target_rows[image] >= made_rows, f"image {image}: fewer target_rows than {made_rows}")
            continue
        require(calls == passes, f"image {image}: {calls} target calls in {passes} rounds with a target pass")
        require(decoded.target_rows[image] == made_rows, f"image {image}: target_rows do not add up to {made_rows}")
        due_rows = case.pyramid.L if claimed.entails(Contract.LAW) else case.pyramid.L - alone
        require(made_rows >= due_rows, f"image {image}: {made_rows} target rows cannot decide {due_rows}")
    return _rejected(decoded, case) or lossy


@law("acceptance.exact", "accept", "residual", "noise", contract=Contract.LAW)
def exact(subject: Subject, case: Case) -> bool:
    """The probability of every image, by walking all branches of the decoder, is the target's."""
    needs_exact(case, "rounding moves the probability of an image")
    # the walk lives on the host; on another device `distribution` is what tests the law
    small = replace(distribution_case(case), V=2, labels=case.labels[:1], order="image", device="cpu")
    for dtype, most in (("", _EXACT), ("bfloat16", _EXACT_FLOAT32)):
        small = replace(small, draft_dtype=dtype)
        decoder = subject.decoder(small)
        if not isinstance(decoder, SpeculativeDecoder):
            raise NotOffered("not composed of the harness's parts")
        # In bfloat16 a draft rounds by the batch, and branches go on from its law: each in a batch of its own
        lanes = 1 if dtype else LANES
        law, branches = output_law(small.models, small.request, decoder.options, decoder.parts, lanes=lanes)
        expected = joint_law(small.models, small.request)
        far = law_distance(law, expected)
        said = f"an image's probability is {far:.3g} off; {branches} branches, {len(expected)} images"
        require(far <= most, f"{said}{f'; a draft in {dtype}' * bool(dtype)}", "accept")
    return branches > len(expected)


def _honest_round(case: Case, turn: Round, at: str, lossy: bool) -> None:
    """Require that the counts of one round can be true; under contract C a rule of the decoder's own may decide."""
    left = case.pyramid.S - turn.first
    if not lossy:
        if not turn.drafted:  # one step of a sequential decoder
            require(turn.finished == 1 and turn.bonus, f"nothing drafted, and not one scale decided: {at}")
        most = case.length if turn.target_rows else left  # scales that the draft decides alone are drafted at once
        require(turn.drafted <= min(most, left), f"drafted too much: {at}")
        require(not (turn.bonus and turn.corrected), f"bonus after a correction: {at}")
        require(turn.bonus <= (case.bonus or not turn.drafted), f"bonus although none was asked for: {at}")
    require(0 <= turn.accepted <= turn.drafted <= left, f"accepted more than drafted: {at}")
    require(turn.finished >= 1, f"finished nothing: {at}")
    expected = sum(case.pyramid.draws.counts[turn.first + k] for k in range(turn.finished))
    counted = turn.accepted_tokens + turn.corrected_tokens + turn.bonus_tokens
    require(counted == expected, f"counts {counted} tokens in {expected}: {at}")


@law("acceptance.keep", "keep_drafted")
def keep(subject: Subject, case: Case) -> bool:
    """A drafted token is kept iff u < target/draft, from the least number to the last below 1."""
    parts = subject.parts(case, "keep_drafted")
    u = torch.tensor([0.0, 2.0**-24, 1e-6, 1e-4, 0.01, 0.25, 0.5, 0.75, 0.999, 1 - 2.0**-24], dtype=torch.float64)
    probs = torch.tensor([1e-300, 1e-9, 1e-6, 1e-3, 0.02, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    u_Bn, draft_Bn, target_Bn = (t.flatten()[None].to(case.at) for t in torch.meshgrid(u, probs, probs, indexing="ij"))
    u_Bn = u_Bn.float()  # as the noise holds them
    for ratio in (0.9, 0.5, 0.011, 1e-5):  # next to the threshold, on both sides
        for side in (1 - 1e-4, 1 + 1e-4):
            u_1 = torch.full((1, 1), ratio * side, dtype=torch.float32, device=case.at)
            draft_1 = torch.full_like(u_1, 0.5, dtype=torch.float64)
            is_kept = bool(parts.keep_drafted(u_1, draft_1, ratio * draft_1))
            require(is_kept == (side < 1), f"u = {ratio * side:.6g} against target/draft = {ratio:g}: kept {is_kept}")
    none = parts.keep_drafted(u_Bn[:, :1], draft_Bn[:, -1:], torch.zeros_like(target_Bn[:, :1]))
    require(not bool(none.any()), "u = 0 keeps a token that the target never draws")
    apart = ((u_Bn.double() * draft_Bn) / target_Bn - 1).abs() > 1e-6
    actual_Bn = parts.keep_drafted(u_Bn, draft_Bn, target_Bn)
    if wrong := torch.nonzero((actual_Bn != (u_Bn.double() * draft_Bn < target_Bn)) & apart).tolist():
        n = wrong[0][1]
        require(False, f"u {float(u_Bn[0, n]):g}, draft {float(draft_Bn[0, n]):g}, target {float(target_Bn[0, n]):g}: "
                       f"kept {bool(actual_Bn[0, n])}")  # fmt: skip
    return True


@law("acceptance.residual", "residual")
def _residual_law(subject: Subject, case: Case) -> bool:
    """A token that fails is drawn from the positive part of target − draft, be it normalised or not."""
    parts = subject.parts(case, "residual")
    draft_BnV, target_BnV = case.normal(2, 2, 9, case.V).mul(3).softmax(-1).unbind(0)
    target_BnV = torch.where(target_BnV < 0.05, 0.0, target_BnV)
    target_BnV = target_BnV / target_BnV.sum(-1, keepdim=True)
    for share in (1.0, 0.1, 0.01, 1e-3):  # the draft's from next to the target's law on: a small part has a shape, too
        near_BnV = torch.lerp(target_BnV, draft_BnV, share)
        above_BnV = torch.where(target_BnV > near_BnV, target_BnV - near_BnV, 0.0)
        expected = above_BnV / above_BnV.sum(-1, keepdim=True)
        where = f"{share:g} of the way from the target's law to another"
        actual = parts.residual(near_BnV, target_BnV)  # a race needs no sum of one, and no common factor
        require_equal("residual", actual / actual.abs().sum(-1, keepdim=True), expected, where, FLOAT64)
    equal = parts.residual(target_BnV, target_BnV)
    require(bool(torch.isfinite(equal).all()), "draft = target leaves a residual that is not finite")
    return True


@law("acceptance.drawn", "draft_generate_batch", "accept", policies=("rejection",))
def drawn(subject: Subject, case: Case) -> bool:
    """What is subtracted from the target's law is the law that the draft drew from, filter and all."""
    laws, drawn_from = list[Tensor](), list[Tensor]()
    case = replace(case, draft="near", top_k=max(2, case.V - 1), top_p=0.9)
    watched = subject.spied(case, draw=noting(drawn_from, 0), residual=noting(laws, 0))
    watched.decode(case.request, case.noise())
    known = {row.tobytes() for probs_BnV in drawn_from for row in probs_BnV.flatten(0, 1).cpu().numpy()}
    for draft_BnV in laws:
        for row_V in draft_BnV.flatten(0, 1).cpu().numpy():
            said = f"the draft's law is said to be {row_V.tolist()[:6]}: nobody drew from it"
            require(row_V.tobytes() in known, said)
    return bool(laws)


def distribution_case(case: Case) -> Case:
    """Return the case as contract B is tested in it: many draws of one label, a draft that is often wrong.

    One generator for the batch, since a generator an image costs more than the decode; filters that leave something
    to draw; a scale after the drafted one where a bonus is asked for.
    """
    V = min(case.V, 3)
    return replace(
        case, patch_nums=(1, 2), V=V, draft="near" if case.draft == "identical" else case.draft,
        top_k=2 if case.top_k == 3 else 0, top_p=0.9 if case.top_p else 0.0,
        cfg=min(case.cfg, 0.5),  # guidance sharpens a law, and a sharp law hides a bias
        labels=case.labels[:1] * DRAWS, order="batch", policy=case.policy if case.policy in PLAIN else "rejection",
        draft_len=1 if case.bonus else case.draft_len,
    )  # fmt: skip


@law("acceptance.support", "accept", "filter_logits", "draw", contract=Contract.LAW)
def support(subject: Subject, case: Case) -> bool:
    """Degenerate laws (one-hot, -inf, ties) stay inside the target's support."""
    needs_exact(case, "rounding decides what a filter keeps at its edge")
    narrow = [(1, 0.0), (0, 0.1), (0, 1e-17), (max(1, case.V // 2), 0.4), (case.top_k, case.top_p)]
    dropped = False
    for top_k, top_p in narrow:
        request = replace(case.request, top_k=top_k, top_p=top_p, filters=())
        decoded = subject.decode(case, request=request)
        run = run_over(case.models.target, case.models.vae, case, decoded.tokens_BL)
        for si in case.pyramid:
            span = case.pyramid.draws.span(si)
            guided_BlV = case.steps.guide(run.rows_RLV[:, span], request.guidance, si, case.pyramid.S)
            law_BlV = filter_logits(guided_BlV, top_k, top_p)
            own_Bl = law_BlV.gather(-1, decoded.tokens_BL[:, span, None])[..., 0]
            wrong = torch.nonzero(torch.isinf(own_Bl)).tolist()
            where = f"top_k {top_k}, top_p {top_p}, scale {si}"
            require(not wrong, f"{where}: filtered tokens at (image, token) {wrong[:4]}")
            dropped = dropped or bool(torch.isinf(law_BlV).any())
    return dropped


@law("acceptance.real", "decode", "accept", "trace", contract=Contract.TOKENS)
def real(subject: Subject, case: Case) -> bool:
    """On the real pyramids, near-perfect drafts included, tokens and counts are right.

    Drafts that are equal, or wrong at one position of a scale of hundreds: a count that wraps, or a share that is
    rounded, shows there and nowhere else. The smallest networks; one image, or two.
    """
    needs_exact(case, "rounding decides a token of some thousand")
    large = case.seed % 2 == 1
    case = replace(
        case, patch_nums=PATCH_NUMS_512 if large else PATCH_NUMS_256, V=min(case.V, 5), D=16, depth=1,
        labels=case.labels[: 1 if large else 2], cfg=case.cfg + 1 / 3,
        draft="single" if large else ("single", "identical", "close")[case.weights % 3],
        draft_len=(3, 10, 2, 5)[case.seed // 4 % 4],
    )  # fmt: skip
    decoded, request, where = subject.decode(case), case.request, f"{case.pyramid.L} tokens an image"
    tokens_BL, rounds = decode_by_policy(case.models, request, case.noise(), case.policy, str(case.length), case.bonus)
    if not torch.equal(decoded.tokens_BL, tokens_BL):
        _require_right(decoded, case, f"{where}: ")  # names a component
    require_tokens(decoded.tokens_BL, tokens_BL, where)
    if subject.follows(case) and decoded.rounds:
        require_rounds(decoded.rounds, rounds, where)
    return case.draft != "close" or _rejected(decoded, case)


@law("acceptance.independent", "decode", "accept", contract=Contract.TOKENS)
def independent(subject: Subject, case: Case) -> bool:
    """The image does not depend on draft, draft_len, schedule or bonus."""
    first = subject.decode(case)
    some = _rejected(first, case)
    S = case.pyramid.S
    lengths = [(1, False), (S, False), (max(1, S // 2), subject.has_bonus(case))]
    for k, quality in enumerate(QUALITIES):
        draft_len, bonus = lengths[(k + case.seed) % len(lengths)]
        actual = subject.decode(replace(case, draft=quality, draft_len=draft_len, bonus=bonus))
        where = f"draft {quality}, draft_len {draft_len}, bonus {bonus} (base: {case.draft}, {case.draft_len})"
        require_draws(case, case.request, actual.tokens_BL, first.tokens_BL, where)
        some = some or _rejected(actual, case)
    for schedule in ("/".join(str(1 + si % 2) for si in case.pyramid), f"dynamic:1:{S}"):
        try:
            decoder = subject.decoder(case, draft_len=schedule)
        except (InputError, ValueError, TypeError):  # a number is all that every decoder must take
            continue
        actual = decoder.decode(case.request, case.noise())
        where = f"draft_len {schedule} (base: {case.draft_len})"
        require_draws(case, case.request, actual.tokens_BL, first.tokens_BL, where)
    return some


@law("acceptance.distribution", "accept", "draw", "noise", contract=Contract.LAW)
def distribution(subject: Subject, case: Case) -> bool:
    """The joint law over scales is the target's."""
    # on the smallest real pyramid, of two scales
    small = distribution_case(case)
    decoded = subject.decode(small)
    p = p_value(decoded.tokens_BL, target_law(small), small.V)
    require(p >= ALARM, f"{DRAWS} images do not follow the target's joint law: p = {p:.2g}, alarm at {ALARM:g}")
    return _rejected(decoded, small)
