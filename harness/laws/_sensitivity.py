"""Laws of sensitivity: what is asked for must matter. A decoder that ignores an input passes many other laws."""

from collections.abc import Callable
from dataclasses import replace

import torch

from harness.judge import require
from harness.laws._case import Case
from harness.laws._law import NotOffered, Subject, law
from harness.laws._oracle import require_draws
from harness.protocol import Contract, Request
from harness.speculative.sampler import SpeculativeDecoder

_Variants = Callable[[Request, Case], list[Request]]

# Under contract B an image is another draw of the same law, and one image may well stay as it was. Of this many, of
# which the reference changes at least half, a decoder that heeds the input leaves all unchanged with a chance below
# 1e-7: a race changes a token with at most twice the chance of any other way to draw it, so (3/4)^64 = 1e-8.
_IMAGES = 64


def _changes(subject: Subject, case: Case, word: str, variants: _Variants) -> bool:
    """Require that every variant of a request changes its images where (most of) the reference's change."""
    labels = case.labels
    if subject.decoder(case).contract != Contract.TOKENS:
        # one generator for the batch, since a generator an image costs more than the decode; few scales
        labels, case = (labels * _IMAGES)[:_IMAGES], replace(case, order="batch", patch_nums=case.patch_nums[:3])
    request = replace(case.request, labels=labels)
    base_BL = case.sequential(request).tokens_BL
    drawn = [(variant, case.sequential(variant).tokens_BL) for variant in variants(request, case)]
    telling = [variant for variant, other_BL in drawn if 2 * int((other_BL != base_BL).any(1).sum()) >= request.B]
    expected_BL = subject.decode(case, request=request).tokens_BL if telling else base_BL
    for variant in telling:
        same = torch.equal(subject.decode(case, request=variant).tokens_BL, expected_BL)
        require(not same, f"{word}: {request.B} images are the same with {variant}")
    return bool(telling)


@law("sensitivity.seed", "decode", "noise", contract=Contract.LAW)
def seed(subject: Subject, case: Case) -> bool:
    """The seed changes the image."""
    # image order: in batch order the seed is that of PyTorch's CPU generator, which takes 32 bits
    case = replace(case, order="image")
    return _changes(subject, case, "seed", lambda r, _: [replace(r, seed=r.seed + step) for step in (1, 2, 2**32)])


@law("sensitivity.label", "decode", "condition", contract=Contract.LAW)
def label(subject: Subject, case: Case) -> bool:
    """The label changes the image."""

    def moved(request: Request, step: int) -> Request:
        return replace(request, labels=tuple((label + step) % 4 for label in request.labels or ()))

    return _changes(subject, case, "label", lambda request, _: [moved(request, step) for step in (1, 2)])


@law("sensitivity.cfg", "decode", "guide", contract=Contract.LAW)
def cfg(subject: Subject, case: Case) -> bool:
    """The guidance value changes the image."""
    case = replace(case, labels=tuple(label % 3 for label in case.labels))
    return _changes(subject, case, "cfg", lambda r, cut: [cut.asked(r, cut.cfg + step) for step in (3.0, 8.0)])


@law("sensitivity.filters", "decode", "filter_logits", contract=Contract.LAW)
def filters(subject: Subject, case: Case) -> bool:
    """top_k = 1 and a tiny top_p change the image."""
    case = replace(case, top_k=0, top_p=0.0)
    return _changes(subject, case, "filters", lambda r, _: [replace(r, top_k=1), replace(r, top_p=1e-17)])


@law("sensitivity.images", "decode", "noise", contract=Contract.TOKENS)
def images(subject: Subject, case: Case) -> bool:
    """The noise address changes the image."""
    case = replace(case, order="image")

    def moved(request: Request, step: int) -> Request:
        return replace(request, images=tuple(step + image for image in request.image_ids))

    return _changes(subject, case, "image addresses", lambda request, _: [moved(request, step) for step in (50, 300)])


@law("sensitivity.scales", "filter_logits", contract=Contract.TOKENS)
def scales(subject: Subject, case: Case) -> bool:
    """Each scale is drawn through its own filter, where a request has one a scale; a window has several."""
    if not isinstance(subject.decoder(case), SpeculativeDecoder):
        raise NotOffered("nobody else's decoder is asked for filters by scale")
    request = case.request
    k = 2 + case.seed % (case.V - 1)
    for pair in (((0, 0.0), (k, 0.7)), ((k, 0.7), (0, 0.0)), ((k, 0.5), (k, 0.95))):
        filters = tuple(pair[si % 2] for si in case.pyramid)
        request = replace(request, top_k=0, top_p=0.0, filters=filters)
        where = f"(top_k, top_p) {pair[0]} and {pair[1]} in turns"
        require_draws(case, request, subject.decode(case, request).tokens_BL, case.sequential(request).tokens_BL, where)
    return case.pyramid.S > 1
