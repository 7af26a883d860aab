"""The judgement on one decode, beside the reference under the same noise.

Promise: every token of every image is compared with the reference's draw on the same prefix, and counted: draws =
identical + ties + wrong tokens + unclaimed ones. The reference follows the decoder's tokens, so one tie does not
cascade, and a decoder needs no hook for it. Where a decoder does not claim the tokens (contracts B and C) no token is
called right, and wrong only one that contract B forbids (`_support`); what must hold anyway is checked all the same:
every scale finished exactly once, and the target's tensors those of the reference along the decoder's own tokens. Of a
decode that ended half-way the final scales are compared as those of a whole one are, so that a crash hides no mistake
that came before it; what was never reached is not judged. And a verdict never speaks of what nobody showed.
"""

from dataclasses import replace

import torch

from harness.judge._components import WrongTensors, first_wrong, first_wrong_of, stale_scale
from harness.judge._evidence import Evidence, WrongTensor
from harness.judge._form import malformed, rounds_by_beginning, wrong_rounds
from harness.judge._likelihood import bet_on
from harness.judge._rows import UNKNOWN
from harness.judge._shown_law import judge_shown_law
from harness.judge._tokens import judge_support, judge_tokens
from harness.judge._verdict import CALLS_AND_ROWS, Distance, Divergence, Judgement
from harness.models import ModelPair
from harness.protocol import Contract, Request, Trace
from harness.protocol.pyramid import ScalePyramid
from harness.wording import count_of

SHOWN = ("inputs", "rows", "guided logits", "f_hat of every scale")  # what Trace.intermediates holds


def judge(evidence: Evidence, contract: Contract = Contract.TOKENS, drafts: bool = True) -> Judgement:
    """Judge one decode; defects come in causal order. Without a claim on tokens distances are measured.

    `evidence.expected` is a run of the reference under the same noise, a free one for distances. Nothing drafted means
    nothing proved, but for a decoder that is sequential and says so: `drafts` is False then.
    """
    return judge_along(evidence, contract, drafts)[0]


