"""Planted bugs of numbers: in the networks, the quantiser and the precision that decoder and reference share."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.network import Condition
from harness.models.var import before, layer_norm
from harness.models.var.autoencoder import Autoencoder
from harness.models.var.quantizer import Quantizer, phi_index
from harness.models.var.transformer import Transformer
from harness.mutants._mutant import Alone, Mutant, arguments_of, given, patched, result_of
from harness.protocol.pyramid import ScalePyramid
from harness.speculative import Acceptance, Window

_ENCODE, _LOGITS = Quantizer.encode, Transformer.logits
_QUANTIZER, _TRANSFORMER = "harness.models.var.quantizer:", "harness.models.var.transformer:Transformer."
_VAE, _BLOCK = "harness.models.var.autoencoder:Autoencoder.", "harness.models.var.transformer:"
_ROUND = "harness.speculative._round:"


def _ticks(si: int, S: int, n: int) -> int:
    ticks = [1 / (3 * n) + k * (1 - 2 / (3 * n)) / max(1, n - 1) for k in range(n)]
    at = si / (S - 1) if S > 1 else 0.0
    return phi_index(si, S, n) if n == 4 else min(range(n), key=lambda k: abs(ticks[k] - at))


def _highest(self: Quantizer, z_BCPP: Tensor, pyramid: ScalePyramid) -> tuple[Tensor, Tensor]:
    tokens_BL, margin_BL = _ENCODE(replace(self, codebook_VC=self.codebook_VC.flip(0)), z_BCPP, pyramid)
    return self.V - 1 - tokens_BL, margin_BL


def _rounded(dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda h_BCPP, *arguments: h_BCPP.to(dtype).to(h_BCPP.dtype)


def _by_way_of(dtype: torch.dtype, to: Callable[..., Any]) -> Callable[..., Any]:
    return given(to, lambda network, device, own: (to(network, device, dtype), device, own))


def _narrow_head(self: Transformer, h_RnD: Tensor, condition: Condition) -> Tensor:
    factor_R1D, shift_R1D = (term.float() for term in condition.head)
    if h_RnD.dtype == torch.float64:
        return _LOGITS(self, h_RnD, condition)
    h_RnD = torch.addcmul(shift_R1D, layer_norm(h_RnD).float(), factor_R1D)
    return F.linear(h_RnD, self.weights["head.weight"].float(), self.weights["head.bias"].float())


def _of_drafted(judged: Acceptance, rows_RnV: Tensor, window: Window) -> tuple[Acceptance, Tensor, Window]:
    return judged, rows_RnV[:, : window.span.stop - window.span.start], window


# fmt: off
TICKS = Alone("numbers.ticks", "the ticks of four φ for any number of them", "a constant of the published size",
    shared={_QUANTIZER + "phi_index": _ticks})
PARTS = Alone("numbers.parts", "φ by equal parts of the scales", "integer division for a nearest tick",
    shared={_QUANTIZER + "phi_index": lambda si, S, n: min(n - 1, si * n // S)})
HALF_PHI = Mutant("numbers.half-phi", "φ in half precision", "autocast around the quantiser",
    shared=result_of(_QUANTIZER + "Quantizer.phi", _rounded(torch.float16)))
BROAD_PHI = Mutant("numbers.bfloat-phi", "φ in bfloat16", "the networks' precision for the quantiser's",
    shared=result_of(_QUANTIZER + "Quantizer.phi", _rounded(torch.bfloat16)))
HIGHEST = Alone("numbers.highest", "the highest index of a tie", "<= for < in a search",
    shared={_QUANTIZER + "Quantizer.encode": _highest})
UNCLAMPED = Alone("numbers.unclamped", "pixels are not clamped", "a clamp left to whoever saves the file",
    shared={_VAE + "decode": lambda vae, f_hat: (vae.latent_to_raw_image(f_hat) + 1) / 2})
BYTES = Mutant("numbers.bytes", "pixels are those of 8 bits", "an image that was saved and read again",
    shared=result_of(_VAE + "decode", lambda pixels, *of: (255 * pixels).round() / 255))
HALF_WEIGHTS = Alone("numbers.half-weights", "weights take a detour through half precision",
    "a checkpoint saved to save space", shared={_TRANSFORMER + "to": _by_way_of(torch.float16, Transformer.to)})
NARROW = Alone("numbers.narrow", "the quantiser's weights are rounded to bfloat16", "one `.to` for all three networks",
    shared={_VAE + "to": _by_way_of(torch.bfloat16, Autoencoder.to)})
GELU = Alone("numbers.gelu", "GELU by the error function", "the library's default",
    shared={_BLOCK + "feed_forward": lambda h_RnD, w: F.linear(
        F.gelu(F.linear(h_RnD, w.fc1, w.fc1_bias)), w.fc2, w.fc2_bias)})
SHIFTS = Alone("numbers.shifts", "shift1 and shift2 change places", "the order of another block",
    shared=result_of(_TRANSFORMER + "condition", lambda condition, *of_labels: replace(
        condition, blocks=tuple((a, b, c, d, f, e) for a, b, c, d, e, f in condition.blocks))))
NORM = Alone("numbers.norm", "layer norm with eps 1e-3", "another library's default",
    shared={_BLOCK + "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-3)})
NARROW_HEAD = Alone("numbers.narrow-head", "the head's norm in the network's precision", "a cast one call too late",
    shared={_TRANSFORMER + "logits": _narrow_head})
DRAFTED_FINITE = Alone("numbers.drafted-finite", "logits of a bonus scale may be NaN",
    "a check of what was drafted, before the bonus", patched(arguments_of(_ROUND + "round_numbers", _of_drafted)))
HALF_FINITE = Alone("numbers.half-finite", "unconditional logits may be NaN",
    "a check of one half of the guidance rows",
    patched(arguments_of("harness.speculative._accept:finite_flag", lambda rows_RnV: (rows_RnV.chunk(2)[0],))))
KEYS = Alone("numbers.keys", "keys are not brought to length 1", "a norm of the queries alone",
    shared=result_of(_BLOCK + "before", lambda normed, x_RnD, six, w, l2_norm: (
        normed[0], before(x_RnD, six, w, False)[1], normed[2])))
UNCUT = Alone("numbers.uncut", "a head's length has no upper end", "an exponential without its clamp",
    shared={"harness.models.var.transformer:MAX_SCALE_MUL": 1e9})
CODE_FINITE = Alone("numbers.code-finite", "logits that nobody waited for may be NaN", "a check at each wait alone",
    patched({"harness.speculative.sampler:check_finite": lambda state: None}))
DRAFT_FINITE = Alone("numbers.draft-finite", "a draft that decides alone may have NaN for logits",
    "a check of the target's passes alone", patched(result_of(_ROUND + "propose_scale", lambda *of: None)))
