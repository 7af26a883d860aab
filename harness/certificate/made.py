"""A certificate of a run, from its records (docs/certificate.md).

Promise: what it says is what the run found, and what nobody asked of the decoder stands in it, too. Its subject is the
decoder's source as the run began; nothing is computed anew but challenged images by the reference, for the closest
draws.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.certificate import _form as form
from harness.errors import InputError
from harness.files import finite
from harness.golden import content_digest, generator_probe
from harness.judge import Judgement, margin_bound
from harness.models import ModelPair
from harness.protocol import TOKEN, Noise, Request, RowsOf, Trace, request_values
from harness.provenance import device_name, versions
from harness.reference import filter_logits, sample_sequential
from harness.rounding import Budget, precision
from harness.runs import COUNTS, JudgedRow, Verification, code_of, source_files
from harness.schema import record_of

MOST_INTEGER = 2**53 - 1  # of RFC 8785
CLOSEST = 8  # draws
DIGITS = "digits", "float32"  # networks and dtype of which planted bugs were counted


def certificate_of(result: Verification, models: ModelPair, path: Path, challenged: int = form.CHALLENGED) -> bytes:
    """Return the statement of a run that ended. Raises `InputError` where nobody finds its decoder's source."""
    record, plan = result.record, result.plan
    if record is None or record.identity is None:
        raise InputError(form.NAME, str(path), "nothing was decoded", "see the verdict")
    requests = [task.request for task in plan.tasks]
    largest = max((number for request in requests for address in request.addresses for number in address), default=0)
    if largest > MOST_INTEGER:
        raise InputError(form.NAME, str(path), f"holds no seed of {largest} (RFC 8785)", "pass smaller --seeds")
    code, of, layout = record.identity.decoder, record.networks, models.pyramid
    if code_of(code.implementation, code.checkout).source != code.source:
        raise InputError(form.NAME, str(path), "the decoder's code is not what it was when the run began", "repeat it")
    subject = subject_of(code.implementation, code.checkout, code.commit, path)
    networks = form.Layout(
        of.title, models.target.config.family, of.dtype, of.draft_dtype, layout.patch_nums,
        () if layout.patch_nums else layout.sides, layout.channels, of.V, of.classes,
    )  # fmt: skip
    number = {task.number: k for k, task in enumerate(plan.tasks)}
    rows = [row for setting in result.settings for row in setting.rows]
    decodes = [_decoded(row, number[row.task], requests[number[row.task]], networks) for row in rows]
    decoded = [tokens_L for _, images in decodes for tokens_L, *_ in images]
    leaves = [leaf for tokens_L in decoded for leaf in form.scale_digests(tokens_L, networks.ends, networks.V)]
    asked = [
        {
            **vars(s.settings),
            "contract": s.contract.letter,
            "draft_noise": noise,
            "options": [pair for pair in s.settings.options if pair[0] != "checkout"],  # a place on somebody's machine
        }
        for s, noise in zip(result.settings, plan.drafts, strict=True)
    ]
    predicate: dict[str, Any] = {
        "decoder": {"implementation": code.implementation, "commit": code.commit, "changed": code.changed},
        "settings": asked,
        "requests": [request_values(request) for request in requests],
        "networks": vars(networks),
        "weights": weight_digests(models),
        "platform": platform_of(models),
        "precision": precision(),
        "versions": versions(),
        "budget": finite(vars(result.budget)) if result.budget else {},
        "verdict": result.verdict.value,
        "whole": result.is_whole,
        "early": [str(each) for each in result.early],
        "inconclusive": result.inconclusive,
        "exercised": result.exercised.as_dict(),
        "counts": {name: result.totals[name] for name in COUNTS},
        "evidence": [{"setting": k, **w.as_dict()} for k, setting in enumerate(result.settings) for w in setting.bets],
        "laws": None if result.laws is None else result.laws.as_dict(),
        "planted": _planted(result),
        "root": form.merkle_root(leaves),
        "closest": [],
        "decodes": [{**head, "images": [_shown(each, networks, False) for each in images]} for head, images in decodes],
    }  # fmt: skip
    made = record_of(form.Certificate, {"digest": "", "challenged": [], **predicate})
    chosen = form.challenges(made.root, form.candidates(made), challenged)
    for image in chosen:
        decode, row = made.places[image]
        predicate["decodes"][decode]["images"][row] = _shown(decodes[decode][1][row], networks)
    made = record_of(form.Certificate, {"digest": "", **predicate, "challenged": list(chosen)})
    predicate |= {"challenged": chosen, "closest": _closest(made, models, requests, record.budget)}
    text = form.sealed(subject, predicate)
    is_long = 4 * len(text) > 3 * form.MOST_BYTES or len(leaves) > form.MOST_SCALES  # an envelope takes a third more
    if is_long or form.values_in(text) > form.MOST_VALUES:
        raise InputError(form.NAME, str(path), "would be larger than anybody reads", "certify fewer images, or ties")
    return text


