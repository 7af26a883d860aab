"""Laws of reuse: one decoder for many requests, and options that must change nothing."""

import copy
from dataclasses import replace
from typing import Any

from harness.errors import InputError
from harness.judge import require
from harness.laws._case import CLASSES, Case
from harness.laws._law import NotOffered, Subject, law, require_equal, require_tokens
from harness.laws._oracle import allowed, decided_whole, require_draws, run_over
from harness.models import ModelPair
from harness.protocol import Contract, Request, Trace


def _requests(case: Case) -> list[Request]:
    """Requests whose neighbours differ in what a decoder could keep: labels, size, guidance, filter, seed, order."""
    other = "batch" if case.order == "image" else "image"
    base = case.request
    turned = tuple((label + 1) % 4 for label in case.labels)
    return [
        base,
        replace(base, labels=turned),
        replace(base, labels=turned[::-1]),  # the same labels in another order
        replace(base, labels=(2, 0, 3, 1), seed=case.seed + 1),
        replace(base, labels=(0, 2, 1, 3), seed=case.seed + 1),
        case.asked(base, case.cfg + 1.0),
        case.asked(replace(base, labels=(1,), top_k=0, top_p=0.0), 0.0),
        replace(base, top_k=1 if case.top_k != 1 else 2),
        replace(base, top_p=0.6 if case.top_p != 0.6 else 0.0),
        replace(base, seed=case.seed + 2),
        replace(base, order=other),  # type: ignore[arg-type]
        base,
    ]


def _anew(models: ModelPair) -> ModelPair:
    """Return the same networks as objects of their own, on which no decoder has left anything."""
    networks: dict[str, Any] = {name: replace(getattr(models, name)) for name in ("draft", "target", "vae")}
    return replace(models, **networks)


def _same_decode(actual: Trace, expected: Trace, where: str) -> None:
    """Raise `Broken` unless two decodes of one request gave the same: tokens, f_hat, rounds and counts."""
    require_tokens(actual.tokens_BL, expected.tokens_BL, where)
    require_equal("f_hat", actual.f_hat_BCPP, expected.f_hat_BCPP, where)
    for image, (turns, expected_turns) in enumerate(zip(actual.rounds, expected.rounds, strict=True)):
        require(turns == expected_turns, f"{where}: rounds of image {image} are {turns}, not {expected_turns}")
    for name in ("target_calls", "target_rows", "draft_calls", "draft_rows"):
        count_B, expected_count_B = getattr(actual, name), getattr(expected, name)
        require(count_B == expected_count_B, f"{where}: {name} {count_B}, not {expected_count_B}")


@law("reuse.kept", "decode")
def kept(subject: Subject, case: Case) -> bool:
    """Keeping tensors for a diagnosis, or not, changes nothing: tokens, f_hat, rounds, counts."""
    expected = subject.decode(case)
    decoder: Any = copy.copy(subject.decoder(case))
    options: Any = getattr(decoder, "options", None)
    if not hasattr(options, "keep_intermediates"):
        raise NotOffered("no options.keep_intermediates")
    decoder.options = replace(options, keep_intermediates=False)
    actual = decoder.decode(case.request, case.noise())
    require(actual.intermediates is None, "keep_intermediates is off, and the trace holds them")
    require(expected.intermediates is not None, "keep_intermediates is on, and the trace lacks them")
    _same_decode(actual, expected, "without kept tensors")
    return case.pyramid.S > 1


@law("reuse.alternating", "decode", "condition", "draft_len")
def alternating(subject: Subject, case: Case) -> bool:
    """One decoder over other labels, batch sizes and settings decodes as fresh ones do."""
    # draft lengths, too, where the decoder takes them: what a dynamic one learnt belongs to one decode
    for draft_len in (case.length, f"dynamic:1:{case.pyramid.S}"):
        try:
            decoder = subject.decoder(case, draft_len=draft_len)
        except (InputError, ValueError, TypeError):
            if draft_len == case.length:
                raise
            continue
        for k, request in enumerate(_requests(case)):
            actual = decoder.decode(request, case.noise(request))
            expected = subject.decoder(case, _anew(case.models), draft_len).decode(request, case.noise(request))
            _same_decode(actual, expected, f"draft_len {draft_len}, request {k} of one decoder ({request})")
    return True


@law("reuse.labels", "decode", "condition", "noise")
def labels(subject: Subject, case: Case) -> bool:
    """Labels that are not given are the request's own draw, decode after decode of one decoder."""
    models = case.models
    if not models.target.config.classes:
        raise NotOffered("nothing draws labels")
    base = replace(case.request, labels=None, order="batch", count=3)
    given = replace(base, labels=(2, 0, 1))
    decoder, met = subject.decoder(case), set[tuple[int, ...]]()
    for k, request in enumerate((base, replace(base, seed=case.seed + 1), given, replace(base, count=2), base)):
        actual = decoder.decode(request, case.noise(request))
        labels_B = case.noise(request).labels(CLASSES)
        met.add(tuple(labels_B.tolist()))
        where = f"request {k} of one decoder, labels {'drawn' if request.labels is None else 'given'}"
        run = run_over(models.target, models.vae, case, actual.tokens_BL, labels_B)
        images = decided_whole(actual, request.B, 0)
        if actual.intermediates is not None and images:
            rows, first = request.rows_of(*images), case.pyramid.span(0)
            shown = actual.intermediates.x_RLD[rows, first]
            require_equal("x", shown, run.x_RLD[rows, first], f"{where}: scale 0", allowed(case).x)
        expected = subject.decoder(case, _anew(models)).decode(request, case.noise(request))
        _same_decode(actual, expected, where)
        if Contract.of(decoder.contract) is Contract.TOKENS:
            require_draws(case, request, actual.tokens_BL, case.sequential(request).tokens_BL, where)
    return len(met) > 2
