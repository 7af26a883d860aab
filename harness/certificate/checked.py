"""A certificate, checked: its challenged images computed anew, by the reference along their tokens, or by the decoder.

Promise: REFUTED names a token that the reference cannot have led to, a tie whose margin rounding does not explain, or a
defect that is not stated; an honest certificate of another machine's kernels is never that. What is not at hand, or
cannot be told from rounding, is UNVERIFIABLE, with what it is. No budget comes from the certificate, and no code.
"""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.certificate import _form as form
from harness.certificate.made import (
    DIGITS,
    challenged_groups,
    forced,
    planted_bugs,
    platform_of,
    subject_of,
    weight_digests,
)
from harness.decoders import Terms
from harness.errors import HarnessError, InputError, shortened, text_of
from harness.golden import same_generator
from harness.judge import Evidence, exponentials, judge_along, margins_of_differing_tokens
from harness.models import ModelPair
from harness.protocol import Contract, Noise, Request, Settings, Trace, request_of
from harness.provenance import versions
from harness.rounding import Budget, joint_budget
from harness.runs import Decode, Exercised, LawsTried, Task, VerifyWork, misstated, only_said, requests_for
from harness.schema import record_of


class CheckAnswer(StrEnum):
    """What came of a check; the exit status of the command line follows from it."""

    SAME = "REPRODUCED"
    TIES = "REPRODUCED UP TO TIES"
    REFUTED = "REFUTED"
    UNKNOWN = "UNVERIFIABLE"

    @property
    def exit_status(self) -> int:
        """0 it holds, 1 it does not, 3 nothing is known."""
        return {"REFUTED": 1, "UNVERIFIABLE": 3}.get(self.value, 0)


BEST_FIRST = (CheckAnswer.SAME, CheckAnswer.TIES, CheckAnswer.UNKNOWN, CheckAnswer.REFUTED)
# What PyTorch says of a kernel that this machine does not have, and of memory, in errors without a class of their own.
LACKING = re.compile(r"support|no (available )?kernel|deterministic implementation|alloc|out of memory", re.I)
Found = tuple[CheckAnswer, str]  # and what was found where, in words


@dataclass(frozen=True)
class Checked:
    """What came of a certificate."""

    answer: CheckAnswer
    why: str  # what was found where; empty where all is as it says
    images: int  # that were computed anew


@dataclass(frozen=True)
class Again:
    """The decoder that decodes anew, as whoever checks names it: nothing of it comes from a certificate."""

    implementation: str
    options: tuple[tuple[str, str], ...]
    terms: Terms


def check_certificate(
    made: form.Certificate, subject: list[Any], models: ModelPair, budgets: Path, again: Again | None = None
) -> Checked:
    """Compute the challenged images anew, the first one with a wrong token, and some of those with ties.

    Raises `InputError` for requests that are none, and a statement that they contradict. Effects: a process for a
    decoder that is not the harness's own.
    """
    requests = check_statement(made)
    why = _unlike(made, models) or ("" if again is None else _other_decoder(made, subject, models, again))
    if why:
        return Checked(CheckAnswer.UNKNOWN, why, 0)
    images = list(dict.fromkeys((*made.challenged, *_stated(made))))
    with _holding(made.root):
        for request in requests:
            request.check_for(models.target.config)
        usual = list(requests_for(models))
        if made.planted is not None and _is_today_s(made) and requests[: len(usual)] != usual:
            raise ValueError("it counts planted bugs of the default question, and asked another one")
    try:
        budget = joint_budget(models, any(each.compiled for each in made.settings), budgets)
        groups = challenged_groups(made, images)
        found = [one for group in groups for one in _along(made, models, requests, budget, group)]
    except RuntimeError as error:
        if not (isinstance(error, NotImplementedError | torch.OutOfMemoryError) or LACKING.search(text_of(error))):
            raise
        why = f"its mode, {made.networks.dtype}, is not at hand: {shortened(text_of(error), 160)}"
        return Checked(CheckAnswer.UNKNOWN, why, 0)
    if again is not None:
        found += list(_decoded(made, models, requests, budget, images, again))
    found += _unmet(made, found, images, again)
    nothing = CheckAnswer.UNKNOWN, "it holds no tokens"
    answer, why = max(found, key=lambda each: BEST_FIRST.index(each[0]), default=nothing)
    return Checked(answer, why, len(images))