def _planted(result: Verification) -> dict[str, int] | None:
    """Return how many planted bugs the default question finds, as docs/laws.md has it; None of another question."""
    is_usual = result.covers and result.laws is not None and result.is_whole
    of = result.record.networks if result.record is not None else None
    return planted_bugs() if is_usual and of is not None and (of.title, of.dtype) == DIGITS else None


def planted_bugs() -> dict[str, int]:
    """Return how many planted bugs there are, and how many the default question was seen to find."""
    return dict(json.loads(files("harness.mutants").joinpath("hunted.json").read_text(encoding="utf-8")))


def subject_of(implementation: str, checkout: str, commit: str, path: Path) -> list[dict[str, object]]:
    """Return the digests of a decoder's source, and its commit. Raises `InputError` where nobody finds any of it."""
    sources = source_files(implementation, checkout)
    subject: list[dict[str, object]] = [
        {"name": name, "digest": {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}} for name, file in sources
    ]
    if not subject:
        rule = f"nobody finds the source of {implementation}"
        raise InputError(form.NAME, str(path), rule, "pass a decoder as package.module:factory, or its --checkout")
    return subject + ([{"name": implementation, "digest": {"gitCommit": commit}}] if commit else [])


def weight_digests(models: ModelPair) -> dict[str, str]:
    """Return the SHA-256 of every network's weights, in the mode that they are in."""
    return {side: content_digest(getattr(models, side).weights) for side in ("draft", "target", "vae")}


def platform_of(models: ModelPair) -> dict[str, Any]:
    """Return where a run is made: device, kernels, and sixteen numbers of its generator, which others may not draw."""
    return {
        "device": models.device.type, "name": device_name(models.device),
        "kernels": torch.backends.cpu.get_cpu_capability(), "system": f"{platform.system()} {platform.machine()}",
        "numbers": list(generator_probe(models.device)),
    }  # fmt: skip


def forced(models: ModelPair, request: Request, rows: list[int], tokens_bL: form.Tokens, greedy: bool) -> tuple[
    Request, Noise, Trace
]:  # fmt: skip
    """Run the reference along the tokens of some images of a request; return what they alone ask, and their numbers."""
    numbers: Noise
    if request.order == "image" and request.labels is not None:
        numbers = models.noise(request.only(rows))
    else:  # an image's numbers hang on its whole batch
        numbers = RowsOf(models.noise(request), torch.tensor(rows, device=models.device))
    labels = tuple(numbers.labels(models.target.config.classes).tolist())
    alone = replace(request, labels=labels, images=None, seeds=None)
    tokens = torch.from_numpy(tokens_bL).to(models.device)
    return alone, numbers, sample_sequential(models.target, models.vae, alone, numbers, tokens, greedy)