def judge_along(evidence: Evidence, contract: Contract, drafts: bool) -> tuple[Judgement, Evidence]:
    """Judge one decode; return the evidence along the decoder's own tokens, too. Arguments as `judge`."""
    evidence = replace(evidence, noise=evidence.numbers)  # drawn once, if at all
    request, actual = evidence.request, evidence.actual
    claims_tokens = contract is Contract.TOKENS
    judgement = Judgement(request.B, claims_tokens=claims_tokens)
    if (wrong_form := malformed(evidence.models, request, actual)) is not None:
        is_whole = wrong_form == next(wrong_rounds(evidence.models, request, actual), None)
        if is_whole and contract is not Contract.QUALITY:  # where rounds say which scales the target decided
            rounds = rounds_by_beginning(evidence.models.pyramid, actual)
            by_beginning = replace(evidence, actual=replace(actual, rounds=rounds))
            judgement, evidence = judge_along(by_beginning, contract, drafts=False)
            example = f"as of seed {wrong_form.seed}, image {wrong_form.image}: {wrong_form.detail}"
            judgement.compared = [each for each in judgement.compared if each != CALLS_AND_ROWS]
            counts = _wrong_counts(evidence.models.pyramid, request, replace(actual, rounds=[]), contract)
            judgement.defects = [*(each for each in judgement.defects if each.component != "counts"), *counts]
            judgement.not_compared[CALLS_AND_ROWS] = f"the rounds are wrong, {example}"
        judgement.defects = sorted([wrong_form, *judgement.defects], key=lambda defect: defect.order)
        return judgement, evidence
    judgement.draws = actual.tokens_BL.numel()
    if request.more_smooth and actual.intermediates is None:
        judgement.inconclusive.append("more_smooth is judged from scale to scale, by Trace.intermediates")
        return judgement, evidence
    along = _along(evidence, contract)
    if not claims_tokens:
        judgement.distances = image_distances(evidence.models, actual, evidence.expected)
    differ_BL = actual.tokens_BL != along.expected.tokens_BL
    judgement.identical = judgement.draws - int(differ_BL.sum())
    wrong, claimed_BL = first_wrong(along), differ_BL.clone()
    if not claims_tokens:  # but for those before the first scale that may differ
        claimed_BL[:, evidence.models.pyramid.draws.begin(evidence.may_differ_from or 0) :] = False
        judgement.unclaimed = int((differ_BL & ~claimed_BL).sum())
    if claims_tokens or evidence.may_differ_from:
        judge_tokens(along, wrong, claimed_BL, judgement)
    if contract is Contract.LAW:
        judge_support(along, judgement, bet_on(along, judgement).forbidden)
    # a greedy decode draws nothing; where a token is wrong already, so is its draw
    if not (evidence.greedy or judgement.defects):
        judge_shown_law(along, judgement)
    tensors = [_skipped_there(along, each) for each in _judge_tensors(along, wrong)]
    judgement.wrong_tensors = len(tensors)
    judgement.defects = [*(_skipped_there(along, each) for each in judgement.defects), *tensors]
    judgement.defects += _wrong_counts(evidence.models.pyramid, request, actual, contract)
    _say_what_was_compared(along, contract, judgement)
    row = {address: b for b, address in reversed(list(enumerate(request.addresses)))}
    # f_hat comes after the tokens that it is made of, and a wrong count after what is wrong in tensors
    firsts = {request.addresses[b]: first for b, first in wrong.items() if first is not None}
    late = [each for each in tensors if each.position < 0 or firsts[each.seed, each.image].is_f_hat]
    judgement.defects.sort(
        key=lambda d: (*d.order, row[d.seed, d.image], any(d is each for each in late), d.position < 0, *d.place)
    )
    if drafts and not any(turn.drafted for turn in actual.turns):
        reason = "nothing was drafted, as far as Trace.rounds shows; pass --sequential for a decoder that never drafts"
        judgement.inconclusive.append(reason)
    return judgement, along


def judge_partial_trace(evidence: Evidence, contract: Contract, drafts: bool, ended: Judgement) -> Judgement:
    """Judge what a decode did before it ended, as `ended` says; why it ended comes first. Arguments as of `judge`."""
    actual, pyramid, V = evidence.actual, evidence.models.pyramid, evidence.models.target.config.V
    if _is_whole(actual, pyramid, V):
        judgement = judge(evidence, contract, drafts)
        judgement.defects = [*ended.defects, *judgement.defects]
        judgement.so_far, judgement.ending = ended.so_far, ended.ending
        return judgement
    final_B = [final_scales(actual, pyramid, image) for image in range(evidence.request.B)]
    last_right, divergences = "", list[Divergence]()
    if begun := [final for final in final_B if final]:
        # what was never drawn may be any number
        tokens_BL = actual.tokens_BL.clamp(0, V - 1)
        along = _along(replace(evidence, actual=replace(actual, tokens_BL=tokens_BL)), contract)
        shown = actual.intermediates
        for image, final in enumerate(final_B):
            written = [
                si for si in range(final) if shown is None or bool(shown.f_hat_SBCPP[si, image].isfinite().all())
            ]
            if (wrong := first_wrong_of(along, image, written)) is not None:
                divergences.append(_tensor_divergence(along, wrong, image))
        right = min(min((each.scale for each in divergences), default=pyramid.S), *begun)
        last_right = f"; last good tensor: f_hat of scale {right - 1}" if right else "; no tensor was right"
    ended.defects = [*ended.defects, *divergences]
    ended.wrong_tensors = len(divergences)
    clauses = (f"{_progress(actual, pyramid)}{last_right}", ended.so_far)
    ended.so_far = "; ".join(clause for clause in clauses if clause)
    return ended


