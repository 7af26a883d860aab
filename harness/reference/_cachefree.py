"""Sequential sampling without a cache: everything is recomputed at every scale under the block-causal mask.

Promise: the second opinion. It shares the plain parts with `sequential` but neither its cache nor its one-scale
passes; run it with float64 networks to get the logits that rounding is judged against. By it the exact joint law of all
tokens of a small pyramid is listed, every outcome of positive probability once; no numbers are drawn for that.
"""

from itertools import product

import torch
from torch import Tensor

from harness.errors import InputError
from harness.models import Codec, Condition, ModelPair, Network
from harness.protocol import Noise, Request
from harness.reference._steps import block_causal, family_of, filter_logits
from harness.reference.sequential import GrowingCache, choose


@torch.inference_mode()
def sample_cachefree(network: Network, vae: Codec, request: Request, noise: Noise) -> Tensor:
    """Return tokens_BL of a free run. Arguments as `sample_sequential`; `more_smooth` is not offered."""
    pyramid = network.pyramid
    request.check_for(network.config)
    labels_B = noise.labels(network.config.classes)
    tokens_BL = torch.zeros(request.B, pyramid.draws.L, dtype=torch.int64, device=network.device)
    for si in pyramid:
        span = pyramid.draws.span(si)
        guided_BlV = teacher_forced(network, vae, request, labels_B, tokens_BL, si + 1)[1][:, span]
        tokens_BL[:, span] = choose(guided_BlV, request, noise, si)[1]
    return tokens_BL


@torch.inference_mode()
def teacher_forced(
    network: Network, vae: Codec, request: Request, labels_B: Tensor, tokens_BL: Tensor, scales: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the first 1..S `scales` in one masked pass, each from the given tokens (int64) of the scales before it.

    Network and codec are both in float32, or in float64 for the oracle of rounding. Guidance and texts are the
    request's, `labels_B` (int64 classes) need not be; of the tokens those of scales < scales-1 are used.

    Returns rows_RnV (before guidance), guided_BnV (before the filter) and f_hat_sBCPP after scales 0..scales-2.
    """
    pyramid = network.pyramid
    family = family_of(network)
    condition = family.condition(network, request, labels_B)
    xs, f_hats = prefix_inputs(network, vae, condition, tokens_BL, scales)
    n = pyramid.end(scales - 1)
    mask_11nn = block_causal(pyramid, network.device, network.dtype)[:, :, :n, :n]
    positions = family.positions(network, 0, scales - 1)
    hidden_RnD = network.hidden(torch.cat(xs, 1), condition, GrowingCache(grows=False), mask_11nn, positions)
    rows_RnV = network.logits(hidden_RnD, condition)
    by_scale = [rows_RnV[:, pyramid.draws.span(si)] for si in range(scales)]
    guided = [family.guide(rows_RlV, request.guidance, si, pyramid.S) for si, rows_RlV in enumerate(by_scale)]
    return rows_RnV, torch.cat(guided, 1), torch.stack(f_hats)


def prefix_inputs(
    network: Network, vae: Codec, condition: Condition, tokens_BL: Tensor, scales: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs x_RlD of scales 0..scales-1 and f_hat after each scale but the last (zeros first)."""
    pyramid, family = network.pyramid, family_of(network)
    f_hat = torch.zeros(len(tokens_BL), *network.config.latent, device=network.device, dtype=vae.dtype)
    xs, f_hats = [family.input(network, condition, None, 0)], [f_hat]
    for si in range(1, scales):
        codes = vae.quantizer.codes(tokens_BL[:, pyramid.draws.span(si - 1)], *pyramid.sides[si - 1])
        f_hat = family.accumulate(f_hat, codes, si - 1, vae.quantizer, pyramid)
        f_hats.append(f_hat)
        xs.append(family.input(network, condition, family.next_input(f_hat, si, pyramid), si))
    return xs, f_hats


MOST = 1 << 20
JointLaw = dict[tuple[int, ...], float]


@torch.inference_mode()
def joint_law(models: ModelPair, request: Request) -> JointLaw:
    """Return the probability of every token sequence of one image (spec §7). Raises `InputError` beyond `MOST`."""
    pyramid, V = models.pyramid, models.target.config.V
    if request.labels is None or request.B != 1:
        raise InputError("labels", request.labels, "must name exactly one image", "pass one label")
    if V**pyramid.draws.L > MOST:
        sides = pyramid.patch_nums or pyramid.sides
        raise InputError("patch_nums", sides, f"has more than {MOST} outcomes at V={V}", "make it smaller")
    law: JointLaw = {(): 1.0}
    for si in pyramid:
        prefixes = list(law)
        tokens_BL = torch.zeros(len(prefixes), pyramid.draws.L, dtype=torch.int64)
        tokens_BL[:, : pyramid.draws.begin(si)] = torch.tensor(prefixes).view(len(prefixes), -1)
        labels_B = torch.full((len(prefixes),), request.labels[0])
        _, guided_BnV, _ = teacher_forced(models.target, models.vae, request, labels_B, tokens_BL, si + 1)
        probs_BlV = filter_logits(guided_BnV[:, pyramid.draws.span(si)], *request.filter(si)).softmax(-1)
        longer: JointLaw = {}
        for prefix, probs_lV in zip(prefixes, probs_BlV.tolist(), strict=True):
            # tokens of one scale are independent given the earlier scales
            choices = [[(v, p) for v, p in enumerate(probs_V) if p > 0] for probs_V in probs_lV]
            for combination in product(*choices):
                weight = law[prefix]
                for _, p in combination:
                    weight *= p
                longer[prefix + tuple(v for v, _ in combination)] = weight
        law = longer
    return law


def law_distance(actual: JointLaw, expected: JointLaw) -> float:
    """Return the largest difference of the probability of any one outcome."""
    return max(abs(actual.get(k, 0.0) - expected.get(k, 0.0)) for k in actual.keys() | expected.keys())
