"""Laws of what every published checkout holds: network, head, filter and draw, quantiser, mask.

Promise: one function a part; each compares with the reference along the same tokens.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.adapters._probe import PartQuestion, Probe, ProbeSide, require_close, require_sight, require_tensor
from harness.adapters._recorder import SAMPLER, SharedNumbers
from harness.judge import Broken, require
from harness.protocol.noise import TOKEN
from harness.reference import block_causal, draw, filter_logits, hand_off_mask, next_input

CPU = torch.device("cpu")
MASKS = {"attn_bias_for_sdmasking": 1, "attn_bias_for_block": 4}  # of an SDVAR object: `sd_mask` that each is


def ask_network(probe: Probe) -> None:
    """Ask every law of the networks' parts. Effects: on `probe.rows`."""
    rows = "Scale after scale, with its cache, a network's logits are the reference's."
    masked = "All scales in one pass under attn_bias_for_masking give the same logits."
    questions = []
    for name, side in (("target", probe.target), ("draft", probe.draft)):
        part = f"VAR blocks, get_logits ({name})"
        questions.append(PartQuestion(part, "network.rows", rows, partial(_rows, side=side)))
        questions.append(PartQuestion(part, "network.masked", masked, partial(_masked, side=side)))
    questions += [
        PartQuestion("attn_bias_for_masking", "masks.definition",
            "Position i sees position j iff level(i) >= level(j).", _mask),
        PartQuestion("get_next_autoregressive_input", "state.latent",
            "f_hat grows by each scale once; its area is next.", _latent),
        PartQuestion(SAMPLER, "randomness.filter", "top-k (ties stay), then top-p, in place.", _filter),
        PartQuestion(SAMPLER, "randomness.race", "A draw is that of the numbers of its scale.", _draw),
    ]  # fmt: skip
    probe.ask(questions, lambda part: part != SAMPLER or hasattr(probe.code.checkout.module, SAMPLER))


def ask_hand_off_masks(probe: Probe) -> None:
    """Ask the laws of the hand-off's masks. Effects: on `probe.rows`."""
    statement = "The mask is its definition (spec §5), to every entry scale."
    questions = [PartQuestion(name, "masks.hand-off", statement, partial(_hand_off, name=name)) for name in MASKS]
    probe.ask(questions, lambda part: isinstance(getattr(probe.sdvar, part, None), Tensor))


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


def _mask(probe: Probe) -> None:
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


def _draw(probe: Probe) -> None:
    noise = probe.code.models.noise(probe.request)
    for si in probe.pyramid:
        logits = _logits(probe, probe.pyramid.tokens(si))
        expected = draw(logits, noise.exponential(si, TOKEN, "judge"))
        actual = _sample(probe, logits.clone(), 0, 0.0)
        wrong = torch.nonzero(actual != expected).tolist()
        message = f"scale {si}: {len(wrong)} of {expected.numel()} tokens are not the race's, first {wrong[:1]}"
        require(not wrong, message)
