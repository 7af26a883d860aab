"""Planted bugs of acceptance: what is accepted or rejected wrongly, and counts that lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.mutants._mutant import Mutant, judgement, parts, patched, policy, wrapped
from harness.protocol import Contract, Request, Trace
from harness.protocol.noise import CORRECT, SeededNoise
from harness.speculative import (
    Acceptance,
    DecodeState,
    Policy,
    Proposal,
    Window,
    accept_by_rate,
    drafted_proposal,
    is_own_draw,
    race,
)
from harness.speculative.parts import Parts
from harness.speculative.sampler import SpeculativeDecoder

_PROPOSAL = drafted_proposal


def _all_accepted(judged: Acceptance, proposal: Proposal, window: Window) -> Acceptance:
    return Acceptance(proposal.tokens_bn, torch.ones_like(judged.accepted_bn), torch.ones_like(judged.whole_bs))


def _first_accepted(judged: Acceptance, proposal: Proposal, window: Window) -> Acceptance:
    whole_bs = judged.whole_bs.clone()
    whole_bs[:, 0] = True
    return replace(judged, whole_bs=whole_bs)


def _none_accepted(judged: Acceptance, proposal: Proposal, window: Window) -> Acceptance:
    return replace(judged, whole_bs=torch.zeros_like(judged.whole_bs))


def _not_replaced(judged: Acceptance, proposal: Proposal, window: Window) -> Acceptance:
    return replace(judged, tokens_bn=proposal.tokens_bn)


def _whole_in_bfloat16(self: Window, accepted_bn: Tensor) -> Tensor:
    """Average in bfloat16: one wrong token of more than 512 is none."""
    return torch.stack([accepted_bl.bfloat16().mean(1) == 1 for accepted_bl in self.split(accepted_bn)], 1)


def _by_rate(true: Policy) -> Policy:
    """Keep a scale when _half of its tokens are right, and claim what the exact rule claims."""
    return replace(true, accept=partial(accept_by_rate, rule=(is_own_draw, 0.5, False)))


def _shared_noise(true: Policy) -> Policy:
    """Draft and target race under the same numbers, and u < target/draft decides between the two tokens."""
    if true.contract != Contract.LAW:
        return true

    def propose(used: Parts, probs_bnV: Tensor, window: Window) -> Tensor:
        tokens_bn: Tensor = used.draw(probs_bnV, window.read_as("correct").exponential(CORRECT))
        return tokens_bn

    def accept(used: Parts, proposal: Proposal, probs_bnV: Tensor, window: Window) -> Acceptance:
        return true.accept(replace(used, residual=_from_target), proposal, probs_bnV, window)

    return replace(true, propose=propose, accept=accept)


def _sharp_bonus(true: Policy) -> Policy:
    """Draw a bonus scale from the squared probabilities."""
    if true.contract != Contract.LAW:
        return true
    return replace(true, extend=lambda used, probs_bnV, window: race(used, probs_bnV * probs_bnV, window))


def _one_call(decoder: SpeculativeDecoder, request: Request, noise: SeededNoise) -> Trace:
    trace = decoder.decode(request, noise)
    trace.target_calls = [1] * request.B
    trace.target_rows = [rounds[0].target_rows for rounds in trace.rounds]
    return trace


def _generous(decoder: SpeculativeDecoder, request: Request, noise: SeededNoise) -> Trace:
    trace = decoder.decode(request, noise)
    trace.rounds = [
        [
            replace(turn, accepted_tokens=turn.accepted_tokens + turn.corrected_tokens, corrected_tokens=0)
            for turn in rounds
        ]
        for rounds in trace.rounds
    ]
    return trace


def _inverted(u_Bn: Tensor, draft_prob_Bn: Tensor, target_prob_Bn: Tensor) -> Tensor:
    return u_Bn * target_prob_Bn < draft_prob_Bn


def _half(u_Bn: Tensor, draft_prob_Bn: Tensor, target_prob_Bn: Tensor) -> Tensor:
    return u_Bn * draft_prob_Bn < 2 * target_prob_Bn


def _from_target(draft_probs_BnV: Tensor, target_probs_BnV: Tensor) -> Tensor:
    """Redraw from the target's law, which favours what was just rejected."""
    return target_probs_BnV


def _absolute(draft_probs_BnV: Tensor, target_probs_BnV: Tensor) -> Tensor:
    above_BnV = (target_probs_BnV - draft_probs_BnV).abs()
    mass_Bn1 = above_BnV.sum(-1, keepdim=True)
    return torch.where(mass_Bn1 > 0, above_BnV / mass_Bn1, target_probs_BnV)


def _small_ignored(draft_probs_BnV: Tensor, target_probs_BnV: Tensor) -> Tensor:
    above_BnV = (target_probs_BnV - draft_probs_BnV).clamp_min(0)
    mass_Bn1 = above_BnV.sum(-1, keepdim=True)
    return torch.where(mass_Bn1 > 0.05, above_BnV / mass_Bn1, target_probs_BnV)


