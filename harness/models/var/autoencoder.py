"""The VQ-VAE around the quantiser: images to latent maps and back.

Promise: the VQGAN-f16 layout for any channels, multipliers and number of residual blocks; pure functions of a dict of
tensors under the published names.

Source: spec §6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models.var.quantizer import Quantizer
from harness.protocol.pyramid import ScalePyramid

GROUPS, GN_EPS = 32, 1e-6
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of one VQ-VAE."""

    V: int  # codebook size
    C: int  # channels of a code vector
    ch: int  # base width
    multipliers: tuple[int, ...]  # width of every level, coarse last, in units of `ch`
    res_blocks: int = 2  # residual blocks a level in the encoder; the decoder has one more
    phi: int = 4  # number of φ convolutions
    phi_layout: str = "shared"  # "shared" (`qresi_ls.k`), "one" (`qresi`) or "per-scale" (`k`)
    has_encoder: bool = True  # False when the checkpoint is for decoding only

    @property
    def downsampling(self) -> int:
        """Pixels of the image per pixel of the latent map, along one side."""
        return 1 << (len(self.multipliers) - 1)

    def phi_names(self) -> list[str]:
        """Prefixes of the φ convolutions in the checkpoint."""
        if self.phi_layout == "one":
            return ["quantize.quant_resi.qresi"]
        stem = "quantize.quant_resi.qresi_ls" if self.phi_layout == "shared" else "quantize.quant_resi"
        return [f"{stem}.{k}" for k in range(self.phi)]


def autoencoder_shapes(config: AutoencoderConfig) -> Shapes:
    """Return every parameter's name and shape; the one place that knows the checkpoint layout (spec §2, §6)."""
    shapes: Shapes = {"quantize.embedding.weight": (config.V, config.C)}
    for name in config.phi_names():
        shapes |= _conv(name, config.C, config.C, 3)
    shapes |= _conv("post_quant_conv", config.C, config.C, 3)
    shapes |= _decoder_shapes(config)
    if config.has_encoder:
        shapes |= _conv("quant_conv", config.C, config.C, 3) | _encoder_shapes(config)
    return shapes


def _conv(name: str, out: int, into: int, side: int) -> Shapes:
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _res_block(name: str, into: int, out: int) -> Shapes:
    shapes = _norm(f"{name}.norm1", into) | _conv(f"{name}.conv1", out, into, 3)
    shapes |= _norm(f"{name}.norm2", out) | _conv(f"{name}.conv2", out, out, 3)
    return shapes | (_conv(f"{name}.nin_shortcut", out, into, 1) if into != out else {})


def _attention(name: str, channels: int) -> Shapes:
    shapes = _norm(f"{name}.norm", channels) | _conv(f"{name}.qkv", 3 * channels, channels, 1)
    return shapes | _conv(f"{name}.proj_out", channels, channels, 1)


def _middle(name: str, channels: int) -> Shapes:
    shapes = _res_block(f"{name}.mid.block_1", channels, channels) | _attention(f"{name}.mid.attn_1", channels)
    return shapes | _res_block(f"{name}.mid.block_2", channels, channels)


def _encoder_shapes(config: AutoencoderConfig) -> Shapes:
    widths = [config.ch * m for m in config.multipliers]
    last = len(widths) - 1
    shapes = _conv("encoder.conv_in", config.ch, 3, 3)
    into = config.ch
    for i, width in enumerate(widths):
        for j in range(config.res_blocks):
            shapes |= _res_block(f"encoder.down.{i}.block.{j}", into, width)
            into = width
            if i == last:
                shapes |= _attention(f"encoder.down.{i}.attn.{j}", width)
        if i != last:
            shapes |= _conv(f"encoder.down.{i}.downsample.conv", width, width, 3)
    shapes |= _middle("encoder", into) | _norm("encoder.norm_out", into)
    return shapes | _conv("encoder.conv_out", config.C, into, 3)


def _decoder_shapes(config: AutoencoderConfig) -> Shapes:
    widths = [config.ch * m for m in config.multipliers]
    last = len(widths) - 1
    into = widths[last]
    shapes = _conv("decoder.conv_in", into, config.C, 3) | _middle("decoder", into)
    for i in range(last, -1, -1):
        for j in range(config.res_blocks + 1):
            shapes |= _res_block(f"decoder.up.{i}.block.{j}", into, widths[i])
            into = widths[i]
            if i == last:
                shapes |= _attention(f"decoder.up.{i}.attn.{j}", into)
        if i != 0:
            shapes |= _conv(f"decoder.up.{i}.upsample.conv", into, into, 3)
    return shapes | _norm("decoder.norm_out", into) | _conv("decoder.conv_out", 3, into, 3)


