"""Planted bugs of numbers: in the networks, the quantiser and the precision that decoder and reference share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.network import Condition, Modulation
from harness.models.var import BlockWeights, before, layer_norm, quantizer
from harness.models.var.autoencoder import Autoencoder
from harness.models.var.quantizer import Quantizer
from harness.models.var.transformer import Transformer
from harness.mutants._mutant import Mutant, patched
from harness.protocol.pyramid import ScalePyramid
from harness.speculative import Acceptance, DecodeState, Pass, Policy, Window, finite_flag, propose_scale, round_numbers
from harness.speculative.parts import Parts

_PHI_INDEX, _PHI, _ENCODE = quantizer.phi_index, Quantizer.phi, Quantizer.encode
_CONDITION, _BEFORE = Transformer.condition, before
_LOGITS, _FINITE, _OUTCOME = Transformer.logits, finite_flag, round_numbers
_TO, _VAE_TO = Transformer.to, Autoencoder.to
_QUANTIZER, _TRANSFORMER = "harness.models.var.quantizer:", "harness.models.var.transformer:Transformer."


def _ticks(si: int, S: int, n: int) -> int:
    ticks = [1 / (3 * n) + k * (1 - 2 / (3 * n)) / max(1, n - 1) for k in range(n)]
    at = si / (S - 1) if S > 1 else 0.0
    return _PHI_INDEX(si, S, n) if n == 4 else min(range(n), key=lambda k: abs(ticks[k] - at))


def _floor(si: int, S: int, n: int) -> int:
    return min(n - 1, si * n // S)


def _through(dtype: torch.dtype, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Round what a method of the quantiser returns to another precision."""
    return lambda self, *args: method(self, *args).to(dtype).to(self.codebook_VC.dtype)


def _highest(self: Quantizer, z_BCPP: Tensor, pyramid: ScalePyramid) -> tuple[Tensor, Tensor]:
    """Take the highest index of a tie: search the codebook backwards."""
    turned = replace(self, codebook_VC=self.codebook_VC.flip(0))
    tokens_BL, margin_BL = _ENCODE(turned, z_BCPP, pyramid)
    return self.V - 1 - tokens_BL, margin_BL


def _unclamped(self: Autoencoder, f_hat_BCPP: Tensor) -> Tensor:
    return (self.latent_to_raw_image(f_hat_BCPP) + 1) / 2


def _half_weights(self: Transformer, device: Any, dtype: torch.dtype) -> Transformer:
    return _TO(_TO(self, device, torch.float16), device, dtype)


def _narrow(self: Autoencoder, device: Any, dtype: torch.dtype) -> Autoencoder:
    return _VAE_TO(_VAE_TO(self, device, torch.bfloat16), device, dtype)


def _exact_gelu(h_RnD: Tensor, w: BlockWeights) -> Tensor:
    return F.linear(F.gelu(F.linear(h_RnD, w.fc1, w.fc1_bias)), w.fc2, w.fc2_bias)


def _shifts_swapped(self: Transformer, labels_R: Tensor) -> Any:
    condition = _CONDITION(self, labels_R)
    return replace(condition, blocks=tuple((a, b, c, d, f, e) for a, b, c, d, e, f in condition.blocks))


def _narrow_head(self: Transformer, h_RnD: Tensor, condition: Condition) -> Tensor:
    factor_R1D, shift_R1D = (term.float() for term in condition.head)
    if h_RnD.dtype == torch.float64:
        return _LOGITS(self, h_RnD, condition)
    h_RnD = torch.addcmul(shift_R1D, layer_norm(h_RnD).float(), factor_R1D)
    return F.linear(h_RnD, self.weights["head.weight"].float(), self.weights["head.bias"].float())


