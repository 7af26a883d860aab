"""Planted bugs of randomness: other numbers, numbers read otherwise, and races run otherwise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.decoders import Factory
from harness.mutants._mutant import Alone, Mutant, numbered, parts, passed, wrapped
from harness.protocol import ACCEPT, NoiseBefore, Reading, Request, SeededNoise
from harness.speculative.parts import PARTS
from harness.speculative.sampler import SpeculativeDecoder


def _redrawn(decoder: SpeculativeDecoder, request: Request, noise: SeededNoise) -> Any:
    """Give the target the numbers of another seed from scale 1 on."""
    models = decoder.models
    other = SeededNoise(replace(request, seed=request.seed + 1), models.pyramid, models.target.config.V, models.device)
    return lambda E_BlV, si, *by: other.exponential(si, *by) if by[-1] == "target" and si else E_BlV


def _wrong_scale(decoder: SpeculativeDecoder, request: Request, noise: SeededNoise) -> Any:
    def change(E_BlV: Tensor, si: int, stream: str, reader: str) -> Tensor:
        if reader != "target" or si == 0:
            return E_BlV
        before = noise.exponential(si - 1, stream, reader)
        return before.repeat(1, -(-E_BlV.shape[1] // before.shape[1]), 1)[:, : E_BlV.shape[1]]

    return change


def _consumed(decoder: SpeculativeDecoder, request: Request, noise: SeededNoise) -> Any:
    """Let numbers that somebody read before the decode be used up: the next ones are taken."""
    read = len(noise.ledger.readers)
    return lambda numbers, *at: numbers.roll(read, -1)


class _Instead(NoiseBefore):
    """A source that answers for the last scale's draws without reading it, but for the draft's readings."""

    def __init__(self, noise: SeededNoise, last: Callable[[SeededNoise, str, str], Tensor]) -> None:
        super().__init__(noise)
        self.seeded, self.last = noise, last

    def read(self, numbers: Reading, si: int, stream: str, reader: str) -> Tensor:
        pyramid = self.seeded.pyramid
        if stream == ACCEPT or reader == "draft" or si + 1 < pyramid.S or si == 0:
            return numbers(si, stream, reader)
        return self.last(self.seeded, stream, reader).expand(-1, pyramid.tokens(si), -1)


def _last(answer: Callable[[SeededNoise, str, str], Tensor]) -> Factory:
    return wrapped(lambda decoder, request, noise: decoder.decode(request, _Instead(noise, answer)))


def _sorted_race(probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
    """Race the sorted probabilities: the right law, and not the token of these numbers."""
    sorted_BnV, order_BnV = probs_BnV.sort(dim=-1, descending=True)
    return order_BnV.gather(-1, PARTS.draw(sorted_BnV, E_BnV)[..., None])[..., 0]


def _own_numbers(probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
    idx_Bn = PARTS.draw(probs_BnV, E_BnV)
    others_BV = torch.empty(E_BnV[:, -1].shape).exponential_(1, generator=torch.default_generator)
    idx_Bn[:, -1] = (probs_BnV[:, -1] / others_BV.to(probs_BnV)).argmax(-1)
    return idx_Bn


def filtered(change: Callable[[int, float, int], tuple[int, float]]) -> Factory:
    """Plant a filter of other bounds: (top_k, top_p, number of tokens) -> (top_k, top_p)."""
    return passed(filter_logits=lambda logits, k, p: (logits, *change(k, p, logits.shape[-1])))  # fmt: skip


def _jitter(probs_BnV: Tensor, E_BnV: Tensor) -> Tensor:
    tiny = torch.rand(probs_BnV.shape, generator=torch.default_generator).to(probs_BnV) * 1e-9
    return PARTS.draw(probs_BnV * (1 + tiny), E_BnV)


def _exactly_k(logits_BnV: Tensor, top_k: int, top_p: float) -> Tensor:
    if top_k:
        kept_Bnk = logits_BnV.topk(top_k).indices
        dropped_BnV = torch.full_like(logits_BnV, float("-inf"))
        logits_BnV = dropped_BnV.scatter(-1, kept_Bnk, logits_BnV.gather(-1, kept_Bnk))
    return PARTS.filter_logits(logits_BnV, 0, top_p)


def _above_kth(logits_BnV: Tensor, top_k: int, top_p: float) -> Tensor:
    if top_k:
        kth_Bn1 = logits_BnV.topk(top_k).values[..., -1:]
        tied_BnV = (logits_BnV == kth_Bn1) & ((logits_BnV == kth_Bn1).sum(-1, keepdim=True) > 1)
        tied_BnV &= logits_BnV < logits_BnV.amax(-1, keepdim=True)
        logits_BnV = PARTS.filter_logits(logits_BnV, top_k, 0.0).masked_fill(tied_BnV, float("-inf"))
    return PARTS.filter_logits(logits_BnV, 0, top_p)


def _nucleus(
    summed: Callable[[Tensor], Tensor], keep_likeliest: bool = True, below: Callable[[Tensor, float], Tensor] = torch.le
) -> Factory:
    """Sum the probabilities of a nucleus, least likely first, in another way, or let it be empty."""

    def filter_logits(logits_BnV: Tensor, top_k: int, top_p: float) -> Tensor:
        logits_BnV = PARTS.filter_logits(logits_BnV, top_k, 0.0)
        if top_p:
            values_BnV, order_BnV = logits_BnV.sort(dim=-1)
            tail_BnV = below(summed(values_BnV.softmax(-1)), 1 - top_p)
            tail_BnV[..., -1] &= not keep_likeliest
            logits_BnV = logits_BnV.masked_fill(tail_BnV.gather(-1, order_BnV.argsort(-1)), float("-inf"))
        return logits_BnV

    return parts(filter_logits=filter_logits)


# fmt: off
REDRAWN = Mutant("randomness.redrawn", "the target draws numbers of its own",
    "a generator advanced by the draft before the target reads it", numbered(_redrawn), component="draw")
WRONG_SCALE = Mutant("randomness.wrong-scale", "the target reads the numbers of the scale before",
    "an index into a window taken for the scale", numbered(_wrong_scale), component="draw")
CALL_ORDER = Mutant("randomness.call-order", "numbers depend on what was read before them",
    "one generator read as it comes", numbered(
        lambda decoder, request, noise: lambda E_BlV, *at: E_BlV.roll(len(noise.ledger.readers), -1)))
CONSUMED = Alone("randomness.consumed", "numbers that were read before are not read again",
    "a generator without addresses", numbered(_consumed))
FIRST_AGAIN = Mutant("randomness.first-again", "the last scale is decided by the first scale's numbers",
    "a buffer of numbers that is too short", _last(lambda noise, *at: noise.exponential(0, *at)))
GREEDY_LAST = Mutant("randomness.greedy-last", "the last scale is decided without numbers",
    "argmax where quality counts most",
    _last(lambda noise, *at: torch.ones(noise.request.B, 1, noise.V, device=noise.device)))
SORTED_RACE = Mutant("randomness.sorted-race", "numbers belong to ranks, not to tokens",
    "a draw after a filter that sorted the tokens", parts(draw=_sorted_race))
PLAIN_RACE = Alone("randomness.plain-race", "E = 0 yields NaN, and argmax takes it", "probs/E as the formula reads",
    parts(draw=lambda probs_BnV, E_BnV: (probs_BnV / E_BnV).argmax(-1)))
LOG_RACE = Alone("randomness.log-race", "log probs − log E, NaN where both are zero", "a race in logarithms",
    parts(draw=lambda probs_BnV, E_BnV: (probs_BnV.log() - E_BnV.log()).argmax(-1)))
PRODUCT = Mutant("randomness.product", "argmax(probs · E)", "the wrong race",
    parts(draw=lambda probs_BnV, E_BnV: (probs_BnV * E_BnV).argmax(-1)))
OWN_NUMBERS = Mutant("randomness.own-numbers", "the last token of a draw is one of the global generator",
    "a library call with a default generator", parts(draw=_own_numbers))
JITTER = Alone("randomness.jitter", "ties are broken by the global generator", "noise against exact ties",
    parts(draw=_jitter))
EXACTLY_K = Alone("randomness.exactly-k", "top-k keeps k tokens, whatever ties with the k-th",
    "indices in place of a threshold", parts(filter_logits=_exactly_k))
ABOVE_KTH = Alone("randomness.above-kth", "top-k drops what ties with the k-th", "> for >= at the threshold",
    parts(filter_logits=_above_kth))
NUCLEUS_FIRST = Mutant("randomness.nucleus-first", "top-p before top-k", "the order of another library",
    parts(filter_logits=lambda logits, top_k, top_p: PARTS.filter_logits(
        PARTS.filter_logits(logits, 0, top_p), top_k, 0.0)))
NOTHING_LEFT = Mutant("randomness.nothing-left", "a tiny top_p drops every token", "a nucleus that may be empty",
    _nucleus(lambda probs_BnV: probs_BnV.cumsum(-1), keep_likeliest=False))
TINY_OFF = Mutant("randomness.tiny-off", "a top_p that one cannot take off 1 is off", "a test of 1 − top_p",
    filtered(lambda top_k, top_p, V: (top_k, top_p if 1 - top_p < 1 else 0.0)))
MOST_AND_ONE = Mutant("randomness.most-and-one", "a top_k above half of all tokens keeps one more",
    "the dropped ones selected in place of the kept",
    filtered(lambda top_k, top_p, V: (min(V, top_k + 1) if 2 * top_k > V else top_k, top_p)))
BORDER = Alone("randomness.border", "a nucleus keeps what reaches its border", "< for <= at 1 − top_p",
    _nucleus(lambda probs_BnV: probs_BnV.cumsum(-1), below=torch.lt))
HALF_SUM = Mutant("randomness.half-sum", "a nucleus is summed in half precision", "autocast around the filter",
    _nucleus(lambda probs_BnV: probs_BnV.half().cumsum(-1)))
THOUSANDTHS = Mutant("randomness.thousandths", "a nucleus counts thousandths", "probabilities kept as whole numbers",
    _nucleus(lambda probs_BnV: (1000 * probs_BnV).round().cumsum(-1) / 1000))
