"""Planted bugs of acceptance: what is accepted or rejected wrongly, and counts that lie."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.decoders import Factory
from harness.mutants._mutant import Alone, Mutant, judgement, parts, patched, policy, reporting, result_of, telling
from harness.protocol import CORRECT, Contract, Trace
from harness.speculative import Acceptance, Parts, Policy, Proposal, Window, accept_by_rate, is_own_draw, race


def whole_scales(change: Callable[[Tensor], Tensor]) -> Factory:
    """Plant a change of which scales are accepted."""
    return judgement(lambda judged, proposal, window: replace(judged, whole_bs=change(judged.whole_bs)))


def _under_law(change: Callable[[Policy], Policy]) -> Factory:
    """Plant a change of policies that claim contract B."""
    return policy(lambda true: change(true) if true.contract is Contract.LAW else true)


def _shared_noise(true: Policy) -> Policy:
    def propose(used: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
        tokens_bn: Tensor = used.draw(probs_bnV, window.read_as("correct").exponential(CORRECT))
        return tokens_bn

    def accept(used: Parts, proposal: Proposal, probs_bnV: Tensor, window: Window) -> Acceptance:
        return true.accept(replace(used, residual=_from_target), proposal, probs_bnV, window)

    return replace(true, propose=propose, accept=accept)


def _one_call(trace: Trace) -> None:
    trace.target_calls = [1] * len(trace.rounds)
    trace.target_rows = [rounds[0].target_rows for rounds in trace.rounds]


def _from_target(draft_probs_BnV: Tensor, target_probs_BnV: Tensor) -> Tensor:
    return target_probs_BnV


def _residual(above: Callable[[Tensor, Tensor], Tensor], least: float = 0.0) -> Factory:
    """Plant a residual of other masses (draft's law, target's law) -> above_BnV; up to `least` it is the target's."""

    def residual(draft_probs_BnV: Tensor, target_probs_BnV: Tensor) -> Tensor:
        above_BnV = above(draft_probs_BnV, target_probs_BnV).to(target_probs_BnV.dtype)
        mass_Bn1 = above_BnV.sum(-1, keepdim=True)
        return torch.where(mass_Bn1 > least, above_BnV / mass_Bn1, target_probs_BnV)

    return parts(residual=residual)


def _kept_laws(change: Callable[[Tensor], Tensor]) -> Factory:
    """Plant a change of the draft's laws that are kept, whose rows are then brought to 1."""

    def changed(proposal: Proposal, *of_window: Any) -> Proposal:
        probs_bnV = change(proposal.probs_bnV)
        return replace(proposal, probs_bnV=probs_bnV / probs_bnV.sum(-1, keepdim=True))

    return patched(result_of("harness.speculative._round:drafted_proposal", changed))


# fmt: off
ALL_STAND = Mutant("acceptance.all-stand", "every drafted scale is accepted",
    "verification that was computed and never used", judgement(lambda judged, proposal, window: Acceptance(
        proposal.tokens_bn, torch.ones_like(judged.accepted_bn), torch.ones_like(judged.whole_bs))))
FIRST_STANDS = Mutant("acceptance.first-stands", "the first drafted scale is never checked",
    "a comparison shifted by one scale", whole_scales(
        lambda whole_bs: torch.cat((torch.ones_like(whole_bs[:, :1]), whole_bs[:, 1:]), 1)))
NONE_STAND = Mutant("acceptance.none-stand", "every round corrects its first scale, right or not",
    "an inverted mask that the output does not show", whole_scales(torch.zeros_like))
NOT_REPLACED = Mutant("acceptance.not-replaced", "the first imperfect scale keeps its wrong tokens",
    "accepted length plus one without a correction",
    judgement(lambda judged, proposal, window: replace(judged, tokens_bn=proposal.tokens_bn)))
BY_RATE = Mutant("acceptance.by-rate", "a scale is accepted when half of its tokens are right",
    "a lossy rule under a lossless claim", policy(
        lambda true: replace(true, accept=partial(accept_by_rate, rule=(is_own_draw, 0.5, False)))))
SHARED_NOISE = Mutant("acceptance.shared-noise", "contract B: draft and target read the same numbers",
    "coupled numbers with the rejection rule", _under_law(_shared_noise))
SHARP_BONUS = Alone("acceptance.sharp-bonus", "contract B: the bonus scale is drawn from another law",
    "a temperature applied once too often", _under_law(lambda true: replace(
        true, extend=lambda used, probs_bnV, window: race(used, probs_bnV * probs_bnV, window))))
ONE_CALL = Mutant("acceptance.one-call", "one target call is reported, whatever was made",
    "a counter in the wrong loop; such a report was seen in the wild", reporting(_one_call))
GENEROUS = Mutant("acceptance.generous", "corrected tokens are counted as accepted",
    "acceptance counted after the correction", telling(lambda turn: replace(
        turn, accepted_tokens=turn.accepted_tokens + turn.corrected_tokens, corrected_tokens=0)))
INVERTED = Alone("acceptance.inverted", "contract B: kept with probability draft/target", "p and q swapped",
    parts(keep_drafted=lambda u_Bn, draft_Bn, target_Bn: u_Bn * target_Bn < draft_Bn))
LENIENT = Alone("acceptance.lenient", "contract B: kept with probability 2·target/draft", "a tuned threshold",
    parts(keep_drafted=lambda u_Bn, draft_Bn, target_Bn: u_Bn * draft_Bn < 2 * target_Bn))
FROM_TARGET = Alone("acceptance.from-target", "contract B: redrawn from the target's law", "the residual left out",
    parts(residual=_from_target))
ABSOLUTE = Alone("acceptance.absolute", "contract B: |target − draft| for the residual", "abs for clamp",
    _residual(lambda draft_BnV, target_BnV: (target_BnV - draft_BnV).abs()))
NARROW_SHARE = Alone("acceptance.narrow-share", "one wrong token of more than 512 is forgiven",
    "a mean in the networks' precision", patched({"harness.speculative._accept:Window.whole":
    lambda window, accepted_bn: torch.stack([one.bfloat16().mean(1) == 1 for one in window.split(accepted_bn)], 1)}))
SMALL_IGNORED = Alone("acceptance.small-ignored", "contract B: a residual below 0.05 is the target's law",
    "a guard against dividing by little",
    _residual(lambda draft_BnV, target_BnV: (target_BnV - draft_BnV).clamp_min(0), least=0.05))
ROUNDED_LAWS = Alone("acceptance.rounded-laws", "contract B: the residual of laws in half precision",
    "autocast around a difference",
    _residual(lambda draft_BnV, target_BnV: (target_BnV.half() - draft_BnV.half()).clamp_min(0)))
COOLED = Mutant("acceptance.cooled", "contract B: the draft's laws are kept at another temperature",
    "a temperature that is divided by once more", _kept_laws(lambda probs_bnV: probs_bnV**1.02))
OPENED = Mutant("acceptance.opened", "contract B: the draft's laws are kept without the filter's zeros",
    "a softmax of what was not filtered", _kept_laws(lambda probs_bnV: probs_bnV + 1e-3))
