"""What the laws compare with: a plain sequential run over given tokens with everything kept, and drafts by a script.

Promise: composed of `reference/` alone, so that nothing of the decoder under test judges itself. Where a case is exact
nothing but `FLOAT64` is allowed; elsewhere tensors differ by measured budgets at most, and tokens by certified ties
alone, as in `verify`.

A scripted draft is the target itself, but for scales that the script names for a label: there it proposes, at every
position, a token that the target hardly draws. What is drafted elsewhere is what the target draws, so that rounds,
lengths of caches and bonus scales follow from the script. A decoder that reads weights and not `Network` meets a draft
that is the target: it is right there, and the law has nothing to say.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from harness import judge
from harness.errors import InputError
from harness.laws._case import Case
from harness.laws._law import FLOAT64, NotOffered, Subject, require_equal, require_same, require_tokens
from harness.models import Around, Codec, Condition, Network, product_dtype
from harness.protocol import Noise, NoiseBefore, Reading, Request, Trace
from harness.reference import GrowingCache, Walk, family_of, teacher_forced
from harness.rounding import quick_budget


@dataclass(frozen=True)
class Allowed:
    """Largest differences, absolute, by the names that laws give tensors."""

    x: float  # of network inputs
    rows: float  # of logits before guidance
    f_hat: float  # of f_hat
    guided: float  # of guided logits over their own rows


def allowed(case: Case) -> Allowed:
    """Return what a case allows; measured once a process and network (`rounding.measure.quick_budget`)."""
    if case.exact:
        return Allowed(FLOAT64, FLOAT64, FLOAT64, FLOAT64)
    budget = quick_budget(case.models)
    dtype = product_dtype(case.models.target)
    eps = torch.finfo(dtype).eps
    # inputs of these networks are sums of terms of size 10 at most
    x = 10 * max(2 * budget.f_hat, judge.INPUT_ULPS[dtype] * eps)
    return Allowed(x, 2 * budget.rows, 2 * budget.f_hat, 64 * eps * (1 + 2 * abs(case.cfg)) * 10)


def needs_exact(case: Case, why: str) -> None:
    """Raise `NotOffered` where a law means nothing but in float64."""
    if not case.exact:
        raise NotOffered(f"{case.dtype} networks: {why}")


def require_draws(case: Case, request: Request, actual_BL: Tensor, expected_BL: Tensor, where: str) -> None:
    """Raise `Broken` unless two decodes of one request have the same tokens.

    Where the case is not exact the first scale in which an image differs may hold certified ties: float64 cannot tell
    either token from the best one. What comes after it has another prefix, and is not compared.
    """
    if case.exact or actual_BL.shape != expected_BL.shape:
        require_tokens(actual_BL, expected_BL, where)
        return
    models, pyramid = case.models, case.pyramid
    noise, budget = models.noise(request), quick_budget(models)
    labels_B = noise.labels(models.target.config.classes)
    wide = models.wide()
    for image in torch.nonzero((actual_BL != expected_BL).any(1)).flatten().tolist():
        differ_n = torch.nonzero(actual_BL[image] != expected_BL[image]).flatten()
        si, one = pyramid.draws.level_of(int(differ_n[0])), slice(image, image + 1)
        _, exact_1nV, _ = teacher_forced(wide.target, wide.vae, request, labels_B[one], expected_BL[one], si + 1)
        position_n = differ_n[differ_n < pyramid.draws.end(si)]
        exact_nV, row_n = exact_1nV[0, position_n], torch.full_like(position_n, image)
        allowed = budget.guided(request.guidance, pyramid.ramp(si), si).logits
        E_nV = judge.exponentials(noise, pyramid, row_n, position_n)
        sides = [tokens_BL[image, position_n] for tokens_BL in (actual_BL, expected_BL)]
        races = [
            judge.margins_of_differing_tokens(exact_nV, E_nV, token_n, request.at(si), allowed) for token_n in sides
        ]
        rows = torch.stack(sides, 1).tolist(), torch.stack([each.margin_N for each in races], 1).tolist()
        for position, *pairs in zip(position_n.tolist(), *rows, strict=True):
            for token, margin in zip(*pairs, strict=True):
                said = f"{where}: image {image}, position {position}: token {token} loses by {margin:.3g}, no tie"
                judge.require(margin <= judge.margin_bound(allowed), said)


@dataclass(frozen=True)
class Run:
    """One network's sequential run over given tokens."""

    raw_BLC: Tensor  # raw inputs by position; zero at position 0
    x_RLD: Tensor  # inputs with their position term
    rows_RLV: Tensor  # logits of the guidance rows
    f_hat_SBCPP: Tensor  # f_hat after every scale
    cache: GrowingCache  # keys and values (R,H,L,c) of all positions


