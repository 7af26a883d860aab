"""Laws of the numbers that both sides share: networks, quantiser and precision, against the page's formulas.

What decoder and reference share cannot be seen by comparing them. These laws are about the harness's own networks; a
decoder with networks of its own is judged by the others.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.errors import NonFiniteError
from harness.judge import require
from harness.laws import _formulas as formulas
from harness.laws import _formulas_infinity as infinity
from harness.laws._case import CLASSES, FAMILIES, Case
from harness.laws._law import FLOAT64, PLAIN, NotOffered, Subject, law, policy_name, require_equal
from harness.laws._oracle import Run, run_over
from harness.models import Around, Condition, ModelPair, product_dtype
from harness.models.var.quantizer import Quantizer
from harness.protocol.pyramid import ScalePyramid
from harness.reference import guidance_labels
from harness.speculative.sampler import SpeculativeDecoder

# φ of numbers of size 1 in float32: some twenty products a channel; a detour by half precision leaves 1e-3.
_FLOAT32 = 1e-5
_COUNTS = (1, 2, 3, 4, 5, 10)  # of φ; 4 has ticks of its own
_SCALES = (1, 2, 3, 7, 10)
# Logits of size 20 at most in float32: 32 products each; a norm in bfloat16 leaves 1e-2.
_HEAD = 1e-4
# How far networks and the search for a code may be from float64 in a narrower precision, in roundings of the largest
# number met: three times what 150 cases needed, twice in half precision. It is no measured budget, which would be
# measured on the code that is judged here. tests/meta/test_dtypes.py: a quarter of it is too little, and a norm that
# adds 1e-5 for 1e-6 is beyond it.
ROUNDINGS = {torch.float32: 16.0, torch.bfloat16: 4.0, torch.float16: 4.0}
DEEPER = 2.5  # times as many for Infinity, whose blocks have two attentions: 13 and 7.2 were needed by 416 cases each


def rounded(largest: Tensor, dtype: torch.dtype, family: str = "var") -> float:
    """Return how far numbers of this size may be from float64's where they are computed in a precision."""
    if dtype == torch.float64:
        return FLOAT64
    roundings = ROUNDINGS[dtype] * (DEEPER if family == "infinity" else 1)
    return roundings * torch.finfo(dtype).eps * float(largest.abs().max())


def _pairs(case: Case) -> list[ModelPair]:
    """Return the case's networks with and without queries and keys of one length, and with a head's that is cut."""
    pairs = [case.models, replace(case, l2_norm=not case.l2_norm, shared_adaln=not case.shared_adaln).models]
    targets: list[Any] = [pair.target for pair in pairs]
    normed = next(target for target in targets if target.config.l2_norm)
    name = next(name for name in normed.weights if name.endswith("scale_mul_1H11"))
    if case.exact:
        longer = {name: normed.weights[name] + torch.tensor((5.0, 0.0), device=case.at).view(1, 2, 1, 1)}
        pairs.append(replace(case.models, target=replace(normed, weights={**normed.weights, **longer})))
        return pairs
    return [pair.unrounded() for pair in pairs]  # a step of bfloat16 is beyond what float32 loses


def _of_var(case: Case, network: Any, weights: dict[str, Tensor], run: Run) -> Tensor:
    level_L = torch.tensor(case.pyramid.levels(), device=case.at)
    labels_R, sees_LL = guidance_labels(case.labels_B, CLASSES), level_L[:, None] >= level_L[None, :]
    return formulas.logits(network.config, weights, run.x_RLD.double(), labels_R, sees_LL)


def _of_infinity(case: Case, network: Any, weights: dict[str, Tensor], run: Run) -> Tensor:
    given = {name: weight.cpu() for name, weight in weights.items()}
    raw_BLN = run.raw_BLC.double().cpu()
    return infinity.logits(network.config, given, raw_BLN, case.request, case.labels).to(case.at)


_LOGITS = {"var": _of_var, "infinity": _of_infinity}


def _needs_formulas(case: Case) -> None:
    """Raise `NotOffered` for networks whose page is not written down here once more."""
    if case.family not in _LOGITS:
        raise NotOffered(f"no formulas of {case.family} to compare with")


