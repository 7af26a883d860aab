"""Laws of sensitivity: what is asked for must matter. A decoder that ignores an input passes many other laws."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from harness.laws.case import Case
from harness.laws.law import DISTRIBUTION, TOKEN_IDENTICAL, Law, Subject, require
from harness.reference import sequential
from harness.request import Request

CLAIMS = (TOKEN_IDENTICAL, DISTRIBUTION)


def _changes(subject: Subject, case: Case, word: str, variants: Iterable[Request]) -> bool:
    """Require that variants of a request change the image: those that change the reference's image.

    Under contract A the image is the reference's, so each of them must. Under contract B images are other draws of the
    same law, so one unchanged image proves nothing; that all variants leave it unchanged does.
    """
    models = case.models

    def reference(request: Request) -> torch.Tensor:
        return sequential.sample(models.target, models.vae, request, case.noise(request)).tokens_BL

    base = reference(case.request)
    telling = [variant for variant in variants if not torch.equal(reference(variant), base)]
    if not telling:
        return False
    contract, due = subject.decoder(case).contract, subject.decode(case).tokens_BL
    same = [variant for variant in telling if torch.equal(subject.decode(case, request=variant).tokens_BL, due)]
    require(
        not same if contract == TOKEN_IDENTICAL else len(same) < len(telling),
        f"{word}: {len(same)} of {len(telling)} requests give the same image, the first: {(same or telling)[0]}",
    )
    return True


def seed(subject: Subject, case: Case) -> bool:
    """Another seed gives another image, also one that differs in high bits only.

    Image order: in batch order the seed is PyTorch's, whose CPU generator itself takes 32 bits.
    """
    case = replace(case, order="image")
    return _changes(subject, case, "seed", [replace(case.request, seed=case.seed + step) for step in (1, 2, 2**32)])


def label(subject: Subject, case: Case) -> bool:
    """Another label gives another image."""
    every = [tuple((label + k) % 4 for label in case.labels) for k in (1, 2)]
    return _changes(subject, case, "label", [replace(case.request, labels=labels) for labels in every])


def cfg(subject: Subject, case: Case) -> bool:
    """Another guidance value gives another image."""
    conditional = replace(case, labels=tuple(label % 3 for label in case.labels))
    values = (case.cfg + 3.0, case.cfg + 8.0)
    return _changes(subject, conditional, "cfg", [replace(conditional.request, cfg=value) for value in values])


def filters(subject: Subject, case: Case) -> bool:
    """Keeping the best token only, by either filter, gives another image."""
    every = [replace(case.request, top_k=1, top_p=0.0), replace(case.request, top_k=0, top_p=1e-6)]
    return _changes(subject, replace(case, top_k=0, top_p=0.0), "top_k and top_p", every)


def images(subject: Subject, case: Case) -> bool:
    """Another noise address gives another image."""
    if case.order != "image":
        case = replace(case, order="image")
    every = [replace(case.request, images=tuple(k + b for b in range(case.B))) for k in (50, 60)]
    return _changes(subject, case, "image addresses", every)


LAWS = (
    Law("sensitivity.seed", "The seed changes the image.", ("decode", "noise"), seed, CLAIMS),
    Law("sensitivity.label", "The label changes the image.", ("decode", "condition"), label, CLAIMS),
    Law("sensitivity.cfg", "The guidance value changes the image.", ("decode", "guide"), cfg, CLAIMS),
    Law("sensitivity.filters", "top_k = 1 and a tiny top_p change the image.", ("decode", "filter_logits"), filters,
        CLAIMS),
    Law("sensitivity.images", "The noise address changes the image.", ("decode", "noise"), images, CLAIMS),
)  # fmt: skip