def check_statement(made: form.Certificate, file: str = "") -> list[Request]:
    """Return the requests of a certificate. Raises `InputError` where it states what its decodes contradict.

    What was exercised, and planted bugs, are those of the version that made it: another one is not judged.
    """
    with _holding(file or made.root):
        requests = [request_of(values) for values in made.requests]
        stated = record_of(Exercised, {**made.exercised})
        laws = None if made.laws is None else record_of(LawsTried, {**made.laws})
        settings = _settings(made, ())
        decodes = [Decode(settings[d.setting], requests[d.request], bool(d.refused)) for d in made.decodes]
        if not _is_today_s(made):
            return requests
        if problem := misstated(stated, decodes, laws, made.networks.dtype):
            raise ValueError(problem)
        of = made.networks.title, made.networks.dtype
        if made.planted is not None and (of != DIGITS or dict(made.planted) != planted_bugs()):
            raise ValueError("it counts other planted bugs than the default question, on the digits, was seen to find")
    return requests


def unchecked(made: form.Certificate) -> list[str]:
    """Return what a certificate says that no check of it sees."""
    if not _is_today_s(made):
        return [f"what was exercised, planted bugs: those of version {made.versions.get('harness')}, which judges them"]
    return only_said(record_of(Exercised, {**made.exercised}))


def _is_today_s(made: form.Certificate) -> bool:
    return made.versions.get("harness") == versions()["harness"]


@contextmanager
def _holding(name: str) -> Iterator[None]:
    """Turn what the values of a certificate lead to into one line. Raises `InputError`."""
    try:
        yield
    except (HarnessError, TypeError, ValueError, KeyError, AttributeError) as error:
        rule = f"does not hold together ({shortened(text_of(error), 160)})"
        raise InputError(form.NAME, name, rule, "ask for it again from whoever made it") from None


def _settings(made: form.Certificate, options: tuple[tuple[str, str], ...]) -> tuple[Settings, ...]:
    """Return the settings of a certificate, with these options for the decoder's factory."""
    return tuple(
        Settings(each.draft_len, each.bonus, each.policy, options, each.graphs, each.compiled) for each in made.settings
    )


def _unlike(made: form.Certificate, models: ModelPair) -> str:
    """Return what is not at hand of what a certificate is of; empty where all is."""
    config, networks, layout = models.target.config, made.networks, models.pyramid
    sides = networks.sides or tuple((pn, pn) for pn in networks.patch_nums)
    here = config.family, config.V, config.classes, layout.sides, layout.channels
    if here != (networks.family, networks.V, networks.classes, sides, networks.channels):
        return f"its networks, {networks.title} of the family {networks.family}, are not at hand: name them"
    digests = weight_digests(models)
    for side in ("target", "vae"):
        if made.weights.get(side) != digests[side]:
            return f"its weights are not at hand: the {side} here is another one; name those of {networks.title}"
    of, own = made.platform, platform_of(models)
    numbers = of.get("numbers")
    if of.get("device") != own["device"]:
        return f"its device is not at hand: {own['device']} draws other numbers than {of.get('device')}"
    are_numbers = isinstance(numbers, list) and all(isinstance(each, int | float) for each in numbers)
    same = are_numbers and same_generator(models.device, numbers)
    return "" if same else f"the generator of this {own['device']} draws other numbers than that of {of.get('name')}"


def _other_decoder(made: form.Certificate, subject: list[Any], models: ModelPair, again: Again) -> str:
    """Return why the decoder here is not that of a certificate; empty where it is."""
    checkout = dict(again.options).get("checkout", "")
    try:
        own = subject_of(again.implementation, checkout, "", Path(form.NAME))
    except InputError:
        return f"its decoder is not at hand: nobody finds the source of {again.implementation}"
    stated = [each for each in subject if "sha256" in each["digest"]]
    if own != stated:
        names = [each["name"] for each in (*own, *stated) if (each in own) != (each in stated)]
        named = f"{made.decoder.get('implementation')}: {shortened(str(names[0]), 80)} differs" if names else "order"
        return f"the decoder here is not that of the certificate, {named}; name it, if you trust it"
    options = tuple(pair for pair in again.options if pair[0] != "checkout")
    other = next((each.options for each in made.settings if each.options != options), None)
    if other is not None:
        return f"its decoder had other options: {', '.join(f'{n}={v}' for n, v in other) or 'none'}"
    same = made.weights.get("draft") == weight_digests(models)["draft"]
    return "" if same else "its draft is not at hand: the one here has other weights"