@law("numbers.transformer", "network")
@torch.inference_mode()
def transformer(subject: Subject, case: Case) -> bool:
    """Both networks compute the formula of the spec page, head included."""
    _needs_formulas(case)
    tokens_BL = case.random_tokens()
    for models in _pairs(case):
        for name in ("draft", "target"):
            network: Any = getattr(models, name)
            run = run_over(network, models.vae, case, tokens_BL)
            weights = {weight: tensor.double() for weight, tensor in network.weights.items()}
            expected = _LOGITS[case.family](case, network, weights, run)
            where = f"{name}{'' if network.config.l2_norm else ' without the norm of queries and keys'}"
            error = rounded(expected, product_dtype(network), case.family)
            require_equal("logits", run.rows_RLV.double(), expected, where, error)
    return True


@law("numbers.phi", "quantizer")
@torch.inference_mode()
def phi(subject: Subject, case: Case) -> bool:
    """Every scale uses the φ of its tick, whatever their number, in the quantiser's own precision."""
    h_BCPP = case.normal(1, 4, 5, 5)
    for n in _COUNTS:
        kernels = [case.normal(4 * (k + 1), 4, 3, 3)[-4:] for k in range(n)]
        biases = [case.normal(4 * (k + 1))[-4:] for k in range(n)]
        quantizers = {}
        for dtype in (torch.float64, torch.float32):
            pairs = tuple((w.to(dtype), b.to(dtype)) for w, b in zip(kernels, biases, strict=True))
            quantizers[dtype] = Quantizer(case.normal(case.V, 4).to(dtype), pairs)
        for S in (*_SCALES, n):
            for si in range(S):
                k = formulas.phi_choice(si, S, n)
                expected = formulas.phi(h_BCPP, kernels[k], biases[k])
                where = f"{n} φ, scale {si} of {S} (φ {k})"
                require_equal("φ", quantizers[torch.float64].phi(h_BCPP, si, S), expected, where, FLOAT64)
                actual = quantizers[torch.float32].phi(h_BCPP.float(), si, S)
                require_equal("φ", actual.double(), expected, f"{where}, float32", _FLOAT32)
    return True


@law("numbers.encode", "quantizer")
@torch.inference_mode()
def encode(subject: Subject, case: Case) -> bool:
    """Encoding takes the nearest code, the lowest index on a tie; of bits the signs, and codes lie in their places."""
    _needs_formulas(case)
    if case.family == "infinity":
        return _signs(case)
    vae, pyramid = case.models.vqvae, ScalePyramid(case.patch_nums[:3])
    quantizer = vae.quantizer
    codes_VC = quantizer.codebook_VC.double()
    z_BCPP = case.normal(2, quantizer.C, pyramid.P, pyramid.P).to(quantizer.codebook_VC)
    tokens_BL, margin_BL = quantizer.encode(z_BCPP, pyramid)
    residual = z_BCPP.double()
    for si, side in enumerate(pyramid.patch_nums):
        span, last = pyramid.span(si), si == pyramid.S - 1
        small = residual if last else torch.nn.functional.interpolate(residual, (side, side), mode="area")
        flat_NC = small.flatten(2).mT.reshape(-1, quantizer.C)
        distance_BlV = (flat_NC[:, None] - codes_VC).square().sum(-1).view(2, -1, quantizer.V)
        error = rounded(distance_BlV, product_dtype(vae))
        nearest_Bl, idx_Bl = formulas.nearest(flat_NC, codes_VC).view(2, -1), tokens_BL[:, span]
        if z_BCPP.dtype != torch.float64:  # of codes that rounding cannot tell apart either is the nearest
            apart_Bl = distance_BlV.gather(-1, idx_Bl[..., None])[..., 0] - distance_BlV.amin(-1)
            nearest_Bl = torch.where(apart_Bl <= error, idx_Bl, nearest_Bl)
        require_equal("tokens", idx_Bl, nearest_Bl, f"scale {si}")
        two_Bl2 = distance_BlV.sort(-1).values[..., :2]
        require_equal("margin", margin_BL[:, span].double(), two_Bl2[..., 1] - two_Bl2[..., 0], f"scale {si}", error)
        h = codes_VC[idx_Bl].mT.reshape(2, quantizer.C, side, side)
        h = h if last else torch.nn.functional.interpolate(h, (pyramid.P, pyramid.P), mode="bicubic")
        kernel, bias = quantizer.phi_weights[formulas.phi_choice(si, pyramid.S, len(quantizer.phi_weights))]
        residual = residual - formulas.phi(h, kernel.double(), bias.double())
    # whole numbers, so that distances are exact, and every code twice: a tie everywhere
    whole_VC = (2 * quantizer.codebook_VC).round()
    twins = Quantizer(torch.cat((whole_VC, whole_VC)), quantizer.phi_weights)
    z_BC11 = (2 * case.normal(64, quantizer.C, 1, 1)).round().to(whole_VC)
    tokens_B1, margin_B1 = twins.encode(z_BC11, ScalePyramid((1,)))
    expected_B1 = formulas.nearest(z_BC11.flatten(1), twins.codebook_VC)[:, None]
    require_equal("tokens", tokens_B1, expected_B1, "every code twice")
    require(bool((margin_B1 == 0).all()), "every code twice is no tie to `encode`")
    return True


