"""Laws of what every published checkout holds: network, head, filter and draw, quantiser, mask.

Promise: one function a part; each compares with the reference along the same tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.adapters.probe import Probe, ProbeSide, require_close, require_sight, require_tensor
from harness.adapters.recorder import SAMPLER, SharedNumbers
from harness.judge.part_law import Broken, require
from harness.protocol.noise import TOKEN
from harness.reference.steps import block_causal, draw, filter_logits, hand_off_mask, next_input


def examine_network(probe: Probe) -> None:
    """Ask every law of the networks' parts. Effects: on `probe.rows`."""
    for name, side in (("target", probe.target), ("draft", probe.draft)):
        part = f"VAR blocks, get_logits ({name})"
        probe.law(part, "network.rows", "Scale after scale, with its cache, a network's logits are the reference's.",
            partial(_rows, probe, side))  # fmt: skip
        probe.law(part, "network.masked", "All scales in one pass under attn_bias_for_masking give the same logits.",
            partial(_masked, probe, side))  # fmt: skip
    probe.law("attn_bias_for_masking", "masks.definition", "Position i sees position j iff level(i) >= level(j).",
        lambda: _mask(probe))  # fmt: skip
    probe.law("get_next_autoregressive_input", "state.latent", "f_hat grows by each scale once; its area is next.",
        lambda: _latent(probe))  # fmt: skip
    if not hasattr(probe.code.checkout.module, SAMPLER):
        probe.absent(SAMPLER)
        return
    probe.law(SAMPLER, "randomness.filter", "top-k (ties stay), then top-p, in place.", lambda: _filter(probe))
    probe.law(SAMPLER, "randomness.race", "A draw is that of the numbers of its scale.", lambda: _draw(probe))


def examine_masks(probe: Probe, sdvar: Any) -> None:
    """Ask the laws of the hand-off's masks. Effects: on `probe.rows`."""
    for name, sd_mask in (("attn_bias_for_sdmasking", 1), ("attn_bias_for_block", 4)):
        if not isinstance(getattr(sdvar, name, None), Tensor):
            probe.absent(name)
            continue
        probe.law(name, "masks.hand-off", "The mask is its definition (spec §5), to every entry scale.",
            partial(_hand_off, probe, getattr(sdvar, name), sd_mask))  # fmt: skip


def _hand_off(probe: Probe, mask: Tensor, sd_mask: int) -> None:
    for entry in probe.pyramid:
        n = probe.pyramid.end(entry)
        due = hand_off_mask(probe.pyramid, entry, sd_mask, torch.device("cpu"), torch.float32)[0, 0]
        got = require_sight(mask.reshape(mask.shape[-2:])[:n, :n], f"entry {entry}")
        wrong = torch.nonzero(got != (due == 0)).tolist()
        require(not wrong, f"entry {entry}: {len(wrong)} entries are wrong, first (row, column) {wrong[:1]}")


def caching(module: Any, enable: bool) -> None:
    """Switch the cache of every block on or off, which empties it."""
    for block in module.blocks:
        block.attn.kv_caching(enable)


def forward(side: ProbeSide, x_RnD: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run a module's own blocks and head over n positions; return logits_RnV."""
    module, x_RnD = side.module, x_RnD.clone()  # code may write into what it is given
    shared = module.shared_ada_lin(side.cond_RD)
    for block in module.blocks:
        x_RnD = block(x=x_RnD, cond_BD=shared, attn_bias=mask)
    logits: Tensor = module.get_logits(x_RnD, side.cond_RD)
    return logits


def fill(probe: Probe, side: ProbeSide, done: int) -> None:
    """Switch a module's cache on and let it hold `done` scales. Effects: the first time, one pass a scale."""
    if not side.kv:
        caching(side.module, True)
        for si in probe.pyramid:
            forward(side, side.run.x_RLD[:, probe.pyramid.span(si)])
        side.kv.extend((block.attn.cached_k.clone(), block.attn.cached_v.clone()) for block in side.module.blocks)
    caching(side.module, True)
    length = probe.pyramid.begin(done)
    if length:
        for block, (k_RHLc, v_RHLc) in zip(side.module.blocks, side.kv, strict=True):
            block.attn.cached_k, block.attn.cached_v = k_RHLc[:, :, :length].clone(), v_RHLc[:, :, :length].clone()


def _rows(probe: Probe, side: ProbeSide) -> None:
    caching(side.module, True)
    for si in probe.pyramid:
        span = probe.pyramid.span(si)
        rows = forward(side, side.run.x_RLD[:, span])
        require_close(
            rows, side.run.rows_RLV[:, span], 2 * probe.budget.rows * _wider(probe, side), f"logits of scale {si}"
        )
    caching(side.module, False)


def _masked(probe: Probe, side: ProbeSide) -> None:
    caching(side.module, False)
    rows = forward(side, side.run.x_RLD, side.module.attn_bias_for_masking)
    for si in probe.pyramid:
        span = probe.pyramid.span(si)
        due = side.run.rows_RLV[:, span]
        require_close(rows[:, span], due, 2 * probe.budget.rows * _wider(probe, side), f"logits of scale {si}")


def _wider(probe: Probe, side: ProbeSide) -> float:
    """The budget is the target's: logits of another size round in proportion."""
    size = float(side.run.rows_RLV.abs().max()) / float(probe.target.run.rows_RLV.abs().max())
    return max(1.0, 4.0 * size) if side is probe.draft else 1.0


def _mask(probe: Probe) -> None:
    due = block_causal(probe.pyramid, torch.device("cpu"), torch.float32)
    for side in (probe.draft, probe.target):
        mask = require_tensor(side.module.attn_bias_for_masking, due.shape, "the mask")
        wrong = torch.nonzero(require_sight(mask[0, 0], "the mask") != (due[0, 0] == 0)).tolist()
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
            due = next_input(probe.f_hat(si + 1), si + 1, probe.pyramid)
            got = raw.flatten(2).transpose(1, 2)
            require_close(got, due, 4 * probe.budget.f_hat, f"the raw input of scale {si + 1}")


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
        given = _logits(probe, l)
        due = filter_logits(given.clone(), top_k, top_p)
        _sample(probe, given, top_k, top_p)
        wrong = torch.nonzero(torch.isinf(given) != torch.isinf(due)).tolist()
        require(
            not wrong, f"top_k {top_k}, top_p {top_p}: {len(wrong)} logits kept or dropped wrongly, first {wrong[:1]}"
        )


def _draw(probe: Probe) -> None:
    noise = probe.code.models.noise(probe.request)
    for si in probe.pyramid:
        logits = _logits(probe, probe.pyramid.tokens(si))
        due = draw(logits, noise.exponential(si, TOKEN, "judge"))
        got = _sample(probe, logits.clone(), 0, 0.0)
        wrong = torch.nonzero(got != due).tolist()
        require(not wrong, f"scale {si}: {len(wrong)} of {due.numel()} tokens are not the race's, first {wrong[:1]}")
