"""The VQ-VAE around the quantiser: images to latent maps and back.

Promise: the VQGAN-f16 layout for any channels, multipliers and number of residual blocks; pure functions of a dict of
tensors under the published names.

Source: spec §6.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

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
        shapes |= _conv(name, config.C, config.C)
    for kind, name, into, out in (*decoder_layers(config), *(encoder_layers(config) if config.has_encoder else ())):
        shapes |= SHAPES[kind](name, into, out)
    return shapes


def _conv(name: str, into: int, out: int, side: int = 3) -> Shapes:
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def _norm(name: str, into: int, out: int) -> Shapes:
    return {f"{name}.weight": (into,), f"{name}.bias": (into,)}


def _block(name: str, into: int, out: int) -> Shapes:
    shapes = _norm(f"{name}.norm1", into, into) | _conv(f"{name}.conv1", into, out)
    shapes |= _norm(f"{name}.norm2", out, out) | _conv(f"{name}.conv2", out, out)
    return shapes | (_conv(f"{name}.nin_shortcut", into, out, 1) if into != out else {})


def _attention(name: str, into: int, out: int) -> Shapes:
    shapes = _norm(f"{name}.norm", into, into) | _conv(f"{name}.qkv", into, 3 * into, 1)
    return shapes | _conv(f"{name}.proj_out", into, into, 1)


# Parameters of every kind of layer, of its name and its channels, in and out.
SHAPES = {"conv": _conv, "up": _conv, "down": _conv, "norm": _norm, "block": _block, "attention": _attention}
Layer = tuple[str, str, int, int]  # one of `SHAPES`, name, channels in and out


def encoder_layers(config: AutoencoderConfig) -> Iterator[Layer]:
    """Yield what makes a latent map of an image, in order."""
    widths, into = [config.ch * m for m in config.multipliers], config.ch
    last = len(widths) - 1
    yield "conv", "encoder.conv_in", 3, into
    for i, width in enumerate(widths):
        for j in range(config.res_blocks):
            yield "block", f"encoder.down.{i}.block.{j}", into, width
            into = width
            if i == last:
                yield "attention", f"encoder.down.{i}.attn.{j}", into, into
        if i != last:
            yield "down", f"encoder.down.{i}.downsample.conv", width, width
    yield from _middle("encoder", into)
    yield "norm", "encoder.norm_out", into, into
    yield "conv", "encoder.conv_out", into, config.C
    yield "conv", "quant_conv", config.C, config.C


def decoder_layers(config: AutoencoderConfig) -> Iterator[Layer]:
    """Yield what makes an image of a latent map, in order."""
    widths = [config.ch * m for m in config.multipliers]
    last, into = len(widths) - 1, widths[-1]
    yield "conv", "post_quant_conv", config.C, config.C
    yield "conv", "decoder.conv_in", config.C, into
    yield from _middle("decoder", into)
    for i in range(last, -1, -1):
        for j in range(config.res_blocks + 1):
            yield "block", f"decoder.up.{i}.block.{j}", into, widths[i]
            into = widths[i]
            if i == last:
                yield "attention", f"decoder.up.{i}.attn.{j}", into, into
        if i != 0:
            yield "up", f"decoder.up.{i}.upsample.conv", into, into
    yield "norm", "decoder.norm_out", into, into
    yield "conv", "decoder.conv_out", into, 3


def _middle(side: str, width: int) -> Iterator[Layer]:
    for kind, name in (("block", "block_1"), ("attention", "attn_1"), ("block", "block_2")):
        yield kind, f"{side}.mid.{name}", width, width


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A VQ-VAE: sizes and weights."""

    config: AutoencoderConfig  # sizes
    weights: Mapping[str, Tensor] = field(repr=False)  # tensors under the names of `autoencoder_shapes`
    autocast: torch.dtype | None = None  # of the quantiser; pixels are made outside
    quantizer: Quantizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        phi = tuple((self.weights[f"{n}.weight"], self.weights[f"{n}.bias"]) for n in self.config.phi_names())
        codebook_VC = self.weights["quantize.embedding.weight"]
        object.__setattr__(self, "quantizer", Quantizer(codebook_VC, phi, self.autocast))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and so of f_hat."""
        return self.quantizer.codebook_VC.dtype

    def check_for(self, pyramid: ScalePyramid) -> None:
        """Refuse scales that have no φ. Raises `InputError`."""
        phi = self.config.phi
        if self.config.phi_layout == "per-scale" and phi != pyramid.S:
            raise InputError("vae φ", phi, f"must be one a scale ({pyramid.S})", "pass models trained as a pair")

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Return a copy with the weights on `device` in `dtype`."""
        return replace(self, weights={name: w.to(device, dtype) for name, w in self.weights.items()}, autocast=None)

    def latent_to_raw_image(self, f_hat_BCPP: Tensor) -> Tensor:
        """Return decoder(post_quant_conv(f_hat)), (B,3,h,w), before clamping."""
        return run_layers(self.weights, decoder_layers(self.config), f_hat_BCPP)

    def decode(self, f_hat_BCPP: Tensor) -> Tensor:
        """Return the images (B,3,h,w) in [0, 1] of latent maps."""
        return (self.latent_to_raw_image(f_hat_BCPP).clamp(-1, 1) + 1) / 2

    def image_to_latent(self, image_B3hw: Tensor) -> Tensor:
        """Return quant_conv(encoder(image)), (B,C,P,P), of images in [-1, 1]. Raises `InputError` where it has none."""
        if not self.config.has_encoder:
            raise InputError("vae", "decoder only", "encoding needs encoder.* and quant_conv", "load a full VAE")
        return run_layers(self.weights, encoder_layers(self.config), image_B3hw)

    def encode(self, image_B3hw: Tensor, pyramid: ScalePyramid) -> tuple[Tensor, Tensor]:
        """Return tokens_BL and the search margin_BL of images in [-1, 1]; see `Quantizer.encode`."""
        return self.quantizer.encode(self.image_to_latent(image_B3hw), pyramid)


