"""Laws of the numbers that both sides share: networks, quantiser and precision, against the page's formulas.

What decoder and reference share cannot be seen by comparing them. These laws are about the harness's own networks; a
decoder with networks of its own is judged by the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.laws import formulas
from harness.laws.case import Case
from harness.laws.law import FLOAT64, Law, Subject, require, require_same
from harness.laws.networks import CLASSES, random_models
from harness.laws.oracle import run_over
from harness.models.pair import ModelPair
from harness.models.quantizer import Quantizer
from harness.protocol.pyramid import ScalePyramid
from harness.reference.sequential import guidance_labels

# φ of numbers of size 1 in float32: some twenty products a channel; a detour by half precision leaves 1e-3.
FLOAT32 = 1e-5
COUNTS = (1, 2, 3, 4, 5, 10)  # of φ; 4 has ticks of its own
SCALES = (1, 2, 3, 7, 10)


@torch.inference_mode()
def transformer(subject: Subject, case: Case) -> bool:
    """Both networks compute the formula of spec §4, condition, attention, feed-forward and head included."""
    tokens_BL = case.random_tokens()
    level_L = torch.tensor(case.pyramid.levels(), device=case.at)
    for name in ("draft", "target"):
        network = getattr(case.models, name)
        run = run_over(network, case.models.vae, case.labels_B, tokens_BL)
        labels_R = guidance_labels(case.labels_B, CLASSES)
        sees_LL = level_L[:, None] >= level_L[None, :]
        due = formulas.logits(network.config, network.weights, run.x_RLD, labels_R, sees_LL)
        require_same({"logits": run.rows_RLV}, {"logits": due}, name, FLOAT64)
    return True


@torch.inference_mode()
def phi(subject: Subject, case: Case) -> bool:
    """Every scale of every layout uses the φ of its tick, and φ is its formula in the quantiser's own precision."""
    h_BCPP = case.normal(1, 4, 5, 5)
    for n in COUNTS:
        kernels = [case.normal(4 * (k + 1), 4, 3, 3)[-4:] for k in range(n)]
        biases = [case.normal(4 * (k + 1))[-4:] for k in range(n)]
        made = {}
        for dtype in (torch.float64, torch.float32):
            pairs = tuple((w.to(dtype), b.to(dtype)) for w, b in zip(kernels, biases, strict=True))
            made[dtype] = Quantizer(case.normal(case.V, 4).to(dtype), pairs)
        for S in (*SCALES, n):
            for si in range(S):
                k = formulas.phi_choice(si, S, n)
                due = formulas.phi(h_BCPP, kernels[k], biases[k])
                where = f"{n} φ, scale {si} of {S} (φ {k})"
                require_same({"φ": made[torch.float64].phi(h_BCPP, si, S)}, {"φ": due}, where, FLOAT64)
                got = made[torch.float32].phi(h_BCPP.float(), si, S)
                require_same({"φ": got.double()}, {"φ": due}, f"{where}, float32", FLOAT32)
    return True


