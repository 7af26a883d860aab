"""What the laws compare with: a plain sequential run over given tokens, with everything kept.

Promise: composed of `reference/` alone, so that nothing of the decoder under test judges itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.models.autoencoder import Autoencoder
from harness.models.network import Network
from harness.protocol.trace import Trace
from harness.reference.latent import accumulate, next_input
from harness.reference.sequential import GrowingCache, guidance_labels, scale_input


@dataclass(frozen=True)
class Run:
    """One network's sequential run over given tokens.

    Args:
        raw_BLC: raw inputs by position; zero at position 0.
        x_RLD: inputs with their position term.
        rows_RLV: logits of the guidance rows.
        f_hat_SBCPP: f_hat after every scale.
        kv: keys and values (R,H,L,c) of every layer.
    """

    raw_BLC: Tensor
    x_RLD: Tensor
    rows_RLV: Tensor
    f_hat_SBCPP: Tensor
    kv: dict[int, tuple[Tensor, Tensor]]

    def cache(self, length: int) -> GrowingCache:
        """Return a cache that holds the first `length` positions."""
        cache = GrowingCache()
        if length:
            cache.layers = {i: (k[:, :, :length], v[:, :, :length]) for i, (k, v) in self.kv.items()}
        return cache


def targeted(decoded: Trace, B: int, si: int) -> list[int]:
    """Return the images whose scale `si` had a target pass: all of them, unless a policy left it to the draft alone."""
    alone = [
        {turn.first + k for turn in rounds if not turn.target_rows for k in range(turn.finished)}
        for rounds in decoded.rounds
    ]
    return [image for image in range(B) if not alone or si not in alone[image]]


def rows_of(images: list[int], B: int) -> list[int]:
    """Return the guidance rows of images."""
    return images + [B + image for image in images]


def several(decoded: Trace, S: int) -> bool:
    """Return whether any pass was over several scales; where nothing is drafted or told, whether there are several."""
    turns = [turn for rounds in decoded.rounds for turn in rounds]
    if not any(turn.drafted for turn in turns):
        return S > 1
    return any(turn.drafted + turn.bonus > 1 for turn in turns)


@torch.inference_mode()
def run_over(network: Network, vae: Autoencoder, labels_B: Tensor, tokens_BL: Tensor) -> Run:
    """Run a network one scale after the other over given tokens."""
    pyramid, config, B = network.pyramid, network.config, len(labels_B)
    condition = network.condition(guidance_labels(labels_B, config.classes))
    cache = GrowingCache()
    f_hat = torch.zeros(B, config.C, pyramid.P, pyramid.P, device=network.device, dtype=vae.dtype)
    raw = torch.zeros(B, 1, config.C, device=network.device, dtype=vae.dtype)
    raws, xs, rows, f_hats = [raw], [], [], []
    for si in pyramid:
        xs.append(scale_input(network, condition, raws[-1] if si else None, si))
        rows.append(network.logits(network.hidden(xs[-1], condition, cache, None), condition))
        codes = vae.quantizer.codes(tokens_BL[:, pyramid.span(si)], pyramid.patch_nums[si])
        f_hat = accumulate(f_hat, codes, si, vae.quantizer, pyramid)
        f_hats.append(f_hat)
        if si + 1 < pyramid.S:
            raws.append(next_input(f_hat, si + 1, pyramid))
    return Run(torch.cat(raws, 1), torch.cat(xs, 1), torch.cat(rows, 1), torch.stack(f_hats), cache.layers)