def targeted(decoded: Trace, B: int, si: int) -> list[int]:
    """Return the images whose scale `si` had a target pass: all of them, unless a policy left it to the draft alone."""
    return [image for image in range(B) if si not in judge.unverified_scales(decoded, image)]


def decided_whole(decoded: Trace, B: int, si: int) -> list[int]:
    """Return those of which an accelerator says, too, that it left nothing out by then."""
    left = decoded.skipped_BSN
    whole = [image for image in range(B) if left is None or not bool(left[image, : si + 1].long().any())]
    return [image for image in targeted(decoded, B, si) if image in whole]


def several(decoded: Trace, S: int) -> bool:
    """Return whether any pass was over several scales; where nothing is drafted or told, whether there are several."""
    if not any(turn.drafted for turn in decoded.turns):
        return S > 1
    return any(turn.drafted + turn.bonus > 1 for turn in decoded.turns)


def _noted(seen: list[Tensor], which: int, part: Callable[..., Any], *arguments: Any) -> Any:
    seen.append(arguments[which].clone())
    return part(*arguments)


def noting(seen: list[Tensor], which: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a wrapper of a part, for `Subject.spied`, that keeps what one of its arguments has been."""
    return lambda part: partial(_noted, seen, which, part)


@torch.inference_mode()
def run_over(network: Network, vae: Codec, case: Case, tokens_BL: Tensor, labels_B: Tensor | None = None) -> Run:
    """Run a network one scale after the other over given tokens of a case's images, or of others of these labels."""
    pyramid, config, family, B = network.pyramid, network.config, family_of(network), len(tokens_BL)
    walk = Walk.begin(network, case.request, case.labels_B if labels_B is None else labels_B)
    f_hat = torch.zeros(B, *config.latent, device=network.device, dtype=vae.dtype)
    raw = torch.zeros(B, 1, config.raw, device=network.device, dtype=vae.dtype)
    raws, xs, rows, f_hats = [raw], [], [], []
    for si in pyramid:
        xs.append(walk.input(raws[-1] if si else None, si))
        rows.append(walk.rows(xs[-1], si))
        codes = vae.quantizer.codes(tokens_BL[:, pyramid.draws.span(si)], *pyramid.sides[si])
        f_hat = family.accumulate(f_hat, codes, si, vae.quantizer, pyramid)
        f_hats.append(f_hat)
        if si + 1 < pyramid.S:
            raws.append(family.next_input(f_hat, si + 1, pyramid))
    return Run(torch.cat(raws, 1), torch.cat(xs, 1), torch.cat(rows, 1), torch.stack(f_hats), walk.cache)


def require_whole(decoded: Trace, case: Case) -> Run:
    """Raise `Broken` unless each scale is final once, and f_hat is that of the tokens; return the run over them."""
    pyramid, tokens_BL = case.pyramid, decoded.tokens_BL
    shape = (case.B, pyramid.draws.L)
    judge.require(tuple(tokens_BL.shape) == shape, f"tokens {tuple(tokens_BL.shape)}, not {shape}")
    outside = torch.nonzero((tokens_BL < 0) | (tokens_BL >= case.V)).tolist()
    judge.require(not outside, f"no token at (image, position) {outside[:6]}")
    wrong = decoded.missing_scales(pyramid)
    judge.require(not wrong, f"not made final exactly once: (image, scale) {wrong[:6]}")
    run = run_over(case.models.target, case.models.vae, case, tokens_BL)
    require_equal("f_hat", decoded.f_hat_BCPP, run.f_hat_SBCPP[-1], "at the end", allowed(case).f_hat)
    return run


@dataclass(frozen=True)
class Snapshot:
    """Copies of a decode's state after one round; caches as (lengths, kv) by side."""

    done: list[int]
    tokens_BL: Tensor
    raw_BLC: Tensor
    f_hat_BCPP: Tensor
    caches: dict[str, tuple[list[int], Tensor]]


def snapshot(state: Any) -> Snapshot:
    """Copy what the law looks at. Raises `NotOffered` where the state has other names."""
    try:
        caches = {
            side: (list(getattr(state, side).cache.lengths), getattr(state, side).cache.kv.clone())
            for side in ("draft", "target")
        }
        tokens_BL, raw_BLC, f_hat_BCPP = (t.clone() for t in (state.tokens_BL, state.raw_BLC, state.f_hat_BCPP))
        return Snapshot(list(state.done), tokens_BL, raw_BLC, f_hat_BCPP, caches)
    except AttributeError as error:
        raise NotOffered(f"state without {error.name}") from None


def check_snapshot(taken: Snapshot, case: Case, runs: dict[str, Run], tokens_BL: Tensor, where: str) -> None:
    """Raise `Broken` unless a state equals that of a sequential run over the final scales of `tokens_BL`."""
    pyramid = case.pyramid
    for image, done in enumerate(taken.done):
        at, n, drawn = f"{where}, image {image}, {done} scales final", pyramid.begin(done), pyramid.draws.begin(done)
        if done == 0:
            continue
        require_tokens(taken.tokens_BL[image : image + 1, :drawn], tokens_BL[image : image + 1, :drawn], at)
        f_hat = runs["target"].f_hat_SBCPP[done - 1, image]
        require_equal("f_hat", taken.f_hat_BCPP[image], f_hat, at, FLOAT64)
        known = slice(1, pyramid.end(min(done, pyramid.S - 1)))
        if known.stop > 1:
            raw_nC = runs["target"].raw_BLC[image, known]
            require_equal("next input", taken.raw_BLC[image, known], raw_nC, at, FLOAT64)
        for side, (lengths, kv) in taken.caches.items():
            _check_cache(kv, lengths[image], runs[side], case.request.rows_of(image), n, f"{at}, {side} cache")


def _check_cache(kv: Tensor, length: int, run: Run, rows: list[int], n: int, where: str) -> None:
    judge.require(length <= n, f"{where} holds {length} positions, and only {n} are final")
    if length == 0:
        return
    for layer, (k_RHLc, v_RHLc) in run.cache.layers.items():
        actual = {"keys": kv[layer, 0, rows, :, :length], "values": kv[layer, 1, rows, :, :length]}
        expected = {"keys": k_RHLc[rows, :, :length], "values": v_RHLc[rows, :, :length]}
        # inputs were compared before: later layers alone are wrong where a pass saw the wrong positions
        part = "attention_mask" if layer else "cache"
        require_same(actual, expected, f"{where}, layer {layer}", FLOAT64, part)


class Interrupted(Exception):  # noqa: N818
    """What the broken noise raises."""


class BrokenNoise(NoiseBefore):
    """Numbers that fail at the k-th reading."""

    def __init__(self, noise: Noise, k: int) -> None:
        super().__init__(noise)
        self.left = k

    def __getattr__(self, name: str) -> Any:
        return getattr(self.noise, name)

    def read(self, numbers: Reading, si: int, stream: str, reader: str) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return numbers(si, stream, reader)


Script = Collection[tuple[int, int]]  # (label, scale) that the draft has wrong
_SURE = 1e3  # nats: no other token is drawn, whatever the numbers, guidance and filter


@dataclass(frozen=True)
class Scripted(Around):
    """The target as its own draft, wrong where a script says."""

    script: Script
    cond_LD: Tensor  # by label

    @classmethod
    def of(cls, case: Case, script: Script) -> Self:
        network, labels = case.models.target, (0, 1, 2, 3)
        whole = replace(case, labels=labels)
        return cls(network, script, whole.condition(network).cond_RD[: len(labels)])

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        """Return logits_RnV; the rows of scripted scales hold one token, the target's least likely one."""
        rows_RnV = self.network.logits(h_RnD, condition).clone()
        pyramid, n = self.network.pyramid.draws, rows_RnV.shape[1]
        for label, si in self.script:
            if n in (pyramid.counts[si], pyramid.end(si)):  # alone in its pass, or after all scales before it
                same_R = (condition.cond_RD - self.cond_LD[label]).abs().amax(1) < FLOAT64
                rows, l = torch.nonzero(same_R).flatten(), pyramid.counts[si]
                scale_RlV = rows_RnV[rows, n - l :]
                rows_RnV[rows, n - l :] = scale_RlV.scatter_add(
                    -1, scale_RlV.argmin(-1, keepdim=True), torch.full_like(scale_RlV[..., :1], _SURE)
                )
        return rows_RnV


@dataclass(frozen=True)
class Ranked(Around):
    """The target as its own draft that proposes the token of one rank of its plain law; rank 1 is the likeliest."""

    rank: int

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        rows_RnV = self.network.logits(h_RnD, condition)
        order_RnV = rows_RnV.argsort(-1, descending=True)
        at_Rn1 = order_RnV[..., self.rank - 1 : self.rank]
        return rows_RnV.scatter_add(-1, at_Rn1, torch.full_like(rows_RnV[..., :1], _SURE))


def decode_drafted(
    subject: Subject, case: Case, draft: Any, draft_len: str = "", request: Request | None = None
) -> Trace:
    """Decode by another draft and draft length. Raises `NotOffered` where drafts of other classes are not taken."""
    models, request = replace(case.models, draft=draft), request or case.request
    try:
        decoder = subject.decoder(case, models, draft_len)
    except InputError as error:
        if error.name != "implementation":
            raise
        raise NotOffered(f"no draft of another class: {error}") from None
    return decoder.decode(request, case.noise(request))


def levelled(network: Any) -> Any:
    """Return a network that gives every token the same logit, to the last bit."""
    weights = {n: torch.zeros_like(w) if n.startswith("head.") else w for n, w in network.weights.items()}
    return replace(network, weights=weights)
