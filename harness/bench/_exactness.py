"""Which numbers of rows a decode can use without a change of a bit, and what the others cost in ties.

Promise: the passes are the decoder's own, over every window of scales that a draft length can give and every number of
images of a batch that may share a round, along tokens and keys of the plain reference, which makes one pass a scale.
A width is exact if inputs, keys, values, logits and law are the reference's to the bit; if all widths of a draft length
are, so is every decode by it (by induction over its rounds). What was not measured is not exact.

Ties are predicted without a model of rounding: two laws p and q of one draw, which race the same exponentials, give
different tokens with probability 1 − Σ_v 1 / Σ_u max(p_u/p_v, q_u/q_v), over all numbers that may be drawn. The laws
are those of a whole decode, whose cache keeps what wide passes left, and of the plain reference along its tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from harness.bench._operations import Deviation, OperationWatch, SeenNetwork, Width
from harness.files import compact, finite
from harness.models import ModelPair
from harness.protocol import Intermediates, Request, ScalePyramid
from harness.provenance import versions
from harness.reference import family_of, filter_logits, teacher_forced
from harness.reference.sequential import KnownScales, sample_sequential
from harness.rounding import precision
from harness.speculative import Window, forward_window, target_verify_batch
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder

WHOLE = "whole pass"


@dataclass(frozen=True)
class Exactness:
    models: str  # name of the pair
    mode: str  # dtype, or TF32
    scales: int  # of its pyramid
    draws: int  # of an image
    compiled: bool  # whole passes and the sequential ones beside them are; operations are measured without
    rows: list[Deviation]  # one an operation and width
    expected_ties: dict[int, float]  # draft length -> draws of an image that rounding is expected to change

    def inexact(self, draft_len: int) -> list[Deviation]:
        """Return the rows that differ among the widths that a draft length uses."""
        used = {(first, min(first + draft_len, self.scales) - 1) for first in range(self.scales)}
        return [row for row in self.rows if row.differs and (row.width.first, row.width.last) in used]

    @property
    def exact_lengths(self) -> list[int]:
        """Draft lengths at which contract A holds bit for bit."""
        return [length for length in range(1, self.scales + 1) if not self.inexact(length)]

    def document(self) -> bytes:
        rows = [
            {**vars(row), **asdict(row.width), "width": str(row.width), "differs": list(row.differs), "rms": row.rms}
            for row in self.rows
        ]
        stated = {**vars(self), "exact_lengths": self.exact_lengths, "precision": precision(), "versions": versions()}
        return compact(finite({**stated, "rows": rows}))


@dataclass(frozen=True)
class SequentialRun:
    """One batch, decoded one pass a scale by the plain reference."""

    models: ModelPair
    request: Request
    tokens_BL: Tensor
    shown: Intermediates
    kv: Tensor  # keys and values, as the decoder's cache holds them

    @classmethod
    def of(cls, models: ModelPair, request: Request, forced_BL: Tensor | None = None) -> Self:
        """Decode, along tokens that are given."""
        known, noise = KnownScales(), models.noise(request)
        run = sample_sequential(models.target, models.vae, request, noise, forced_BL, known=known)
        layers = [torch.stack(known.cache.layers[i]) for i in range(models.target.config.depth)]
        tokens_BL = run.tokens_BL if forced_BL is None else forced_BL
        return cls(models, request, tokens_BL, run.shown, torch.stack(layers))

    def passes(self, images: int, graphs: bool = False) -> Iterator[tuple[Width, Any, Tensor]]:
        """Yield every window of the first images as the decoder's pass makes it: its width, what is verified, cache."""
        decoder = SpeculativeDecoder(self.models, DecoderOptions(1, keep_intermediates=False, graphs=graphs))
        pyramid, parts, some = self.models.pyramid, decoder.parts, list(range(images))
        state = decoder.begin(self.request, self.models.noise(self.request))
        tokens = [self.tokens_BL[:images, pyramid.draws.span(si)] for si in pyramid]
        parts.update_state_with_accepted_tokens(state, parts, some, 0, tokens, [pyramid.S] * images)
        cache = state.target.cache
        for first in pyramid:
            for last in range(first, pyramid.S):
                cache.kv.copy_(self.kv)
                cache.lengths[:] = [pyramid.begin(first)] * self.request.B
                window = Window(state.noise, pyramid, some, first, last, "target")
                verified = forward_window(state, parts, state.target, window, target_verify_batch)
                yield Width(self.request.B, images, first, last, graphs), verified, cache.kv


def records(models: ModelPair, request: Request) -> bool:
    """Tell whether decodes of a request can be CUDA graphs."""
    return models.device.type == "cuda" and not models.device.index and not request.texts