def _stated(made: form.Certificate) -> list[int]:
    """Return the first image with a token that is stated to be wrong, and sixteen of those with ties, by the root."""
    claimed = [number for number in form.candidates(made) if made.image(number)[2].expected]
    wrong = next(([number] for number in claimed if _wrong(made, made.image(number)[2])), [])
    ties = [number for number in claimed if made.image(number)[2].ties and number not in made.challenged]
    return wrong + list(form.challenges(made.root, ties, form.CHALLENGED))


def _wrong(made: form.Certificate, image: form.Image) -> set[int]:
    """Return the draws of an image that are stated to be wrong."""
    if not image.expected:
        return set()
    differ_L = made.tokens(image.tokens) != made.tokens(image.expected)
    return set(np.flatnonzero(differ_L).tolist()) - set(image.ties)


Group = tuple[int, int, list[int], list[int]]  # setting, request, numbers of images, rows


@torch.inference_mode()
def _along(
    made: form.Certificate, models: ModelPair, requests: list[Request], budget: Budget, group: Group
) -> Iterator[Found]:
    """Judge the tokens of some images by the reference along them."""
    setting, number, images, rows = group
    contract, greedy = Contract.of(made.settings[setting].contract), made.settings[setting].policy == "greedy"
    if contract is Contract.QUALITY:
        return
    tokens_bL = np.stack([made.tokens(made.image(image)[2].tokens) for image in images])
    alone, numbers, run = forced(models, requests[number], rows, tokens_bL, greedy)
    writes_bS = torch.ones(len(rows), models.pyramid.S, dtype=torch.int64)
    actual = Trace(torch.from_numpy(tokens_bL).to(models.device), run.f_hat_BCPP, writes_bS)
    judged, along = judge_along(Evidence(models, alone, actual, run, budget, greedy, noise=numbers), contract, False)
    if contract is Contract.LAW:
        if judged.defects and not made.image(images[0])[0].defects:
            yield CheckAnswer.REFUTED, str(judged.defects[0])
        return
    draws = models.pyramid.draws
    ties = {(tie.image, models.pyramid.draw(tie.position, tie.channel)) for tie in judged.ties}
    here_bL = along.expected.tokens_BL.cpu().numpy()
    for b, image in enumerate(images):
        stated = made.image(image)[2]
        expected_L = made.tokens(stated.expected) if stated.expected else tokens_bL[b]
        differ = set(np.flatnonzero(tokens_bL[b] != here_bL[b]).tolist())
        bad = sorted(differ - {draw for row, draw in ties if row == b} - _wrong(made, stated))
        moved = np.flatnonzero(expected_L != here_bL[b])
        where = f"image {image} (request {number}, row {rows[b]}, setting {setting})"
        if bad:
            why = next((str(d) for d in judged.defects if d.image == b and d.scale == draws.level_of(bad[0])), "")
            says = f"token {tokens_bL[b, bad[0]]}, where the reference draws {here_bL[b, bad[0]]}"
            yield CheckAnswer.REFUTED, f"{where}, scale {draws.level_of(bad[0])}, draw {bad[0]}: {says}; {why}"
        elif (far := _beyond(along, numbers, b, moved, expected_L)) >= 0:
            says = f"the reference is said to draw {expected_L[far]}, and draws {here_bL[b, far]}"
            yield CheckAnswer.REFUTED, f"{where}, scale {draws.level_of(far)}, draw {far}: {says}"
        else:
            count = f"{len(moved)} draws came out otherwise, within rounding"
            yield (CheckAnswer.TIES, f"{where}: {count}") if len(moved) else (CheckAnswer.SAME, "")


def _beyond(along: Evidence, numbers: Noise, b: int, moved_n: Any, expected_L: Any) -> int:
    """Return the first draw that the reference cannot have led to within rounding; -1 where there is none."""
    pyramid, guided_bLV = along.models.pyramid, along.expected.shown.guided_BLV
    for draw in moved_n.tolist():
        si = pyramid.draws.level_of(draw)
        row, at = torch.tensor([b], device=guided_bLV.device), torch.tensor([draw], device=guided_bLV.device)
        E_1V = None if along.greedy else exponentials(numbers, pyramid, row, at)
        allowed = 2 * along.allowance(si).logits  # here and there
        token = torch.tensor([int(expected_L[draw])], device=guided_bLV.device)
        race = margins_of_differing_tokens(guided_bLV[b, draw][None], E_1V, token, along.request.at(si), allowed)
        if not bool(race.is_tie_N(allowed)[0]):
            return int(draw)
    return -1


