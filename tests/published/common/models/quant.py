"""The residual quantiser as samplers use it: codebook, φ, and an accumulation that writes into its argument."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Phi(nn.Conv2d):
    """0.5·h + 0.5·conv(h)."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, h):
        return h * 0.5 + super().forward(h) * 0.5


class PhiShared(nn.Module):
    """One φ for all scales."""

    def __init__(self, channels):
        super().__init__()
        self.qresi = Phi(channels)

    def __getitem__(self, _):
        return self.qresi


def nearest(at, count):
    """Return which of `count` φ lies nearest to a share of the pyramid."""
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    return int(np.argmin(np.abs(np.linspace(edge, 1 - edge, count) - at)))


class PhiPartiallyShared(nn.Module):
    """Several φ, each for some scales."""

    def __init__(self, channels, count):
        super().__init__()
        self.qresi_ls = nn.ModuleList([Phi(channels) for _ in range(count)])

    def __getitem__(self, at):
        return self.qresi_ls[nearest(at, len(self.qresi_ls))]


class PhiNonShared(nn.ModuleList):
    """One φ a scale."""

    def __getitem__(self, at):
        return super().__getitem__(nearest(at, len(self)))


class VectorQuantizer2(nn.Module):
    """Codebook and φ."""

    def __init__(
        self, vocab_size, Cvae, using_znorm, beta=0.25, default_qresi_counts=0, v_patch_nums=None, share_quant_resi=4
    ):
        super().__init__()
        self.vocab_size, self.Cvae, self.using_znorm, self.v_patch_nums = vocab_size, Cvae, using_znorm, v_patch_nums
        if share_quant_resi == 0:
            self.quant_resi = PhiNonShared([Phi(Cvae) for _ in range(default_qresi_counts or len(v_patch_nums))])
        elif share_quant_resi == 1:
            self.quant_resi = PhiShared(Cvae)
        else:
            self.quant_resi = PhiPartiallyShared(Cvae, share_quant_resi)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(v_patch_nums), vocab_size))
        self.embedding = nn.Embedding(vocab_size, Cvae)

    def get_next_autoregressive_input(self, si, SN, f_hat, h_BCpp):
        """Add a scale into f_hat, in place; return that same tensor and the next scale's raw map."""
        side = self.v_patch_nums[-1]
        if si == SN - 1:
            f_hat.add_(self.quant_resi[si / (SN - 1)](h_BCpp))
            return f_hat, f_hat
        f_hat.add_(self.quant_resi[si / (SN - 1)](F.interpolate(h_BCpp, size=(side, side), mode="bicubic")))
        pn = self.v_patch_nums[si + 1]
        return f_hat, F.interpolate(f_hat, size=(pn, pn), mode="area")
