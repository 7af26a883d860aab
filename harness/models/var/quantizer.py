"""The residual quantiser's parts: the codebook and the φ convolutions.

Promise: `phi_index` is the published choice of φ at every scale, and `encode` inverts what the samplers accumulate.
The accumulation itself is written in `reference/` and in `speculative/`, not here.

Source: spec §3.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.mode import in_its_mode
from harness.protocol.pyramid import ScalePyramid

RESIDUAL_RATIO = 0.5


def phi_index(si: int, S: int, n: int) -> int:
    """Return which of n φ scale `si` uses: the nearest tick, in float64 as NumPy does (spec §3).

    For n = 4, S = 10 the list is normative: 0,0,1,1,1,2,2,3,3,3.
    """
    edge = 1 / (3 * n) if n == 4 else 1 / (2 * n)
    ticks = np.linspace(edge, 1 - edge, n)
    return int(np.argmin(np.abs(ticks - (si / (S - 1) if S > 1 else 0.0))))


@dataclass(frozen=True, eq=False)
class Quantizer:
    """Codebook and φ."""

    codebook_VC: Tensor = field(repr=False)  # code vectors, float32
    phi_weights: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)  # (C,C,3,3) kernel and (C,) bias of every φ
    autocast: torch.dtype | None = None  # φ inside torch.autocast of this dtype; None = outside

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.codebook_VC.device

    @property
    def V(self) -> int:
        """Codebook size."""
        return self.codebook_VC.shape[0]

    @property
    def C(self) -> int:
        """Channels of a code vector."""
        return self.codebook_VC.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        phi = {f"phi.{k}.{n}": w for k, pair in enumerate(self.phi_weights) for n, w in enumerate(pair)}
        return {**phi, "codebook": self.codebook_VC}

    def codes(self, idx_Bl: Tensor, h: int, w: int | None = None) -> Tensor:
        """Return the code vectors of one scale's tokens as a map (B,C,h,w); a square where there is no `w`."""
        h_BlC = F.embedding(idx_Bl, self.codebook_VC)
        return h_BlC.transpose(1, 2).reshape(-1, self.C, h, w or h)

    @in_its_mode
    def phi(self, h_BCPP: Tensor, si: int, S: int) -> Tensor:
        """Return 0.5·h + 0.5·conv3x3_k(h) with the φ of scale `si` of S."""
        weight, bias = self.phi_weights[phi_index(si, S, len(self.phi_weights))]
        return h_BCPP * (1 - RESIDUAL_RATIO) + F.conv2d(h_BCPP, weight, bias, padding=1) * RESIDUAL_RATIO

    def encode(self, z_BCPP: Tensor, pyramid: ScalePyramid) -> tuple[Tensor, Tensor]:
        """Quantise a latent map, quant_conv(encoder(image)), residual by residual.

        Returns tokens_BL (int64), all scales in order, and margin_BL: by how much the second nearest code is farther
        than the nearest, in squared distance; 0 is a tie, which the lowest index wins.
        """
        residual, codes_VC = z_BCPP.clone(), self.codebook_VC
        tokens, margins = [], []
        for si, pn in enumerate(pyramid.patch_nums):
            map_BCpp = residual if si == pyramid.S - 1 else F.interpolate(residual, size=(pn, pn), mode="area")
            flat_NC = map_BCpp.permute(0, 2, 3, 1).reshape(-1, self.C)
            squares_NV = flat_NC.square().sum(1, keepdim=True) + codes_VC.square().sum(1)
            distance_NV = squares_NV - 2 * flat_NC @ codes_VC.T
            idx_Bl = distance_NV.argmin(1).view(len(z_BCPP), pn * pn)
            two_N2 = distance_NV.topk(min(2, self.V), largest=False).values
            tokens.append(idx_Bl)
            margins.append((two_N2[:, -1] - two_N2[:, 0]).view_as(idx_Bl))
            residual = residual - self.upsampled(idx_Bl, si, pyramid)
        return torch.cat(tokens, 1), torch.cat(margins, 1)

    def upsampled(self, idx_Bl: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
        """Return one scale's contribution (B,C,P,P) to the latent map, for the encoder's own use."""
        h = self.codes(idx_Bl, pyramid.patch_nums[si])
        if si < pyramid.S - 1:
            h = F.interpolate(h, size=(pyramid.P, pyramid.P), mode="bicubic")
        return self.phi(h, si, pyramid.S)