def _signs(case: Case) -> bool:
    """Require that bits are the residuals' signs, draw by draw, and that codes of given bits lie where they should.

    Of patches of one place and of four, whichever the case's networks have: few cases would hardly meet both.
    """
    vae: Any = case.models.vae
    for patch in (1, 2):
        pyramid = replace(case.pyramid, channels=vae.quantizer.C * patch**2)
        given_BL = (case.normal(case.B, pyramid.draws.L) > 0).long()
        h, w = pyramid.sides[-1]
        z_BChw = case.normal(case.B, vae.quantizer.C, patch * h, patch * w).to(vae.dtype)
        bits_BL, residual_BL = vae.quantizer.encode(z_BChw, pyramid, given_BL)
        expected_BL = infinity.encoded(z_BChw.double(), pyramid, given_BL)
        error, where = rounded(expected_BL, product_dtype(vae)), f"along given bits, {pyramid.channels} a position"
        require_equal("residuals", residual_BL.double(), expected_BL, where, error)
        sure_BL = expected_BL.abs() > error  # the sign of others is rounding's
        require_equal("bits", bits_BL[sure_BL], (expected_BL > 0).long()[sure_BL], where)
        for si, sides in enumerate(pyramid.sides):
            bits_Bl = given_BL[:, pyramid.draws.span(si)]
            codes = vae.quantizer.codes(bits_Bl, *sides).double()
            expected_Bl = (2.0 * bits_Bl - 1).double() * codes.shape[1] ** -0.5
            error, where = rounded(expected_Bl, product_dtype(vae)), f"scale {si}, {pyramid.channels} bits a position"
            require_equal("codes", infinity.draws_of(codes, patch), expected_Bl, where, error)
    return True


@law("numbers.pixels", "autoencoder")
@torch.inference_mode()
def pixels(subject: Subject, case: Case) -> bool:
    """Pixels are (x + 1)/2 of the output clamped to [-1, 1]."""
    _needs_formulas(case)
    vae: Any = case.models.vae
    f_hat = (3 * case.normal(1, vae.quantizer.C, 3, 3)).to(vae.dtype)
    raw = vae.latent_to_raw_image(f_hat).double()
    expected = (torch.minimum(torch.maximum(raw, -torch.ones_like(raw)), torch.ones_like(raw)) + 1) / 2
    error = max(FLOAT64, torch.finfo(vae.dtype).eps / 2)  # twice what a sum below 2, halved, can lose
    require_equal("image", vae.decode(f_hat).double(), expected, "decode", error)
    many = vae.decode(1e3 * f_hat)
    require(float(many.min()) >= 0 and float(many.max()) <= 1, "pixels outside [0, 1]")
    return True


@law("numbers.precision", "network", "quantizer")
def precision(subject: Subject, case: Case) -> bool:
    """Weights in another precision are rounded once; quantiser and head stay in float32."""
    _needs_formulas(case)
    made_anew = FAMILIES[case.family].models(case)  # never yet in another precision
    wide = made_anew.named_weights()
    brief, half = torch.bfloat16, torch.float16
    for dtype, draft_dtype in ((torch.float32, brief), (brief, half), (half, None), (torch.float64, None)):
        weights = made_anew.to(case.at, dtype, draft_dtype).named_weights()
        for name, weight in wide.items():
            expected = draft_dtype or dtype if name.startswith("draft") else dtype
            if name.startswith("vae"):
                expected = torch.promote_types(dtype, torch.float32)
            require_equal(name, weights[name], weight.to(case.at, expected), f"a pair in {dtype}")
        _head(case, made_anew.target.to(case.at, dtype))
    return True


