"""Laws of randomness: which numbers are read, by whom, and what is made of them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.judge import require
from harness.laws._case import Case
from harness.laws._law import PLAIN, Subject, law, require_equal, require_same, require_tokens, shown_tensors
from harness.laws._oracle import levelled, targeted
from harness.protocol import TOKEN, Contract, Ledger, SeededNoise
from harness.reference import draw as draw_scale
from harness.reference import filter_logits as filter_scale
from harness.reference.sequential import choose

# Exponential numbers at the edge of what a generator can return, smallest first.
_EDGES = (0.0, torch.finfo(torch.float32).tiny, 1e-30, 104.0, torch.finfo(torch.float32).max, float("inf"))


def _logits(case: Case, n: int) -> Tensor:
    """Logits with ties, so that "the k-th largest" is a question."""
    logits_BnV = 2 * case.normal(case.B, n, case.V)
    return torch.where(logits_BnV.abs() < 1, logits_BnV.round(), logits_BnV)


@law("randomness.filter", "filter_logits")
def _filters(subject: Subject, case: Case) -> bool:
    """top-k (ties stay), then top-p, as the plain filter, for every combination.

    And it leaves its argument alone.
    """
    parts = subject.parts(case, "filter_logits")
    logits_BnV = _logits(case, 7)
    kept_BnV = logits_BnV.clone()
    some = [(top_k, top_p) for top_k in range(case.V + 1) for top_p in (0.0, 0.5)]
    some += [(case.top_k, case.top_p), (0, 1.0)]
    some += [(0, 1e-7), (0, 1e-17), (2, 1e-17)]  # less than any token's probability: the likeliest stays
    # on both sides of every border of a nucleus, as near as single precision tells apart
    borders = logits_BnV[0, 0].softmax(-1).sort().values.cumsum(-1)[:-1].tolist()
    some += [(0, 1 - border + side) for border in borders for side in (-1e-5, 1e-5) if 0 < 1 - border + side < 1]
    for top_k, top_p in some:
        actual = parts.filter_logits(logits_BnV, top_k, top_p)
        expected = filter_scale(kept_BnV, top_k, top_p)
        # softmax makes -inf comparable and is what both sides draw from
        require_equal("probs", actual.softmax(-1), expected.softmax(-1), f"top_k {top_k}, top_p {top_p}", _FLOAT_LAW)
        wrong = torch.nonzero(torch.isinf(actual) != torch.isinf(expected)).tolist()
        require(not wrong, f"top_k {top_k}, top_p {top_p}: kept or dropped wrongly at {wrong[:4]}")
    require_equal("argument", logits_BnV, kept_BnV, "filter_logits wrote into its argument")
    # two tokens of probability 1/2, on the border to the bit: one is dropped, whichever
    even_BnV = torch.full_like(logits_BnV, _NEVER)
    even_BnV[..., :2] = 0.0
    left_Bn = (parts.filter_logits(even_BnV, 0, 0.5).softmax(-1) > 0).sum(-1)
    wrong = sorted({number for number in left_Bn.flatten().tolist() if number != 1})
    require(
        not wrong, f"top_p 0.5 of two equal tokens keeps {wrong}, expected one: a sum equal to 1 - top_p is dropped"
    )
    return True


_NEVER = -1e4  # of this logit beside 0 softmax makes 0
_FLOAT_LAW = 1e-12  # softmax of equal logits: a few roundings of numbers below 1


@law("randomness.race", "draw")
def race(subject: Subject, case: Case) -> bool:
    """A draw is argmax(probs / E) under exactly the numbers given."""
    parts = subject.parts(case, "draw")
    logits_BnV = filter_scale(_logits(case, 9), case.top_k, case.top_p)
    E_BnV = torch.empty(logits_BnV.shape).exponential_(1, generator=case.generator()).to(case.at)
    actual = parts.draw(logits_BnV.softmax(-1), E_BnV)
    require_equal("tokens", actual, draw_scale(logits_BnV, E_BnV), "draw")
    # every race within 1e-5 of a tie, more than single precision needs: the chosen token wins all the same
    probs_BnV = 2 * case.normal(case.B, 9, case.V)
    probs_BnV = probs_BnV.softmax(-1).float()
    chosen_Bn1 = torch.randint(case.V, (case.B, 9, 1), generator=case.generator()).to(case.at)
    close_BnV = probs_BnV * torch.ones_like(probs_BnV).scatter(-1, chosen_Bn1, 1 - 1e-5)
    require_equal("tokens", parts.draw(probs_BnV, close_BnV), chosen_Bn1[..., 0], "races near a tie")
    return True


@law("randomness.boundary", "draw")
def boundary(subject: Subject, case: Case) -> bool:
    """No value of the exponential, 0 and infinity included, yields a filtered token."""
    parts = subject.parts(case, "draw")
    generator = case.generator()
    probs_BnV = _logits(case, 16).softmax(-1)
    gone = (torch.rand(probs_BnV.shape, generator=generator) < 0.6).to(case.at)
    gone[..., :1] |= gone[..., 1:].sum(-1, keepdim=True) < case.V - 1  # mostly drop token 0, where argmax of NaN lands
    probs_BnV = probs_BnV.masked_fill(gone, 0.0)
    probs_BnV = probs_BnV / probs_BnV.sum(-1, keepdim=True)
    edges = torch.tensor(_EDGES)[torch.randint(len(_EDGES), probs_BnV.shape, generator=generator)].to(case.at)
    every = [torch.full_like(edges, edge) for edge in _EDGES] + [edges]
    for E_BnV in every:
        idx_Bn = parts.draw(probs_BnV, E_BnV)
        if wrong := torch.nonzero(probs_BnV.gather(-1, idx_Bn[..., None])[..., 0] <= 0).tolist():
            b, n = wrong[0]
            numbers = E_BnV[b, n].tolist()
            require(False, f"token {int(idx_Bn[b, n])} of probability 0 drawn; E {numbers}, {probs_BnV[b, n].tolist()}")
    return bool(gone.any())


@law("randomness.published", "draw", "noise")
def published(subject: Subject, case: Case) -> bool:
    """The published order equals torch.multinomial under one generator."""
    parts = subject.parts(case, "draw")
    noise = SeededNoise(replace(case.request, order="batch"), case.pyramid, case.V, case.at)
    generator = torch.Generator(device=case.at).manual_seed(case.seed)
    for si in case.pyramid:
        l, E_BlV = case.pyramid.draws.counts[si], noise.exponential(si, TOKEN, "target")
        logits_BlV = _logits(case, l).float()
        probs_BlV = logits_BlV.softmax(-1)
        expected = torch.multinomial(probs_BlV.view(-1, case.V), 1, generator=generator).view(case.B, l)
        part = "draw" if torch.equal(draw_scale(logits_BlV, E_BlV), expected) else "noise"
        require_same({"tokens": parts.draw(probs_BlV, E_BlV)}, {"tokens": expected}, f"scale {si}", part=part)
    return case.pyramid.S > 1


_STATES = range(4)  # of the global generator: in two of them a token of five is often the same


@law("randomness.own-numbers", "decode")
def _own_numbers(subject: Subject, case: Case) -> bool:
    """No generator but the noise's decides a token, be it between two that tie exactly."""
    # one that is moved, and decides nothing, is a remark of `verify`
    generators = [torch.default_generator, *(torch.cuda.default_generators if case.at.type == "cuda" else ())]
    sides: dict[str, Any] = {side: levelled(getattr(case.models, side)) for side in ("draft", "target")}
    flat = replace(case.models, **sides)
    states = [generator.get_state() for generator in generators]
    try:
        for models, noise in ((case.models, case.noise), (flat, lambda: _level(case.noise()))):
            decoder, traces = subject.decoder(case, models), []
            for seed in _STATES:
                for generator in generators:
                    generator.manual_seed(seed)
                traces.append(decoder.decode(case.request, noise()))
            where = "other state of the global generator" + (", all tokens tied" if models is flat else "")
            for other in traces[1:]:
                require_tokens(other.tokens_BL, traces[0].tokens_BL, where)
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
    return True