def _along(evidence: Evidence, contract: Contract) -> Evidence:
    """Return the evidence along the decoder's own tokens, and which scales have no target tensors."""
    along = evidence.along()
    if contract is not Contract.QUALITY:  # every other claim is about the target's law at every scale
        return along
    late = frozenset(range(evidence.may_differ_from or evidence.models.pyramid.S, evidence.models.pyramid.S))
    alone = (unverified_scales(evidence.actual, b) for b in range(evidence.request.B))
    return replace(along, unverified=tuple(scales | late for scales in alone))


def unverified_scales(actual: Trace, image: int) -> frozenset[int]:
    """Return the scales that a round without a target pass made final: they have no target tensors to check."""
    rounds = actual.rounds[image] if actual.rounds else []
    return frozenset(t.first + k for t in rounds if t.target_rows == 0 for k in range(t.finished))


def _judge_tensors(evidence: Evidence, wrong: WrongTensors) -> list[Divergence]:
    """Return the first wrong tensor of every image, placed; `wrong` is what `first_wrong` says of them."""
    divergences = [_tensor_divergence(evidence, first, image) for image, first in wrong.items() if first]
    error_B = (evidence.actual.f_hat_BCPP - evidence.expected.f_hat_BCPP).abs().flatten(1).amax(1)
    for image, error in enumerate(error_B.tolist()):
        if not error <= evidence.f_hat_error and not wrong[image]:
            last = evidence.models.pyramid.S - 1
            detail, where = "the final f_hat is not that of the decoder's own tokens", evidence.request.where(image)
            if (scale := stale_scale(evidence, image, last, evidence.actual.f_hat_BCPP[image])) is not None:
                detail = f"the final f_hat is the one after scale {scale}: what later scales add is missing"
            divergences.append(Divergence("f_hat", detail, **where, scale=last, delta_f_hat=error))
    return divergences