@torch.inference_mode()
def encode(subject: Subject, case: Case) -> bool:
    """Tokens of a latent map are the nearest codes scale by scale, the lowest index on a tie."""
    quantizer, pyramid = case.models.vae.quantizer, ScalePyramid(case.patch_nums[:3])
    z_BCPP = case.normal(2, quantizer.C, pyramid.P, pyramid.P)
    tokens_BL, margin_BL = quantizer.encode(z_BCPP, pyramid)
    residual = z_BCPP
    for si, side in enumerate(pyramid.patch_nums):
        span, last = pyramid.span(si), si == pyramid.S - 1
        small = residual if last else torch.nn.functional.interpolate(residual, (side, side), mode="area")
        flat_NC = small.flatten(2).mT.reshape(-1, quantizer.C)
        due_Bl = formulas.nearest(flat_NC, quantizer.codebook_VC).view(2, -1)
        require_same({"tokens": tokens_BL[:, span]}, {"tokens": due_Bl}, f"scale {si}")
        two = torch.cdist(flat_NC, quantizer.codebook_VC).square().sort(1).values[:, :2].view(2, -1, 2)
        margins = {"margin": two[..., 1] - two[..., 0]}
        require_same({"margin": margin_BL[:, span]}, margins, f"scale {si}", FLOAT64)
        h = quantizer.codebook_VC[due_Bl].mT.reshape(2, quantizer.C, side, side)
        h = h if last else torch.nn.functional.interpolate(h, (pyramid.P, pyramid.P), mode="bicubic")
        kernel, bias = quantizer.phi_weights[formulas.phi_choice(si, pyramid.S, len(quantizer.phi_weights))]
        residual = residual - formulas.phi(h, kernel, bias)
    # whole numbers, so that distances are exact, and every code twice: a tie everywhere
    codes_VC = (2 * quantizer.codebook_VC).round()
    twins = Quantizer(torch.cat((codes_VC, codes_VC)), quantizer.phi_weights)
    z_BC11 = (2 * case.normal(64, quantizer.C, 1, 1)).round()
    tokens_B1, margin_B1 = twins.encode(z_BC11, ScalePyramid((1,)))
    due_B1 = formulas.nearest(z_BC11.flatten(1), twins.codebook_VC)[:, None]
    require_same({"tokens": tokens_B1}, {"tokens": due_B1}, "every code twice")
    require(bool((margin_B1 == 0).all()), "every code twice is no tie to `encode`")
    return True


@torch.inference_mode()
def pixels(subject: Subject, case: Case) -> bool:
    """Pixels are (x + 1)/2 of the decoder's output clamped to [-1, 1]."""
    vae = case.models.vae
    f_hat = 3 * case.normal(1, vae.quantizer.C, 3, 3)
    raw = vae.latent_to_raw_image(f_hat)
    due = (torch.minimum(torch.maximum(raw, -torch.ones_like(raw)), torch.ones_like(raw)) + 1) / 2
    require_same({"image": vae.decode(f_hat)}, {"image": due}, "decode", FLOAT64)
    many = vae.decode(1e3 * f_hat)
    require(float(many.min()) >= 0 and float(many.max()) <= 1, "pixels outside [0, 1]")
    return True


def _weights(models: ModelPair) -> dict[str, Tensor]:
    sides = {"draft": models.draft.weights, "target": models.target.weights, "vae": models.vae.weights}
    return {f"{side}.{name}": w for side, weights in sides.items() for name, w in weights.items()}


def precision(subject: Subject, case: Case) -> bool:
    """A pair in another precision holds its weights rounded once; the quantiser stays in float32 at least."""
    made_anew = random_models(case.models.target.config, case.weights, case.draft)  # never yet in another precision
    wide = _weights(made_anew)
    for dtype, draft_dtype in ((torch.float32, torch.bfloat16), (torch.bfloat16, None), (torch.float64, None)):
        made = _weights(made_anew.to(case.at, dtype, draft_dtype))
        for name, weight in wide.items():
            due = draft_dtype or dtype if name.startswith("draft") else dtype
            if name.startswith("vae"):
                due = torch.promote_types(dtype, torch.float32)
            require_same({name: made[name]}, {name: weight.to(case.at, due)}, f"a pair in {dtype}")
    return True


LAWS = (
    Law("numbers.transformer", "Both networks compute the formula of the spec page, head included.",
        ("network",), transformer),
    Law("numbers.phi", "Every scale uses the φ of its tick, whatever their number, in the quantiser's own precision.",
        ("quantizer",), phi),
    Law("numbers.encode", "Encoding takes the nearest code, the lowest index on a tie.", ("quantizer",), encode),
    Law("numbers.pixels", "Pixels are (x + 1)/2 of the output clamped to [-1, 1].", ("autoencoder",), pixels),
    Law("numbers.precision", "Weights in another precision are rounded once; the quantiser stays in float32 at least.",
        ("network", "quantizer"), precision),
)  # fmt: skip