def _level(noise: SeededNoise) -> SeededNoise:
    """Return numbers that prefer no token, which are all else that a decoder may ask of noise."""
    drawn = noise.exponential
    noise.exponential = lambda si, stream, reader: torch.ones_like(drawn(si, stream, reader))  # type: ignore[method-assign]
    return noise


@law("randomness.reading-order", "decode", "noise")
def _reading_order(subject: Subject, case: Case) -> bool:
    """The order in which numbers are read does not matter."""
    expected = subject.decode(case)
    noise = case.noise()
    for si in torch.randperm(case.pyramid.S, generator=case.generator()).tolist():
        noise.exponential(si, TOKEN, "target")
    actual = subject.decode(case, noise=noise)
    require_tokens(actual.tokens_BL, expected.tokens_BL, "numbers read before the decode")
    return case.pyramid.S > 1


@law("randomness.addresses", "decode", "noise")
def addresses(subject: Subject, case: Case) -> bool:
    """Every scale is decided by numbers of its own; under contract B they have one reader."""
    claimed = subject.decoder(case).contract
    ledger = Ledger(claimed == Contract.LAW)
    decoded = subject.decode(case, noise=SeededNoise(case.request, case.pyramid, case.V, case.at, ledger))
    if case.settings.greedy:
        require(not ledger.readers, f"the most likely tokens need no numbers, and {ledger.readers} were read")
        return True
    # under contract C a rule of the decoder's own may accept the draft's draw
    own_rule = claimed == Contract.QUALITY and case.policy in PLAIN
    expected = [si for si in case.pyramid if own_rule or targeted(decoded, case.B, si)]
    read = {si for (si, _), readers in ledger.readers.items() if set(readers) - (set() if own_rule else {"draft"})}
    missing = sorted(set(expected) - read)
    require(not missing, f"scales {missing} were decided without a number, but for the draft's")
    return case.pyramid.S > 1


@law("randomness.rule", "decode", "draw", "filter_logits", contract=Contract.TOKENS)
def rule(subject: Subject, case: Case) -> bool:
    """Every token is the race of its own row under the numbers of its own address."""
    decoded = subject.decode(case)
    shown = shown_tensors(decoded)
    noise, greedy = case.noise(), case.settings.greedy
    for si in case.pyramid:
        span = case.pyramid.draws.span(si)
        _, expected_Bl = choose(shown.guided_BLV[:, span], case.request, noise, si, greedy)
        require_tokens(decoded.tokens_BL[:, span], expected_Bl, f"scale {si}")
    return case.pyramid.S > 1
