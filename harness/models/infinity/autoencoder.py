"""Bits and latent maps, latent maps and images: the binary quantiser, and the convolutions of VAR's without attention.

Promise: pure functions of a dict of tensors under the published names, of which the inner `.conv` and `.norm` are left
out, as some files do. The sampler's accumulation is written in `reference/` and in `speculative/`, not here.

Source: the Infinity page, §2 (layout), §4 (bits, codes, encoding).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models.var import autoencoder as convolutions
from harness.models.var.autoencoder import AutoencoderConfig
from harness.protocol.pyramid import ScalePyramid


def binary_config(
    C: int, ch: int, multipliers: tuple[int, ...], res_blocks: int = 2, has_encoder: bool = True
) -> AutoencoderConfig:
    """Return the sizes of an autoencoder whose codes are C bits, in the words of VAR's; it has no φ."""
    return AutoencoderConfig(2, C, ch, multipliers, res_blocks, phi=0, has_encoder=has_encoder)


def infinity_layers(config: AutoencoderConfig, side: str) -> list[convolutions.Layer]:
    """Return what the "decoder" or "encoder" does, in order: VAR's, without attention and what lies between them."""
    layers = convolutions.decoder_layers(config) if side == "decoder" else convolutions.encoder_layers(config)
    return [layer for layer in layers if layer[0] != "attention" and layer[1].startswith(side)]


def infinity_autoencoder_shapes(config: AutoencoderConfig) -> convolutions.Shapes:
    """Return every parameter's name, without its inner part, and shape."""
    shapes: convolutions.Shapes = {}
    for side in ("decoder", "encoder") if config.has_encoder else ("decoder",):
        for kind, name, into, out in infinity_layers(config, side):
            shapes |= convolutions.SHAPES[kind](name, into, out)
    return shapes


@dataclass(frozen=True, eq=False)
class BinaryQuantizer:
    """Bits as codes of length 1 over the channels of the map."""

    C: int  # channels of the map
    size: Tensor  # 1/√C, of the map's dtype

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All that f_hat depends on besides bits."""
        return {"size": self.size}

    def codes(self, idx_Bl: Tensor, h: int, w: int | None = None) -> Tensor:
        """Return the codes (B,C,·,·) of one scale's bits on the map: twice the sides where there are 4C a position."""
        return F.normalize((2 * to_map(idx_Bl, h, w or h, self.C) - 1) * self.size, dim=1)

    def encode(self, z_BChw: Tensor, pyramid: ScalePyramid, forced_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Quantise a latent map as the trainer does, where `forced_BL` are given from these bits of earlier scales.

        Returns the bits of all scales in order, and the residual numbers whose signs they are, (B,L) each.
        """
        patch, cum = z_BChw.shape[3] // pyramid.sides[-1][1], torch.zeros_like(z_BChw)
        bits, residuals = [], []
        for si, (h, w) in enumerate(pyramid.sides):
            residual, last = z_BChw - cum, si == pyramid.S - 1
            r_Bchw = residual if last else F.interpolate(residual, (patch * h, patch * w), mode="area")
            r_Bl = from_map(r_Bchw, patch)
            used_Bl = r_Bl > 0 if forced_BL is None else forced_BL[:, pyramid.draws.span(si)]
            sign, unit = 2 * to_map(used_Bl.long(), h, w, self.C) - 1, F.normalize(r_Bchw, dim=1)
            codes = unit + (sign * self.size - unit)
            cum = cum + (codes if last else F.interpolate(codes, z_BChw.shape[2:], mode="bilinear"))
            bits.append((r_Bl > 0).long())
            residuals.append(r_Bl)
        return torch.cat(bits, 1), torch.cat(residuals, 1)


def to_map(idx_Bl: Tensor, h: int, w: int, C: int) -> Tensor:
    """Return one scale's bits as a map (B,C,·,·): position by position, patches of four channels spread out."""
    bits_BNhw = idx_Bl.view(len(idx_Bl), h, w, -1).permute(0, 3, 1, 2)
    return bits_BNhw if bits_BNhw.shape[1] == C else F.pixel_shuffle(bits_BNhw, 2)


def from_map(map_BChw: Tensor, patch: int) -> Tensor:
    """Return a map's numbers in the order of a scale's draws, (B,l)."""
    return F.pixel_unshuffle(map_BChw, patch).permute(0, 2, 3, 1).flatten(1)


@dataclass(frozen=True, eq=False)
class InfinityAutoencoder:
    """An autoencoder: sizes and weights."""

    config: AutoencoderConfig
    weights: Mapping[str, Tensor] = field(repr=False)  # under the names of `infinity_autoencoder_shapes`
    quantizer: BinaryQuantizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        size = self.weights["decoder.conv_in.bias"].new_tensor(self.config.C**-0.5)
        object.__setattr__(self, "quantizer", BinaryQuantizer(self.config.C, size))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and so of f_hat."""
        return self.quantizer.size.dtype

    def check_for(self, pyramid: ScalePyramid) -> None:
        """Refuse bits that do not fill the map's channels. Raises `InputError`."""
        C, N = self.config.C, pyramid.channels
        if N not in (C, 4 * C):
            raise InputError("vae C", C, f"must be N={N}, the bits of a position, or a quarter", "pass a trained pair")

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Return a copy with the weights on `device` in `dtype`."""
        return replace(self, weights={name: w.to(device, dtype) for name, w in self.weights.items()})

    def latent_to_raw_image(self, f_hat_BChw: Tensor) -> Tensor:
        """Return decoder(f_hat), (B,3,·,·), before clamping."""
        return convolutions.run_layers(self.weights, infinity_layers(self.config, "decoder"), f_hat_BChw)

    def decode(self, f_hat_BChw: Tensor) -> Tensor:
        """Return the images (B,3,·,·) in [0, 1] of latent maps, red first."""
        return (self.latent_to_raw_image(f_hat_BChw).clamp(-1, 1) + 1) / 2