def _rounded_laws(draft_probs_BnV: Tensor, target_probs_BnV: Tensor) -> Tensor:
    above_BnV = (target_probs_BnV.half() - draft_probs_BnV.half()).clamp_min(0).to(target_probs_BnV.dtype)
    mass_Bn1 = above_BnV.sum(-1, keepdim=True)
    return torch.where(mass_Bn1 > 0, above_BnV / mass_Bn1, target_probs_BnV)


def _kept_laws(change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Keep other laws of the draft than those that its tokens are drawn from."""

    def proposal(state: DecodeState, window: Window) -> Proposal:
        true = _PROPOSAL(state, window)
        return replace(true, probs_bnV=change(true.probs_bnV))

    return {"harness.speculative._round:drafted_proposal": proposal}


def _cooled(probs_bnV: Tensor) -> Tensor:
    cooled_bnV = probs_bnV**1.02
    return cooled_bnV / cooled_bnV.sum(-1, keepdim=True)


def _opened(probs_bnV: Tensor) -> Tensor:
    """Give every filtered token a little."""
    return (probs_bnV + 1e-3) / (probs_bnV + 1e-3).sum(-1, keepdim=True)


ALL_STAND = Mutant("acceptance.all-stand", "every drafted scale is accepted",
    "verification that was computed and never used", judgement(_all_accepted))  # fmt: skip
FIRST_STANDS = Mutant("acceptance.first-stands", "the first drafted scale is never checked",
    "a comparison shifted by one scale", judgement(_first_accepted))  # fmt: skip
NONE_STAND = Mutant("acceptance.none-stand", "every round corrects its first scale, right or not",
    "an _inverted mask that the output does not show", judgement(_none_accepted))  # fmt: skip
NOT_REPLACED = Mutant("acceptance.not-replaced", "the first imperfect scale keeps its wrong tokens",
    "accepted length plus one without a correction", judgement(_not_replaced))  # fmt: skip
BY_RATE = Mutant("acceptance.by-rate", "a scale is accepted when _half of its tokens are right",
    "a lossy rule under a lossless claim", policy(_by_rate))  # fmt: skip
SHARED_NOISE = Mutant("acceptance.shared-noise", "contract B: draft and target read the same numbers",
    "coupled numbers with the rejection rule", policy(_shared_noise))  # fmt: skip
SHARP_BONUS = Mutant("acceptance.sharp-bonus", "contract B: the bonus scale is drawn from another law",
    "a temperature applied once too often", policy(_sharp_bonus), alone=True)  # fmt: skip
ONE_CALL = Mutant("acceptance.one-call", "one target call is reported, whatever was made",
    "a counter in the wrong loop; such a report was seen in the wild", wrapped(_one_call))  # fmt: skip
GENEROUS = Mutant("acceptance.generous", "corrected tokens are counted as accepted",
    "acceptance counted after the correction", wrapped(_generous))  # fmt: skip
INVERTED = Mutant("acceptance.inverted", "contract B: kept with probability draft/target", "p and q swapped",
    parts(keep_drafted=_inverted), alone=True)  # fmt: skip
LENIENT = Mutant("acceptance.lenient", "contract B: kept with probability 2·target/draft", "a tuned threshold",
    parts(keep_drafted=_half), alone=True)  # fmt: skip
FROM_TARGET = Mutant("acceptance.from-target", "contract B: redrawn from the target's law", "the residual left out",
    parts(residual=_from_target), alone=True)  # fmt: skip
ABSOLUTE = Mutant("acceptance.absolute", "contract B: |target − draft| for the residual", "abs for clamp",
    parts(residual=_absolute), alone=True)  # fmt: skip
NARROW_SHARE = Mutant("acceptance.narrow-share", "one wrong token of more than 512 is forgiven",
    "a mean in the networks' precision", patched({"harness.speculative._accept:Window.whole": _whole_in_bfloat16}),
    alone=True)  # fmt: skip
SMALL_IGNORED = Mutant("acceptance.small-ignored", "contract B: a residual below 0.05 is the target's law",
    "a guard against dividing by little", parts(residual=_small_ignored), alone=True)  # fmt: skip
ROUNDED_LAWS = Mutant("acceptance.rounded-laws", "contract B: the residual of laws in half precision",
    "autocast around a difference", parts(residual=_rounded_laws), alone=True)  # fmt: skip
COOLED = Mutant("acceptance.cooled", "contract B: the draft's laws are kept at another temperature",
    "a temperature that is divided by once more", patched(_kept_laws(_cooled)))  # fmt: skip
OPENED = Mutant("acceptance.opened", "contract B: the draft's laws are kept without the filter's zeros",
    "a softmax of what was not filtered", patched(_kept_laws(_opened)))  # fmt: skip