def _of_half(rows_RnV: Tensor) -> Tensor:
    return _FINITE(rows_RnV[: len(rows_RnV) // 2])


def _of_drafted(judged: Acceptance, rows_RnV: Tensor, window: Window) -> Tensor:
    return _OUTCOME(judged, rows_RnV[:, : window.span.stop - window.span.start], window)


def _loose_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-3)


def _keys_as_they_are(x_RnD: Tensor, six: Modulation, w: BlockWeights, l2_norm: bool) -> tuple[Tensor, Tensor, Tensor]:
    q_RHnc, _, v_RHnc = _BEFORE(x_RnD, six, w, l2_norm)
    return q_RHnc, _BEFORE(x_RnD, six, w, False)[1], v_RHnc


def _draft_unasked(state: DecodeState, used: Parts, this: Pass, policy: Policy) -> None:
    propose_scale(state, used, this, policy)


TICKS = Mutant("numbers.ticks", "the ticks of four φ for any number of them", "a constant of the published size",
    shared={_QUANTIZER + "phi_index": _ticks}, alone=True)  # fmt: skip
PARTS = Mutant("numbers.parts", "φ by equal parts of the scales", "integer division for a nearest tick",
    shared={_QUANTIZER + "phi_index": _floor}, alone=True)  # fmt: skip
HALF_PHI = Mutant("numbers.half-phi", "φ in half precision", "autocast around the quantiser",
    shared={_QUANTIZER + "Quantizer.phi": _through(torch.float16, _PHI)})  # fmt: skip
BROAD_PHI = Mutant("numbers.bfloat-phi", "φ in bfloat16", "the networks' precision for the quantiser's",
    shared={_QUANTIZER + "Quantizer.phi": _through(torch.bfloat16, _PHI)})  # fmt: skip
HIGHEST = Mutant("numbers.highest", "the highest index of a tie", "<= for < in a search",
    shared={_QUANTIZER + "Quantizer.encode": _highest}, alone=True)  # fmt: skip
UNCLAMPED = Mutant("numbers.unclamped", "pixels are not clamped", "a clamp left to whoever saves the file",
    shared={"harness.models.var.autoencoder:Autoencoder.decode": _unclamped}, alone=True)  # fmt: skip
HALF_WEIGHTS = Mutant("numbers.half-weights", "weights take a detour through half precision",
    "a checkpoint saved to save space", shared={_TRANSFORMER + "to": _half_weights}, alone=True)  # fmt: skip
NARROW = Mutant("numbers.narrow", "the quantiser's weights are rounded to bfloat16", "one `.to` for all three networks",
    shared={"harness.models.var.autoencoder:Autoencoder.to": _narrow}, alone=True)  # fmt: skip
GELU = Mutant("numbers.gelu", "GELU by the error function", "the library's default",
    shared={"harness.models.var._block:feed_forward": _exact_gelu}, alone=True)  # fmt: skip
SHIFTS = Mutant("numbers.shifts", "shift1 and shift2 change places", "the order of another block",
    shared={_TRANSFORMER + "condition": _shifts_swapped}, alone=True)  # fmt: skip
NORM = Mutant("numbers.norm", "layer norm with eps 1e-3", "another library's default",
    shared={"harness.models.var._block:layer_norm": _loose_norm}, alone=True)  # fmt: skip
NARROW_HEAD = Mutant("numbers.narrow-head", "the head's norm in the network's precision", "a cast one call too late",
    shared={_TRANSFORMER + "logits": _narrow_head}, alone=True)  # fmt: skip
DRAFTED_FINITE = Mutant("numbers.drafted-finite", "logits of a bonus scale may be NaN",
    "a check of what was drafted, before the bonus", patched({"harness.speculative._round:round_numbers": _of_drafted}),
    alone=True)  # fmt: skip
HALF_FINITE = Mutant("numbers.half-finite", "unconditional logits may be NaN",
    "a check of one half of the guidance rows", patched({"harness.speculative._accept:finite_flag": _of_half}),
    alone=True)  # fmt: skip
KEYS = Mutant("numbers.keys", "keys are not brought to length 1", "a norm of the queries alone",
    shared={"harness.models.var._block:before": _keys_as_they_are}, alone=True)  # fmt: skip
UNCUT = Mutant("numbers.uncut", "a head's length has no upper end", "an exponential without its clamp",
    shared={"harness.models.var.transformer:MAX_SCALE_MUL": 1e9}, alone=True)  # fmt: skip
CODE_FINITE = Mutant("numbers.code-finite", "logits that nobody waited for may be NaN", "a check at each wait alone",
    patched({"harness.speculative.sampler:check_finite": lambda state: None}), alone=True)  # fmt: skip
DRAFT_FINITE = Mutant("numbers.draft-finite", "a draft that decides alone may have NaN for logits",
    "a check of the target's passes alone", patched({"harness.speculative._round:propose_scale": _draft_unasked}),
    alone=True)  # fmt: skip
