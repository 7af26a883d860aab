"""Laws of what every published checkout holds (network, head, filter and draw, quantiser, masks), and of a sampler
that is one function: what its passes were given, saw, and made, scale by scale.

Promise: one function a law; each compares with the reference along the same tokens. A sampler that is one function
decodes once, under the harness's numbers; every pass is then asked by itself, along the tokens that were drawn: its
input, its mask, its cache, what the head was given, guidance, draw, and f_hat. A scale is called the entry scale where
the target takes over from a draft.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.adapters._parts_window import require_input
from harness.adapters._probe import PartQuestion, Probe, ProbeSide, require_close, require_sight, require_tensor
from harness.adapters._published import Sampler
from harness.adapters._recorder import SAMPLER, Recorder, SeenDraw, SeenPass, SeenWrite, SharedNumbers
from harness.judge import Broken, PartLaw, PartVerdict, require
from harness.protocol import TOKEN, Request, Trace
from harness.reference import block_causal, draw, filter_logits, guide, hand_off_mask, next_input
from harness.rounding import Budget

CPU = torch.device("cpu")
MASKS = {"attn_bias_for_sdmasking": 1, "attn_bias_for_block": 4}  # of an SDVAR object: `sd_mask` that each is
# Keys and values of a cache differ from another computation of them by rounding alone: of numbers around 1 in float32.
KV_ERROR = 1e-3


def sampler_laws(decoder: Sampler, request: Request, budget: Budget) -> list[PartLaw]:
    """Let a sampler decode once, and ask its passes; return a row a law."""
    ended = ""
    try:
        trace = decoder.decode(request, decoder.code.models.noise(request))
    except Exception as error:  # the decode is asked as a whole, too: here what it did until then
        trace, ended = decoder.so_far(), f"{type(error).__name__}: {error}"
    tokens_BL = trace.tokens_BL.clamp(0, decoder.code.models.target.config.V - 1)
    probe, seen = Probe.along(decoder, request, budget, tokens_BL), decoder.recorder
    if not seen.writes:
        law = PartLaw("sampler", "sampler.passes", "It draws scales.", PartVerdict.ABSENT, ended or "it drew no scale")
        return [law]
    laws = (
        ("input", "The input of a pass is that of its scales, both halves.", _input),
        ("mask", "A pass over several scales sees by the block-causal mask, over one all.", _mask),
        ("cache", "A pass sees the keys and values of all scales before it, and no others.", _cache),
        ("head", "The head is given what the last block made of its scale.", _head),
        ("guidance", "Guided logits are those of the rows.", _guidance),
        ("draw", "Tokens are the race's of their guided logits.", partial(_draw, trace=trace)),
        ("f_hat", "f_hat holds every scale once.", _f_hat),
    )
    steps = list(_steps(probe, seen))
    questions = [
        PartQuestion(f"sampler: {word}", f"sampler.{word}", statement, ask, lambda probe: steps)
        for word, statement, ask in laws
    ]
    probe.ask(questions, lambda part: part)
    return probe.rows


@dataclass(frozen=True)
class _Step:
    """A scale that was made final, by a draw from the logits of a pass."""

    si: int
    side: ProbeSide
    write: SeenWrite
    draw: SeenDraw
    seen: SeenPass
    rows_l: slice  # of the pass
    title: str  # how messages call it

    @property
    def first(self) -> int:
        """The first scale of the pass: its own, or 0 of a whole prefix."""
        return 0 if self.rows_l.start else self.si


def _steps(probe: Probe, seen: Recorder) -> Iterator[_Step]:
    """Yield what was made final, in order; what no known pass made is left out."""
    before = ""
    for write in seen.writes:
        made, si = write.draw, write.scale
        if made is None or made.made_by is None or si not in probe.pyramid:
            continue
        rows_l = made.made_by.rows_of_scale(probe.pyramid, si)
        if rows_l is None:
            continue
        side = probe.target if made.side == "target" else probe.draft
        entry = made.side == "target" and before == "draft"
        title = f"the entry scale {si}" if entry else f"scale {si}{' of the draft' * (made.side == 'draft')}"
        before = made.side
        yield _Step(si, side, write, made, made.made_by, rows_l, title)


def _input(probe: Probe, step: _Step) -> None:
    expected = step.side.run.x_RLD
    for si in range(step.first, step.si + 1):
        at = probe.pyramid.span(si) if step.rows_l.start else step.rows_l
        error = probe.input_error(expected[:, probe.pyramid.span(si)])
        what = step.title if si == step.si else f"{step.title}, scale {si} in its pass"
        with probe.aside():
            require_input(probe, step.seen.x_RnD[:, at], (step.side, si), error, what)


def _mask(probe: Probe, step: _Step) -> None:
    n, K, mask = step.seen.n, step.seen.cached, step.seen.mask
    several = n != probe.pyramid.tokens(step.si)
    if mask is None:
        require(not several, f"{step.title}: no mask in a pass over {n} positions, scales {step.first}..{step.si}")
        return
    allowed = require_sight(mask.reshape(mask.shape[-2:]), f"{step.title}: the mask")
    begin = probe.pyramid.begin(step.first)
    causal = (block_causal(probe.pyramid, CPU, torch.float32) == 0)[0, 0]
    expected = causal[begin : begin + n, : begin + n]
    expected = expected if allowed.shape[-1] == K + n == expected.shape[-1] else expected[:, begin:]
    require(allowed.shape == expected.shape, f"{step.title}: the mask is {tuple(allowed.shape)}, not {(n, K + n)}")
    wrong = torch.nonzero(allowed != expected).tolist()
    if wrong:
        row, column = wrong[0]
        sees = "sees" if bool(allowed[row, column]) else "does not see"
        raise Broken(f"{step.title}: {len(wrong)} entries are wrong, first position {begin + row} {sees} {column}")


def _cache(probe: Probe, step: _Step) -> None:
    K = probe.pyramid.begin(step.first)
    require(step.seen.cached == K, f"{step.title}: its pass saw {step.seen.cached} cached positions, not {K}")
    if not K or step.seen.held is None:
        return
    step.side.fill_cache(0)  # computes all keys and values, once
    for word, held, expected in zip(("keys", "values"), step.seen.held, step.side.kv[-1], strict=True):
        due = expected[:, :, :K]
        require(held.shape == due.shape, f"{step.title}: cached {word} are {tuple(held.shape)}, not {tuple(due.shape)}")
        require_close(held, due, KV_ERROR * max(1.0, float(due.abs().max())), f"{step.title}: cached {word}")


def _head(probe: Probe, step: _Step) -> None:
    given, made, rows_l = step.seen.head_RnD, step.seen.hidden_RnD, step.rows_l
    if given is None or made is None:
        raise Broken(f"{step.title}: no block or no head was seen")
    own = given[:, rows_l] if given.shape[1] == step.seen.n else given
    expected = made[:, rows_l]
    if own.shape == expected.shape and torch.equal(own, expected):
        return
    if own.shape == expected.shape and torch.equal(own, step.seen.x_RnD[:, rows_l]):
        raise Broken(f"{step.title}: the head is given the pass's raw input, its hidden states are thrown away")
    places = [at for at in range(made.shape[1] - own.shape[1] + 1) if torch.equal(own, made[:, at : at + own.shape[1]])]
    if places:
        raise Broken(f"{step.title}: the head is given rows {places[0]}.. of the pass, not {rows_l.start}..")
    raise Broken(f"{step.title}: the head is given {tuple(own.shape)}, and not what the last block made")


def _guidance(probe: Probe, step: _Step) -> None:
    cfg, pyramid, rows_RnV = probe.request.cfg, probe.pyramid, step.seen.rows_RnV
    if rows_RnV is None:
        raise Broken(f"{step.title}: no logits were seen")
    rows_RlV = rows_RnV[:, step.rows_l] if rows_RnV.shape[1] == step.seen.n else rows_RnV
    expected = guide(rows_RlV, cfg, step.si, pyramid.S)
    why = {"the halves are swapped": guide(rows_RlV.roll(probe.request.B, 0), cfg, step.si, pyramid.S)}
    error = 2 * probe.budget.guided(cfg, pyramid.ramp(step.si)).logits
    require_close(step.draw.guided_BlV, expected, error, f"{step.title}: guided logits", why)


def _draw(probe: Probe, step: _Step, trace: Trace) -> None:
    request, E_BlV = probe.request, probe.code.models.noise(probe.request).exponential(step.si, TOKEN, "judge")
    expected = draw(filter_logits(step.draw.guided_BlV.clone(), request.top_k, request.top_p), E_BlV)
    wrong = int((step.draw.idx_Bl != expected).sum())
    require(not wrong, f"{step.title}: {wrong} of {expected.numel()} tokens are not the race's")
    kept = trace.tokens_BL[:, probe.pyramid.span(step.si)]
    require(torch.equal(kept, step.draw.idx_Bl), f"{step.title}: other tokens are accumulated than were drawn")


def _f_hat(probe: Probe, step: _Step) -> None:
    expected, before = probe.f_hat(step.si + 1), probe.f_hat(step.si)
    why = {"the scale is in it twice": 2 * expected - before, "the scale is not in it": before}
    require_close(step.write.f_hat_BCPP, expected, 2 * probe.budget.f_hat, f"{step.title}: f_hat after it", why)


def ask_network(probe: Probe) -> None:
    rows = "Scale after scale, with its cache, a network's logits are the reference's."
    masked = "All scales in one pass under attn_bias_for_masking give the same logits."
    questions = []
    for name, side in (("target", probe.target), ("draft", probe.draft)):
        part = f"VAR blocks, get_logits ({name})"
        questions.append(PartQuestion(part, "network.rows", rows, partial(_rows, side=side)))
        questions.append(PartQuestion(part, "network.masked", masked, partial(_masked, side=side)))
    questions += [
        PartQuestion("attn_bias_for_masking", "masks.definition",
            "Position i sees position j iff level(i) >= level(j).", _whole_mask),
        PartQuestion("get_next_autoregressive_input", "state.latent",
            "f_hat grows by each scale once; its area is next.", _latent),
        PartQuestion(SAMPLER, "randomness.filter", "top-k (ties stay), then top-p, in place.", _filter),
        PartQuestion(SAMPLER, "randomness.race", "A draw is that of the numbers of its scale.", _race),
    ]  # fmt: skip
    module = probe.code.checkout.module
    probe.ask(questions, lambda part: getattr(module, SAMPLER, None) if part == SAMPLER else part)


def ask_hand_off_masks(probe: Probe) -> None:
    statement = "The mask is its definition (spec §5), to every entry scale."
    questions = [PartQuestion(name, "masks.hand-off", statement, partial(_hand_off, name=name)) for name in MASKS]
    masks = {name: mask for name in MASKS if isinstance(mask := getattr(probe.sdvar, name, None), Tensor)}
    probe.ask(questions, masks.get)


def _hand_off(probe: Probe, name: str) -> None:
    mask = getattr(probe.sdvar, name)
    for entry in probe.pyramid:
        n = probe.pyramid.end(entry)
        expected = hand_off_mask(probe.pyramid, entry, MASKS[name], CPU, torch.float32)[0, 0]
        actual = require_sight(mask.reshape(mask.shape[-2:])[:n, :n], f"entry {entry}")
        wrong = torch.nonzero(actual != (expected == 0)).tolist()
        require(not wrong, f"entry {entry}: {len(wrong)} entries are wrong, first (row, column) {wrong[:1]}")


def _rows(probe: Probe, side: ProbeSide) -> None:
    side.caching(True)
    for si in probe.pyramid:
        _require_logits(probe, side, si, side.forward(side.run.x_RLD[:, probe.pyramid.span(si)]))
    side.caching(False)


def _masked(probe: Probe, side: ProbeSide) -> None:
    side.caching(False)
    rows = side.forward(side.run.x_RLD, side.module.attn_bias_for_masking)
    for si in probe.pyramid:
        _require_logits(probe, side, si, rows[:, probe.pyramid.span(si)])


def _require_logits(probe: Probe, side: ProbeSide, si: int, rows_RlV: Tensor) -> None:
    """Require the reference's. The budget is the target's: logits of another size round in proportion."""
    size = float(side.run.rows_RLV.abs().max()) / float(probe.target.run.rows_RLV.abs().max())
    wider = max(1.0, 4.0 * size) if side is probe.draft else 1.0
    expected = side.run.rows_RLV[:, probe.pyramid.span(si)]
    require_close(rows_RlV, expected, 2 * probe.budget.rows * wider, f"logits of scale {si}")


def _whole_mask(probe: Probe) -> None:
    expected = block_causal(probe.pyramid, CPU, torch.float32)
    for side in (probe.draft, probe.target):
        mask = require_tensor(side.module.attn_bias_for_masking, expected.shape, "the mask")
        wrong = torch.nonzero(require_sight(mask[0, 0], "the mask") != (expected[0, 0] == 0)).tolist()
        if wrong:
            row, column = wrong[0]
            raise Broken(f"row {row} is wrong about column {column}; {len(wrong)} entries are")


def _latent(probe: Probe) -> None:
    quantize, S = probe.code.vae.quantize, probe.pyramid.S
    f_hat = torch.zeros_like(probe.f_hat(0))
    for si in probe.pyramid:
        pn = probe.pyramid.patch_nums[si]
        codes = probe.code.models.vae.quantizer.codes(probe.tokens_BL[:, probe.pyramid.span(si)], pn)
        f_hat, raw = quantize.get_next_autoregressive_input(si, S, f_hat, codes.clone())
        require_close(f_hat, probe.f_hat(si + 1), 2 * probe.budget.f_hat, f"f_hat after scale {si}")
        if si + 1 < S:
            expected = next_input(probe.f_hat(si + 1), si + 1, probe.pyramid)
            actual = raw.flatten(2).transpose(1, 2)
            require_close(actual, expected, 4 * probe.budget.f_hat, f"the raw input of scale {si + 1}")


def _logits(probe: Probe, l: int) -> Tensor:
    """Logits with ties, so that "the k-th largest" is a question."""
    generator = torch.Generator().manual_seed(7)
    logits = 2 * torch.randn(probe.request.B, l, probe.target.network.config.V, generator=generator)
    return torch.where(logits.abs() < 1, logits.round(), logits).to(probe.code.models.device)


def _sample(probe: Probe, logits_BlV: Tensor, top_k: int, top_p: float) -> Tensor:
    numbers = SharedNumbers(probe.code.models.noise(probe.request), probe.request, probe.pyramid, lambda: "target")
    generator = torch.Generator(device=logits_BlV.device).manual_seed(1)
    sample: Any = getattr(probe.code.checkout.module, SAMPLER)
    with numbers:
        idx = sample(logits_BlV, top_k, top_p, generator)
    return require_tensor(idx, (*logits_BlV.shape[:2], 1), "the draw")[..., 0]


def _filter(probe: Probe) -> None:
    V, l = probe.target.network.config.V, probe.pyramid.tokens(probe.pyramid.S - 1)
    for top_k, top_p in ((0, 0.0), (1, 0.0), (V, 0.0), (max(1, V // 2), 0.5), (0, 0.9)):
        actual = _logits(probe, l)
        expected = filter_logits(actual.clone(), top_k, top_p)
        _sample(probe, actual, top_k, top_p)
        wrong = torch.nonzero(torch.isinf(actual) != torch.isinf(expected)).tolist()
        message = f"top_k {top_k}, top_p {top_p}: {len(wrong)} logits are filtered wrongly, first {wrong[:1]}"
        require(not wrong, message)


def _race(probe: Probe) -> None:
    noise = probe.code.models.noise(probe.request)
    for si in probe.pyramid:
        logits = _logits(probe, probe.pyramid.tokens(si))
        expected = draw(logits, noise.exponential(si, TOKEN, "judge"))
        actual = _sample(probe, logits.clone(), 0, 0.0)
        wrong = torch.nonzero(actual != expected).tolist()
        message = f"scale {si}: {len(wrong)} of {expected.numel()} tokens are not the race's, first {wrong[:1]}"
        require(not wrong, message)