Weights = Mapping[str, Tensor]


def run_layers(weights: Weights, layers: Iterable[Layer], h: Tensor) -> Tensor:
    """Return what layers make of a map (B,C,h,w), one after the other."""
    for kind, name, _, _ in layers:
        if kind == "up":
            h = _run_conv(weights, name, F.interpolate(h, scale_factor=2, mode="nearest"))
        elif kind == "down":
            h = _run_conv(weights, name, F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
        elif kind == "conv":
            h = _run_conv(weights, name, h)
        elif kind == "norm":
            h = F.silu(_run_norm(weights, name, h))
        else:
            h = (_run_block if kind == "block" else _run_attention)(weights, name, h)
    return h


def _run_conv(weights: Weights, name: str, h: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
    weight = weights[f"{name}.weight"]
    same = weight.shape[-1] // 2 if padding is None else padding
    return F.conv2d(h, weight, weights[f"{name}.bias"], stride=stride, padding=same)


def _run_norm(weights: Weights, name: str, h: Tensor) -> Tensor:
    return F.group_norm(h, GROUPS, weights[f"{name}.weight"], weights[f"{name}.bias"], GN_EPS)


def _run_block(weights: Weights, name: str, x: Tensor) -> Tensor:
    h = _run_conv(weights, f"{name}.conv1", F.silu(_run_norm(weights, f"{name}.norm1", x)))
    h = _run_conv(weights, f"{name}.conv2", F.silu(_run_norm(weights, f"{name}.norm2", h)))
    shortcut = f"{name}.nin_shortcut"
    return h + (_run_conv(weights, shortcut, x) if f"{shortcut}.weight" in weights else x)


def _run_attention(weights: Weights, name: str, x_BChw: Tensor) -> Tensor:
    B, C, h, w = x_BChw.shape
    normed = _run_norm(weights, f"{name}.norm", x_BChw)
    # (B, 3C, h, w) -> three of (B, 1, hw, C): one head over all pixels, order q, k, v
    q, k, v = _run_conv(weights, f"{name}.qkv", normed).view(B, 3, C, h * w).transpose(2, 3).unsqueeze(2).unbind(1)
    out_B1nC = F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(C))
    out_BChw = out_B1nC.squeeze(1).transpose(1, 2).reshape(B, C, h, w)
    return x_BChw + _run_conv(weights, f"{name}.proj_out", out_BChw)