def challenged_groups(made: form.Certificate, images: Sequence[int]) -> Iterator[tuple[int, int, list[int], list[int]]]:
    """Yield setting, request, image numbers and rows of some images, those of one decode together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for image in sorted(images):
        decode, _, _ = made.image(image)
        groups.setdefault((decode.setting, decode.request), []).append(image)
    for (setting, request), numbers in groups.items():
        yield setting, request, numbers, [made.image(number)[1] for number in numbers]


def _closest(made: form.Certificate, models: ModelPair, requests: list[Request], budget: Budget) -> list[list[float]]:
    """Return the closest draws of challenged images: image, draw, its lead in log scale, what rounding explains."""
    found, draws = list[list[float]](), models.pyramid.draws
    with torch.inference_mode():
        for setting, number, images, rows in challenged_groups(made, made.challenged):
            if made.settings[setting].policy == "greedy":  # nothing is drawn
                continue
            tokens_bL = np.stack([made.tokens(made.image(image)[2].tokens) for image in images])
            alone, numbers, run = forced(models, requests[number], rows, tokens_bL, False)
            gaps = list[torch.Tensor]()  # by how much every draw was won; infinite where there was no other
            for si in models.pyramid:
                guided_BlV = filter_logits(run.shown.guided_BLV[:, draws.span(si)], *alone.filter(si))
                best_Bl2 = (guided_BlV - numbers.exponential(si, TOKEN, "judge").log()).topk(2, dim=-1).values
                gaps.append(best_Bl2[..., 0] - best_Bl2[..., 1])
            gap_n, L = torch.cat(gaps, 1).double().flatten(), tokens_bL.shape[1]
            for at in gap_n.argsort()[:CLOSEST].tolist():
                si = draws.level_of(at % L)
                bound = margin_bound(budget.guided(alone.guidance, models.pyramid.ramp(si), si).logits)
                if bool(gap_n[at].isfinite()):
                    found.append([images[at // L], at % L, float(gap_n[at]), bound])
    return sorted(found, key=lambda each: each[2])[:CLOSEST]


Kept = tuple[form.Tokens, form.Tokens | None, tuple[int, ...], bool]  # tokens, expected, ties, whether they are shown


def _decoded(row: JudgedRow, number: int, request: Request, networks: form.Layout) -> tuple[dict[str, Any], list[Kept]]:
    """Return what a row says of a decode, and its images."""
    judgement = row.judgement
    counts = ("draws", "identical", "ties", "wrong_tokens", "unclaimed", "wrong_tensors", "defects")
    first = next(iter([*judgement.defects, *judgement.ties]), None)
    head: dict[str, object] = {
        "setting": row.setting, "request": number, "verdict": judgement.verdict.value, "refused": row.refused,
        "first": str(first or ""), **{name: judgement.count(name) for name in counts},
    }  # fmt: skip
    return head, list(
        _images(row.tokens_xBL(request.B, networks.ends[-1]), judgement, request, networks)
    ) if row.tokens else []


def _images(tokens_xBL: Any, judgement: Judgement, request: Request, networks: form.Layout) -> Iterator[Kept]:
    actual_BL, expected_BL = tokens_xBL[0].astype(np.int64), tokens_xBL[-1].astype(np.int64)
    rows: dict[tuple[int, int], list[int]] = {}
    for b, address in enumerate(request.addresses):
        rows.setdefault(address, []).append(b)
    ties: dict[int, set[int]] = {}
    for tie in judgement.ties:
        draw = tie.position * networks.channels + max(tie.channel, 0)
        open_b = (b for b in rows[tie.seed, tie.image] if draw not in ties.get(b, ()))  # an address may stand twice
        b = next(b for b in open_b if (actual_BL[b, draw], expected_BL[b, draw]) == (tie.actual, tie.expected))
        ties.setdefault(b, set()).add(draw)
    wrong = {b for defect in judgement.defects for b in rows.get((defect.seed, defect.image), ())}
    for b in range(request.B):
        differs = not np.array_equal(actual_BL[b], expected_BL[b])
        places = tuple(sorted(ties.get(b, ())))
        yield actual_BL[b], expected_BL[b] if differs else None, places, differs or b in wrong


def _shown(image: Kept, networks: form.Layout, always: bool = True) -> dict[str, object]:
    tokens_L, expected_L, ties, is_shown = image
    if not (is_shown or always):
        return {"scales": b"".join(form.scale_digests(tokens_L, networks.ends, networks.V)).hex()}
    texts = {"tokens": tokens_L, **({} if expected_L is None else {"expected": expected_L})}
    said: dict[str, object] = {name: form.base64_of(form.packed(each, networks.V)) for name, each in texts.items()}
    return said | ({"ties": list(ties)} if ties else {})
