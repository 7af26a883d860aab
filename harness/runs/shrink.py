"""The smallest case that fails in the same way: fewer images, one label, a shorter draft_len, fewer scales.

Promise: whatever is returned was seen to fail with the component of the case that was given; each reduction is tried
in its simplest form first and kept where the defect stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from harness.errors import InputError
from harness.judge.verdict import Divergence
from harness.models.pair import ModelPair
from harness.protocol.decoder import Settings
from harness.runs.replay import KeptCase, first_defect

MOST_TRIES = 64  # decodes of a reduction, and its judgement


def shrink(case: KeptCase, models: ModelPair, budgets: Path) -> KeptCase:
    """Reduce a case that fails.

    Args:
        case: recorded, and failing here.
        models: networks, uncut.
        budgets: file of stored error budgets.
    """
    for reduced in (_fewer_images, _one_label, _shorter, _fewer_scales):
        for smaller in list(reduced(case, models))[:MOST_TRIES]:
            found = _fails(smaller, models, budgets)
            if found is not None:
                case = replace(smaller, found=found, exhibit={})
                break
    return case


def _fails(case: KeptCase, models: ModelPair, budgets: Path) -> Divergence | None:
    """Return the defect where it is of the same component; a decoder that refuses the case does not fail."""
    try:
        found = first_defect(case, models, budgets)
    except InputError:
        return None
    return found if found is not None and found.component == case.found.component else None


def _fewer_images(case: KeptCase, models: ModelPair) -> Iterator[KeptCase]:
    """The image alone, or with as few as possible of those in front of it and behind it."""
    request, address = case.request, (case.found.seed, case.found.image)
    if request.order != "image" or request.B == 1:
        return
    row = request.addresses.index(address) if address in request.addresses else 0
    size = 1
    while size < request.B:
        for begin in dict.fromkeys((max(0, row - size + 1), min(row, request.B - size))):
            yield replace(case, request=request.only(list(range(begin, begin + size))))
        size *= 2


def _one_label(case: KeptCase, models: ModelPair) -> Iterator[KeptCase]:
    labels = case.request.labels
    if labels and len(set(labels)) > 1:
        for label in dict.fromkeys((case.found.label, *labels)):
            if label >= 0:
                yield replace(case, request=replace(case.request, labels=(label,) * case.request.B))


def _shorter(case: KeptCase, models: ModelPair) -> Iterator[KeptCase]:
    length = case.settings.draft_len
    if length == "":  # published code, which is not asked for one
        return
    most = int(length) if str(length).isdigit() else models.pyramid.S + 1
    for shorter in range(1, most):
        yield case.under([_drafting(of, shorter) for of in case.settings_of_both])


def _fewer_scales(case: KeptCase, models: ModelPair) -> Iterator[KeptCase]:
    for scales in range(1, models.pyramid.S):
        yield replace(case.under([_fitting(of, scales) for of in case.settings_of_both]), scales=scales)


def _drafting(settings: Settings, length: int) -> Settings:
    """Return settings with another draft_len, where the decoder is asked for one."""
    return settings if settings.draft_len == "" else replace(settings, draft_len=length)


def _fitting(settings: Settings, scales: int) -> Settings:
    """Return settings whose draft_len is no longer than the pyramid."""
    length = settings.draft_len
    return replace(settings, draft_len=min(int(length), scales)) if str(length).isdigit() else settings
