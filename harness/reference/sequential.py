"""Sequential sampling with a KV cache: the plain reading of spec §7, and the oracle of contract A.

Promise: clarity. One scale after the other, one forward pass a scale, nothing shared with `speculative/`.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from harness.models.autoencoder import Autoencoder
from harness.models.network import Condition, Network
from harness.protocol.noise import SMOOTH, TOKEN, Noise
from harness.protocol.request import Request
from harness.protocol.trace import Intermediates, Trace
from harness.reference.draw import draw, filter_logits, smooth_codes
from harness.reference.guidance import guide
from harness.reference.latent import accumulate, next_input


class GrowingCache:
    """Keys and values of all positions so far, one concatenation a step."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        """Append and return all keys and values, (R,H,K+n,c) each."""
        if layer in self.layers:
            k_old, v_old = self.layers[layer]
            k_RHnc, v_RHnc = torch.cat((k_old, k_RHnc), 2), torch.cat((v_old, v_RHnc), 2)
        self.layers[layer] = (k_RHnc, v_RHnc)
        return k_RHnc, v_RHnc


def guidance_labels(labels_B: Tensor, classes: int) -> Tensor:
    """Return labels_R: the conditional rows, then the unconditional ones."""
    return torch.cat((labels_B, torch.full_like(labels_B, classes)))


def scale_input(network: Network, condition: Condition, raw_BlC: Tensor | None, si: int) -> Tensor:
    """Return the network's input x_RlD of scale `si` (spec §4).

    Args:
        network: whose embeddings are used.
        condition: of the R rows.
        raw_BlC: resized f_hat; None at scale 0.
        si: scale index.
    """
    span = network.pyramid.span(si)
    lvl_pos_lD = network.lvl_SD[si] + network.pos_LD[span]
    if raw_BlC is None:
        return condition.cond_RD[:, None] + network.start_1D + lvl_pos_lD
    x_BlD = network.embed(raw_BlC) + lvl_pos_lD
    return torch.cat((x_BlD, x_BlD))  # the same input for both guidance halves


@torch.inference_mode()
def sample(
    network: Network,
    vae: Autoencoder,
    request: Request,
    noise: Noise,
    forced_BL: Tensor | None = None,
    greedy: bool = False,
) -> Trace:
    """Draw a batch of images sequentially.

    Args:
        network: the transformer that decides every token.
        vae: quantiser.
        request: what to draw.
        noise: the numbers; read as "reference".
        forced_BL: teacher forcing: these tokens are consumed in place of the drawn ones (scale by scale, after the
            draw), while `Trace.tokens_BL` still holds what was drawn.
        greedy: take the most likely token in place of the draw; no numbers are read then.

    Returns:
        A trace with all intermediates.

    Raises:
        InputError: a label or top_k that the network does not have.

    Source: spec §7.
    """
    start = time.perf_counter()
    pyramid, config = network.pyramid, network.config
    request.check_against(config.classes, config.V)
    labels_B = noise.labels(config.classes)
    condition = network.condition(guidance_labels(labels_B, config.classes))
    cache = GrowingCache()
    f_hat = torch.zeros(request.B, config.C, pyramid.P, pyramid.P, device=network.device, dtype=vae.dtype)
    raw_BlC: Tensor | None = None
    made: dict[str, list[Tensor]] = {"x": [], "rows": [], "guided": [], "tokens": [], "f_hat": []}
    for si in pyramid:
        x_RlD = scale_input(network, condition, raw_BlC, si)
        logits_RlV = network.logits(network.hidden(x_RlD, condition, cache, None), condition)
        guided_BlV = guide(logits_RlV, request.cfg, si, pyramid.S)
        filtered_BlV, idx_Bl = choose(guided_BlV, request, noise, si, greedy)
        used_Bl = idx_Bl if forced_BL is None else forced_BL[:, pyramid.span(si)]
        if request.more_smooth:
            E_BlV = noise.exponential(si, SMOOTH, "reference")
            codes_BlC = smooth_codes(filtered_BlV, E_BlV, vae.quantizer.codebook_VC, pyramid.ramp(si))
            codes_BCpp = codes_BlC.mT.reshape(request.B, config.C, pyramid.patch_nums[si], -1)
        else:
            codes_BCpp = vae.quantizer.codes(used_Bl, pyramid.patch_nums[si])
        f_hat = accumulate(f_hat, codes_BCpp, si, vae.quantizer, pyramid)
        if si + 1 < pyramid.S:
            raw_BlC = next_input(f_hat, si + 1, pyramid)
        scale = {"x": x_RlD, "rows": logits_RlV, "guided": guided_BlV, "tokens": idx_Bl, "f_hat": f_hat}
        for name, tensor in scale.items():
            made[name].append(tensor)
    return Trace(
        tokens_BL=torch.cat(made["tokens"], 1),
        f_hat_BCPP=f_hat,
        scale_writes_BS=torch.ones(request.B, pyramid.S, dtype=torch.int64),
        target_calls=[pyramid.S] * request.B,
        target_rows=[pyramid.L] * request.B,
        intermediates=Intermediates(
            x_RLD=torch.cat(made["x"], 1),
            rows_RLV=torch.cat(made["rows"], 1),
            guided_BLV=torch.cat(made["guided"], 1),
            f_hat_SBCPP=torch.stack(made["f_hat"]),
        ),
        seconds=time.perf_counter() - start,
    )


def choose(guided_BlV: Tensor, request: Request, noise: Noise, si: int, greedy: bool = False) -> tuple[Tensor, Tensor]:
    """Filter and draw one scale; return the filtered logits and idx_Bl. Draws: stream TOKEN of `si`, unless greedy."""
    filtered_BlV = filter_logits(guided_BlV, request.top_k, request.top_p)
    if greedy:
        return filtered_BlV, filtered_BlV.argmax(-1)
    return filtered_BlV, draw(filtered_BlV, noise.exponential(si, TOKEN, "reference"))