@torch.inference_mode()
def _head(case: Case, network: Any) -> None:
    """Require that a network's head computes the formula of its own weights and condition in float32 at least."""
    condition = case.condition(network)
    h_RnD = case.normal(len(condition.cond_RD), 3, network.config.D).to(network.dtype)
    actual = network.logits(h_RnD, condition)
    factor_R1D, shift_R1D = (term.double() for term in condition.head)
    weights = {name: weight.double() for name, weight in network.weights.items() if name.startswith("head.")}
    names = ("head.0", "head.2") if "head.2.weight" in weights else ("head",)
    expected = formulas.normal(h_RnD.double()) * factor_R1D + shift_R1D
    for name in names:
        expected = formulas.gelu(expected) if name == "head.2" else expected
        expected = expected @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    expected = expected.reshape(actual.shape)  # of Infinity a row a draw
    least = torch.promote_types(network.dtype, torch.float32)
    require(actual.dtype == least, f"logits of a network in {network.dtype} are {actual.dtype}, not {least}")
    atol = FLOAT64 if least == torch.float64 else _HEAD
    require_equal("logits", actual.double(), expected, f"head of a network in {network.dtype}", atol)


@dataclass(frozen=True)
class _Spoiled(Around):
    """A network of which one logit of every pass over so many positions is another number."""

    draws: int  # of the pass; its rows may be those of some images, or of one half
    at: tuple[int, int, int]  # row, counted round where a pass has fewer, draw in the pass, token
    value: float
    passes: list[int]  # rows of the passes in which it was handed out

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        rows_RnV: Tensor = self.network.logits(h_RnD, condition)
        if rows_RnV.shape[1] == self.draws:
            rows_RnV, (row, n, token) = rows_RnV.clone(), self.at
            rows_RnV[row % len(rows_RnV), n, token] = self.value
            self.passes.append(len(rows_RnV))
        return rows_RnV


@law("numbers.finite", "decode")
def finite(subject: Subject, case: Case) -> bool:
    """A logit that is not finite ends the harness's own decode, whichever network decides its scale."""
    # of a draft only where it decides alone, since nobody judges what it draws there
    if not isinstance(subject.decoder(case), SpeculativeDecoder):
        raise NotOffered("not composed of the harness's parts")
    draws, S = case.pyramid.draws, case.pyramid.S
    entry = S // 2
    equal = replace(case, draft="identical")  # so that no image's scale is decided in a pass without the others
    texts = [*(f"{name}:{entry}" for name in _DIVIDED), f"middle:{entry}:{max(entry, S - 1)}"]
    divided = [replace(equal, policy=text, draft_len=S, bonus=False) for text in texts]
    divided = [each for each in divided if subject.follows(each)]
    plain = replace(equal, policy=PLAIN[case.seed % 2])
    cases = [*divided, replace(plain, draft_len=S, bonus=False), replace(plain, draft_len=max(1, S - 1), bonus=True)]
    for k, tried in enumerate(cases if S > 1 else cases[:-1]):
        for si in case.pyramid:
            side, begin, end = _pass_of(tried, si, entry)
            value = (float("nan"), float("inf"), float("-inf"))[(case.seed + si) % 3]
            at = (case.seed + 5 * si + k) % (2 * case.B), draws.end(si) - 1 - begin, (case.seed + si) % case.V
            passes = list[int]()
            spoiled: Any = _Spoiled(getattr(tried.models, side), end - begin, at, value, passes)
            try:
                subject.decode(tried, models=replace(tried.models, **{side: spoiled}))
            except NonFiniteError:
                continue
            where = f"policy {tried.policy}, scale {si}, draft_len {tried.draft_len}{', bonus' if tried.bonus else ''}"
            said = f"the {side}'s logit of (row, position, token) {at} is {value}, and the decode ended well"
            require(not passes, f"{where}: {said}")
    return S > 1


_DIVIDED = ("handoff", "collaborative", "code")  # of labour; up to ENTRY the first one leaves scales to the draft


def _pass_of(case: Case, si: int, entry: int) -> tuple[str, int, int]:
    """Return who decides a scale, and begin and end of the pass in which it does."""
    pyramid, name = case.pyramid.draws, policy_name(case.policy)
    alone = pyramid.begin(si), pyramid.end(si)
    if name == "middle":
        end = max(entry, case.pyramid.S - 1)
        if entry <= si < end:
            return "draft", *alone
        return "target", pyramid.begin(entry if si == end else si), pyramid.end(si)
    if name not in _DIVIDED:
        return "target", 0, pyramid.L
    if (si < entry) == (name == "handoff"):
        return "draft", *alone
    if name == "code":
        return "target", *alone
    return "target", *((pyramid.begin(entry), pyramid.L) if name == "handoff" else (0, pyramid.begin(entry)))