def _tensor_divergence(evidence: Evidence, wrong: WrongTensor, image: int) -> Divergence:
    """Place a wrong tensor at its scale's worst position: of guided logits, or of f_hat where that alone is wrong."""
    a, b = evidence.actual.shown, evidence.expected.shown
    si, pyramid = wrong.scale, evidence.models.pyramid
    span = pyramid.draws.span(si)
    delta_l = (a.guided_BLV[image, span] - b.guided_BLV[image, span]).abs().amax(1)
    offset, far_CPP = int(delta_l.argmax()), (a.f_hat_SBCPP[si, image] - b.f_hat_SBCPP[si, image]).abs()
    delta_f_hat, (C, height, width), (h, w) = float(far_CPP.max()), far_CPP.shape, pyramid.sides[si]
    is_alone = bool(delta_l.max() <= 2 * evidence.allowance(si).logits) and not delta_f_hat <= evidence.f_hat_error
    if is_alone and pyramid.channels in (1, C):  # a patch of positions has no channel of f_hat's
        c, rest = divmod(int(far_CPP.argmax()), height * width)
        y, x = divmod(rest, width)
        offset = (y * h // height * w + x * w // width) * pyramid.channels + c * (pyramid.channels == C > 1)
    labels, (position, channel) = evidence.request.labels, pyramid.place(span.start + offset)
    actual, expected = (int(side.tokens_BL[image, span][offset]) for side in (evidence.actual, evidence.expected))
    return Divergence(
        wrong.component, wrong.detail, **evidence.request.where(image), label=labels[image] if labels else -1,
        scale=si, position=position, channel=channel, actual=actual, expected=expected,
        delta_logits=float(delta_l[offset]), delta_f_hat=delta_f_hat,
    )  # fmt: skip


def _is_whole(trace: Trace, pyramid: ScalePyramid, V: int) -> bool:
    """Tell whether every scale was made final once, with tokens that there are."""
    return bool(((trace.tokens_BL >= 0) & (trace.tokens_BL < V)).all()) and not trace.missing_scales(pyramid)


def final_scales(trace: Trace, pyramid: ScalePyramid, image: int) -> int:
    """Return how many scales of an image, from the first on, were made final with tokens."""
    for si in pyramid:
        known = bool((trace.tokens_BL[image, pyramid.draws.span(si)] >= 0).all())
        if int(trace.scale_writes_BS[image, si]) < 1 or not known:
            return si
    return pyramid.S


def _progress(trace: Trace, pyramid: ScalePyramid) -> str:
    scales_B = (final_scales(trace, pyramid, image) for image in range(len(trace.tokens_BL)))
    final = min(filter(None, scales_B), default=0)  # an image that was not begun says nothing
    rounds = max((len(turns) for turns in trace.rounds), default=0)
    scales = f"scales 0..{final - 1} of {pyramid.S} final" if final else f"no scale of {pyramid.S} final"
    return f"{count_of(rounds, 'round')}, {scales}"


def _wrong_counts(pyramid: ScalePyramid, request: Request, trace: Trace, contract: Contract) -> list[Divergence]:
    """List the first count of every image that cannot be true: too low, or of other tokens than a round makes final.

    A target pass of a round computes every scale that it makes final, at least. Where every token is the target's
    (contracts A and B) it computes every position of the pyramid. Counts that a trace does not hold are not checked.
    """
    details = {image: _too_low(pyramid, trace, image, contract) for image in range(request.B)}
    return [Divergence("counts", detail, **request.where(image)) for image, detail in details.items() if detail]


def _too_low(pyramid: ScalePyramid, trace: Trace, image: int, contract: Contract) -> str:
    rounds = trace.rounds[image] if trace.rounds else []
    for turn in rounds:
        final = sum(pyramid.draws.counts[turn.first : turn.first + turn.finished])
        counted = turn.accepted_tokens + turn.corrected_tokens + turn.bonus_tokens
        if counted != final:
            return f"the round at scale {turn.first} counts {counted} tokens in {final} that it makes final"
    passes, left = [turn for turn in rounds if turn.target_rows], [0] * pyramid.S
    if trace.skipped_BSN is not None:  # by every block: the others still compute a position that one of them skips
        left = trace.skipped_BSN[image].long().amin(1).tolist()
    for turn in passes:
        scales = range(turn.first, turn.first + turn.finished)
        final = sum(pyramid.tokens(si) - left[si] for si in scales)
        if turn.target_rows < final:
            return f"the round at scale {turn.first} counts {turn.target_rows} target rows for {final} final positions"
    least_rows, least_calls = sum(turn.target_rows for turn in passes), len(passes)
    if contract.entails(Contract.LAW):
        least_rows, least_calls = max(least_rows, pyramid.L), max(least_calls, 1)
        if (alone := next((turn for turn in rounds if not turn.target_rows), None)) is not None:
            return f"the round at scale {alone.first} counts no target rows, and the target decides every scale"
    elif not rounds:
        return ""
    for name, least in (("target_calls", least_calls), ("target_rows", least_rows)):
        counts = getattr(trace, name)
        if counts and counts[image] < least:
            return f"{name} is {counts[image]}, and cannot be below {least}"
    return ""


def _say_what_was_compared(evidence: Evidence, contract: Contract, judgement: Judgement) -> None:
    """List what was compared; under contracts B and C nothing is proved without the target's tensors."""
    actual, why, free = evidence.actual, "", evidence.may_differ_from
    judged = [evidence.models.pyramid.S - len(scales) for scales in evidence.unverified]
    if actual.intermediates is None:
        why = "the decoder shows no Trace.intermediates"
    elif judged and not any(judged):
        why = "the draft decided every scale alone"
        why = why if free is None else f"no target pass decided a scale before {free}"
    early = [] if free is None else [f"tokens before scale {free}"]
    judgement.compared = ["tokens"] if contract is Contract.TOKENS else early
    judgement.compared.append("final f_hat")
    if contract is not Contract.TOKENS:
        word = "tokens" if free is None else f"tokens from scale {free} on"
        judgement.not_compared[word] = f"contract {contract.letter} does not claim them"
    if free is not None:
        judgement.inconclusive += _why_idle(evidence, free, contract)
    if why:
        unseen = SHOWN if actual.intermediates is None else SHOWN[:3]
        judgement.not_compared |= dict.fromkeys(unseen, why)
        if contract is not Contract.TOKENS:
            judgement.inconclusive.append(f"nothing of the target was compared: {why}")
    judgement.compared += [name for name in SHOWN if name not in judgement.not_compared]
    if free is not None and contract is Contract.QUALITY:
        late = {f"{name} from scale {free} on": "something may be left out there" for name in SHOWN[:3]}
        judgement.not_compared |= late
    if actual.rounds and actual.target_calls and actual.target_rows:
        judgement.compared.append(CALLS_AND_ROWS)
    else:
        lacking = [name for name in ("rounds", "target_calls", "target_rows") if not getattr(actual, name)]
        judgement.not_compared[CALLS_AND_ROWS] = f"the trace lacks {', '.join(lacking)}"


def _skipped_there(evidence: Evidence, defect: Divergence) -> Divergence:
    """Return a defect under the name of what the decoder says that it left out at that very scale, where it may not."""
    actual, free, address = evidence.actual, evidence.may_differ_from, (defect.seed, defect.image)
    if free is None or not 0 <= defect.scale < free:
        return defect
    row, of, said = evidence.request.addresses.index(address), f"scale {defect.scale}, which is before scale {free}", ""
    if defect.scale in unverified_scales(actual, row):
        said = f"no target pass decided {of}"
    elif actual.skipped_BSN is not None and (count := int(actual.skipped_BSN[row, defect.scale].long().max())):
        said = f"the decoder says that it left out {count} positions of {of}"
    known = defect.detail.partition(f"; {UNKNOWN}")[0]  # what was left out is the cause
    return replace(defect, component="skipped", detail=f"{said}; {known}") if said else defect


def _why_idle(evidence: Evidence, free: int, contract: Contract) -> list[str]:
    """Return why nothing is known of what an accelerator saves; empty where every image says and shows it."""
    actual, shown, rows, B = evidence.actual, evidence.actual.intermediates, evidence.expected.shown, evidence.request.B
    skipped = [actual.skipped_BSN is not None and bool(actual.skipped_BSN[b].long().any()) for b in range(B)]
    alone = [any(si >= free for si in unverified_scales(actual, b)) for b in range(B)]
    idle = B - sum(one or other for one, other in zip(skipped, alone, strict=True))
    if idle:
        return [f"nothing was saved in {idle} of {count_of(B, 'image')}, as far as Trace.skipped_BSN and rounds show"]
    late = slice(evidence.models.pyramid.draws.begin(free), None)
    if contract is Contract.QUALITY and shown is not None:
        far = (shown.rows_RLV[:, late] - rows.rows_RLV[:, late]).abs().amax()
        if far <= 2 * evidence.budget.rows:
            return [f"what it says it left out changed nothing: its logits from scale {free} on are the whole target's"]
    return []


@torch.inference_mode()
def image_distances(models: ModelPair, actual: Trace, expected: Trace) -> list[Distance]:
    """Return how far every image is from the other trace's; measured, never judged."""
    tokens_B = (actual.tokens_BL != expected.tokens_BL).double().mean(1)
    f_hat_B = (actual.f_hat_BCPP - expected.f_hat_BCPP).abs().double().flatten(1).mean(1)
    pixels_B = (models.vae.decode(actual.f_hat_BCPP) - models.vae.decode(expected.f_hat_BCPP)).abs().double()
    rows = zip(tokens_B.tolist(), f_hat_B.tolist(), pixels_B.flatten(1).mean(1).tolist(), strict=True)
    return [Distance(*row) for row in rows]