def _decoded(
    made: form.Certificate, models: ModelPair, requests: list[Request], budget: Budget, images: list[int], again: Again
) -> Iterator[Found]:
    """Decode some images anew, and compare them token by token; the first decode with a defect, too."""
    groups = list(challenged_groups(made, images))
    is_shown = any(_wrong(made, made.image(image)[2]) for image in images)
    wrong = [k for k, decode in enumerate(made.decodes) if decode.defects and not is_shown][:1]
    tasks = list[tuple[Group | None, list[int], Task]]()
    for group in groups:
        request, rows = requests[group[1]], group[3]
        defective = made.image(group[2][0])[0].defects  # which the batch may have led to
        whole = bool(defective) or request.order != "image" or request.labels is None
        asked = request if whole else request.only(rows)
        tasks.append((group, rows if whole else list(range(len(rows))), Task(len(tasks), asked, (group[0],))))
    for decode in (made.decodes[k] for k in wrong):
        tasks.append((None, [], Task(len(tasks), requests[decode.request], (decode.setting,))))
    most, drafts = max(task.request.B for _, _, task in tasks), tuple(each.draft_noise for each in made.settings)
    terms = replace(again.terms, refusals=True)  # what it refuses here is not at hand
    settings = _settings(made, again.options)
    work = VerifyWork(models, again.implementation, settings, most, budget, terms, drafts)
    with closing(work.open()) as opened:
        for of, rows, task in tasks:
            row = opened.do(task).rows[0]
            if of is None:
                unmet = CheckAnswer.UNKNOWN, "its first defect was not met here"
                yield (CheckAnswer.SAME, "met") if row.judgement.defects else unmet
                continue
            stated, contract = made.image(of[2][0])[0], made.settings[of[0]].contract
            if row.refused:
                yield CheckAnswer.UNKNOWN, f"the decoder refuses request {of[1]}: {row.refused}"
            elif row.judgement.defects and not stated.defects:
                yield CheckAnswer.REFUTED, f"request {of[1]}, setting {of[0]}: {row.judgement.defects[0]}"
            elif not row.tokens:
                yield CheckAnswer.UNKNOWN, f"the decoder draws nothing of request {of[1]}: {row.judgement.defects[0]}"
            else:
                here_bL = row.tokens_xBL(task.request.B, models.pyramid.draws.L)[0][rows]
                yield from _compared(made, models, of, here_bL, contract == "A" and not row.judgement.defects)


def _compared(made: form.Certificate, models: ModelPair, group: Group, here_bL: Any, claims: bool) -> Iterator[Found]:
    """Compare tokens of images with those that a certificate holds; `claims`: both sides' were judged to be right."""
    for b, image in enumerate(group[2]):
        stated = made.image(image)[2]
        differ = np.flatnonzero(made.tokens(stated.tokens) != here_bL[b])
        if not len(differ):
            yield CheckAnswer.SAME, ""
            continue
        where = f"image {image} differs from scale {models.pyramid.draws.level_of(int(differ[0]))} on"
        if claims and not _wrong(made, stated):
            yield CheckAnswer.TIES, f"{where}, by ties"
        else:
            yield CheckAnswer.UNKNOWN, f"{where}, and nothing says whether by rounding"


def _unmet(made: form.Certificate, found: list[Found], images: list[int], again: Again | None) -> list[Found]:
    """Return what of a certificate's claims nothing of the above has to do with."""
    claims = [made.settings[decode.setting].contract == "A" for decode in made.decodes if decode.images]
    if again is None and not all(claims):
        return [(CheckAnswer.UNKNOWN, "tokens under contracts B and C need the decoder: pass --decode")]
    if (
        made.verdict == "DEFECT"
        and not any(_wrong(made, made.image(image)[2]) for image in images)
        and (CheckAnswer.SAME, "met") not in found
    ):
        first = next((decode.first for decode in made.decodes if decode.defects), next(iter(made.early), ""))
        rest = "" if again else ": pass --decode"
        return [(CheckAnswer.UNKNOWN, f"tokens alone do not show its defect ({shortened(first, 160)}){rest}")]
    return []
