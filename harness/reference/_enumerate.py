"""The exact joint law of sequential decoding over all tokens of a small pyramid.

Promise: every outcome of positive probability is listed once, with its probability in the networks' precision; no
numbers are drawn. The number of outcomes is V to the power of all draws at most.
"""

from itertools import product

import torch

from harness.errors import InputError
from harness.models import ModelPair
from harness.protocol import Request
from harness.reference._cachefree import teacher_forced
from harness.reference._steps import filter_logits

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