@torch.inference_mode()
def measure(models: ModelPair, request: Request, compiled: bool = False) -> Iterator[list[Deviation]]:
    """Measure one batch: yield the rows of every pass. Draws: the request's numbers, as any decode of it does."""
    plain, sizes = SequentialRun.of(models.compiled(compiled), request), range(1, request.B + 1)
    labels_B = models.noise(request).labels(models.target.config.classes)
    wide = models.target.converted(torch.float64), models.vae.to(models.device, torch.float64)
    exact_RLV, _, _ = teacher_forced(*wide, request, labels_B, plain.tokens_BL, models.pyramid.S)
    for images, graphs in [*((size, False) for size in sizes), (request.B, True)]:
        if not graphs or records(models, request):
            yield from _whole_passes(plain, exact_RLV, images, graphs)
    watch = OperationWatch(models.target)
    target = SeenNetwork(models.target, watch)
    seen = SequentialRun.of(replace(models, target=target), request, plain.tokens_BL)
    texts = family_of(target).condition(target, request, labels_B).texts
    watch.finish([len(text) for text in texts] or [0] * request.R)
    for images in sizes:
        for width, _, _ in seen.passes(images):
            yield [replace(found, width=width) for found in watch.end()]


def _whole_passes(plain: SequentialRun, exact_RLV: Tensor, images: int, graphs: bool) -> Iterator[list[Deviation]]:
    models, request, shown = plain.models, plain.request, plain.shown
    pyramid, draws = models.pyramid, models.pyramid.draws
    r = [half + image for half in range(0, request.R, request.B) for image in range(images)]
    law_bLV = law_of(request, pyramid, shown.guided_BLV[:images])
    for width, verified, kv in plain.passes(images, graphs):
        n = slice(pyramid.begin(width.first), pyramid.end(width.last))
        drawn = slice(draws.begin(width.first), draws.end(width.last))
        found, others = Deviation(WHOLE, width), Deviation(WHOLE)
        found.compare("logits", verified.rows_RnV, shown.rows_RLV[r, drawn])
        found.measure(verified.rows_RnV, exact_RLV[r, drawn])
        others.compare("inputs", verified.x_RnD, shown.x_RLD[r, n])
        others.compare("keys and values", kv[:, :, r, :, n], plain.kv[:, :, r, :, n])
        others.compare("guided logits", verified.guided_bnV, shown.guided_BLV[:images, drawn])
        others.compare("law", torch.cat(verified.probs_by_scale, 1), law_bLV[:, drawn])
        found.differs |= others.differs
        yield [found]


def law_of(request: Request, pyramid: ScalePyramid, guided_bLV: Tensor) -> Tensor:
    """Return the law of every draw, filtered as the request says of its scale."""
    filtered = (filter_logits(guided_bLV[:, pyramid.draws.span(si)], *request.filter(si)) for si in pyramid)
    return torch.cat([scale_blV.softmax(-1) for scale_blV in filtered], 1)


def parting(one_XV: Tensor, other_XV: Tensor) -> Tensor:
    """Return the chance of every draw that two laws, racing the same exponentials, give two tokens; float64.

    Laws need not sum to 1. Of the sum that v's chance is made of, the terms in p are those of tokens that p favours as
    much as v, or more.
    """
    p_XV, q_XV = one_XV.double(), other_XV.double()
    order_XV = (p_XV / q_XV).nan_to_num(0.0, math.inf).argsort(-1)
    p_XV, q_XV = p_XV.gather(-1, order_XV), q_XV.gather(-1, order_XV)
    from_here_XV = p_XV.flip(-1).cumsum(-1).flip(-1)
    before_XV = q_XV.cumsum(-1) - q_XV
    together_XV = p_XV * q_XV / (q_XV * from_here_XV + p_XV * before_XV)
    apart_X = 1 - together_XV.nan_to_num(0.0).sum(-1)
    return apart_X.masked_fill((one_XV == other_XV).all(-1), 0.0)  # and not the rounding of these sums


def expected_ties(models: ModelPair, request: Request, draft_len: int, compiled: bool = False) -> float:
    """Return how many draws of an image rounding is expected to change in a decode of the request.

    The laws of the decode, whose cache holds what wide passes left there, are set beside those of the plain reference
    along the same tokens. Draws: the request's numbers.
    """
    options = DecoderOptions(draft_len, graphs=records(models, request))
    trace = SpeculativeDecoder(models.compiled(compiled), options).decode(request, models.noise(request))
    plain = sample_sequential(models.target, models.vae, request, models.noise(request), trace.tokens_BL)
    pyramid = models.pyramid
    one_BLV, other_BLV = (law_of(request, pyramid, each.shown.guided_BLV) for each in (plain, trace))
    by_scale = (parting(one_BLV[:, at], other_BLV[:, at]).sum() for at in map(pyramid.draws.span, pyramid))
    return float(sum(by_scale)) / request.B