@dataclass(frozen=True)
class Autoencoder:
    """A VQ-VAE: sizes and weights."""

    config: AutoencoderConfig  # sizes
    weights: Mapping[str, Tensor] = field(repr=False)  # tensors under the names of `autoencoder_shapes`
    quantizer: Quantizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        phi = tuple((self.weights[f"{n}.weight"], self.weights[f"{n}.bias"]) for n in self.config.phi_names())
        object.__setattr__(self, "quantizer", Quantizer(self.weights["quantize.embedding.weight"], phi))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and so of f_hat."""
        return self.quantizer.codebook_VC.dtype

    def check_for(self, pyramid: ScalePyramid) -> None:
        """Refuse scales that have no φ. Raises `InputError`."""
        phi = self.config.phi
        if self.config.phi_layout == "per-scale" and phi != pyramid.S:
            raise InputError("vae φ", phi, f"must be one a scale ({pyramid.S})", "pass models trained as a pair")

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Autoencoder:
        """Return a copy with the weights on `device` in `dtype`."""
        return replace(self, weights={name: w.to(device, dtype) for name, w in self.weights.items()})

    def latent_to_raw_image(self, f_hat_BCPP: Tensor) -> Tensor:
        """Return decoder(post_quant_conv(f_hat)), (B,3,h,w), before clamping."""
        last = len(self.config.multipliers) - 1
        h = self._conv("decoder.conv_in", self._conv("post_quant_conv", f_hat_BCPP))
        h = self._run_middle("decoder", h)
        for i in range(last, -1, -1):
            for j in range(self.config.res_blocks + 1):
                h = self._run_res_block(f"decoder.up.{i}.block.{j}", h)
                if i == last:
                    h = self._run_attention(f"decoder.up.{i}.attn.{j}", h)
            if i != 0:
                h = self._conv(f"decoder.up.{i}.upsample.conv", F.interpolate(h, scale_factor=2, mode="nearest"))
        return self._conv("decoder.conv_out", self._norm_silu("decoder.norm_out", h))

    def decode(self, f_hat_BCPP: Tensor) -> Tensor:
        """Return the images (B,3,h,w) in [0, 1] of latent maps."""
        return (self.latent_to_raw_image(f_hat_BCPP).clamp(-1, 1) + 1) / 2

    def image_to_latent(self, image_B3hw: Tensor) -> Tensor:
        """Return quant_conv(encoder(image)), (B,C,P,P), of images in [-1, 1]. Raises `InputError` where it has none."""
        if not self.config.has_encoder:
            raise InputError("vae", "decoder only", "encoding needs encoder.* and quant_conv", "load a full VAE")
        last = len(self.config.multipliers) - 1
        h = self._conv("encoder.conv_in", image_B3hw)
        for i in range(last + 1):
            for j in range(self.config.res_blocks):
                h = self._run_res_block(f"encoder.down.{i}.block.{j}", h)
                if i == last:
                    h = self._run_attention(f"encoder.down.{i}.attn.{j}", h)
            if i != last:
                h = self._conv(f"encoder.down.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
        h = self._run_middle("encoder", h)
        return self._conv("quant_conv", self._conv("encoder.conv_out", self._norm_silu("encoder.norm_out", h)))

    def encode(self, image_B3hw: Tensor, pyramid: ScalePyramid) -> tuple[Tensor, Tensor]:
        """Return tokens_BL and the search margin_BL of images in [-1, 1]; see `Quantizer.encode`."""
        return self.quantizer.encode(self.image_to_latent(image_B3hw), pyramid)

    def _conv(self, name: str, h: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        same = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(h, weight, self.weights[f"{name}.bias"], stride=stride, padding=same)

    def _norm_silu(self, name: str, h: Tensor) -> Tensor:
        return F.silu(self._norm(name, h))

    def _norm(self, name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, GROUPS, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], GN_EPS)

    def _run_res_block(self, name: str, x: Tensor) -> Tensor:
        h = self._conv(f"{name}.conv1", self._norm_silu(f"{name}.norm1", x))
        h = self._conv(f"{name}.conv2", self._norm_silu(f"{name}.norm2", h))
        return h + (self._conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.weights else x)

    def _run_attention(self, name: str, x_BChw: Tensor) -> Tensor:
        B, C, h, w = x_BChw.shape
        normed = self._norm(f"{name}.norm", x_BChw)
        # (B, 3C, h, w) -> three of (B, 1, hw, C): one head over all pixels, order q, k, v
        q, k, v = self._conv(f"{name}.qkv", normed).view(B, 3, C, h * w).transpose(2, 3).unsqueeze(2).unbind(1)
        out_B1nC = F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(C))
        out_BChw = out_B1nC.squeeze(1).transpose(1, 2).reshape(B, C, h, w)
        return x_BChw + self._conv(f"{name}.proj_out", out_BChw)

    def _run_middle(self, name: str, h: Tensor) -> Tensor:
        h = self._run_res_block(f"{name}.mid.block_1", h)
        h = self._run_attention(f"{name}.mid.attn_1", h)
        return self._run_res_block(f"{name}.mid.block_2", h)
