"""What was asked of a decoder, what it does not do, and what nobody asked: part of every verdict.

Promise: every aspect that applies to a decoder is in exactly one of three lists: asked and exercised, not done by the
decoder, or missing, with the option that would ask it. What was asked is read off the plan, what came of it off the
rows; what a decoder declares not to do was fixed before its first decode.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.protocol import Request, Settings
from harness.runs._records import CLAIMS, LawsTried

MOST_REFUSED = 0.5  # of all decodes asked for: a decoder that refuses more has not been tested
LOCK_STEP = 12  # batches with a rejection whose images all went on together: a decoder that parts them would not
REFUSED, DECLARED = "refused", "declared"
TOGETHER = "not asked, since it takes all images of a batch through the same rounds"


@dataclass(frozen=True)
class Decode:
    settings: Settings
    request: Request
    refused: bool = False  # by the decoder
    declared: str = ""  # what the decoder declares not to do, where this asks it


Test = Callable[[Sequence[Decode]], bool]


@dataclass(frozen=True)
class Aspect:
    """One thing that a decoder may get wrong by itself."""

    word: str  # what it is
    family: str  # what is shown where there is no room for words
    asks: str  # the option that asks it
    test: Test  # whether some decodes ask it
    claim: str = ""  # of `CLAIMS`: what came of the decodes must show it, too
    declines: tuple[str, ...] = ()  # of `DECLINES`: who declares one of these is not asked


def _any(holds: Callable[[Settings, Request], bool]) -> Test:
    return lambda decodes: any(holds(one.settings, one.request) for one in decodes)


def _several(of: Callable[[Settings, Request], object]) -> Test:
    return lambda decodes: len({of(one.settings, one.request) for one in decodes} - {None}) > 1


def _filtered(holds: Callable[[int, float], bool]) -> Test:
    return _any(lambda settings, request: any(holds(*each) for each in request.every_filter))


BY_SCALE = "filters by scale"  # published samplers have one for all
LENGTHS, RULE = "several draft lengths", "a rule of draft lengths"
_DRAFTED, _PARTS, _BONUS = "drafts", "diverging batches", "a bonus scale"
ASPECTS = (
    Aspect("requests without a filter", "filters", "--top-k 0 --top-p 0", _filtered(lambda k, p: not (k or p))),
    Aspect("top-k alone", "filters", "--top-k 4", _filtered(lambda k, p: k > 0 and not p), declines=("top_k",)),
    Aspect("top-p alone", "filters", "--top-p 0.9", _filtered(lambda k, p: p > 0 and not k), declines=("top_p",)),
    Aspect("top-k and top-p together", "filters", "--top-k 4 --top-p 0.9", _filtered(lambda k, p: k > 0 < p),
           declines=("top_k", "top_p")),
    Aspect(BY_SCALE, "filters", "Request(filters=…) from Python alone", _any(lambda s, r: bool(r.filters)),
           declines=("filters", "top_k", "top_p")),
    Aspect("guidance off", "guidance", "--cfg 0", _any(lambda s, r: not r.is_guided)),
    Aspect("other guidance values", "guidance", "--cfg 4", _several(lambda s, r: r.guidance if r.is_guided else None),
           declines=("guidance",)),
    Aspect("noise by image", "noise", "--noise image", _any(lambda s, r: r.order == "image")),
    Aspect("noise by batch", "noise", "--noise batch", _any(lambda s, r: r.order == "batch"),
           declines=("batch order",)),
    Aspect("an image alone", "batches", "--batch 1", _any(lambda s, r: r.B == 1)),
    Aspect("several images a batch", "batches", "--labels 0,1 --batch 2", _any(lambda s, r: r.B > 1),
           declines=("several images",)),
    Aspect("one decoder for several requests", "batches", "--seeds 0:2 --batch 1", _several(lambda s, r: r),
           "one decoder for several requests"),
    Aspect(LENGTHS, _DRAFTED, "--draft-len 1,2,5", _several(lambda s, r: s.draft_len)),
    Aspect(RULE, _DRAFTED, "--draft-len dynamic",
           _any(lambda s, r: isinstance(s.draft_len, str)), declines=("draft rules",)),
    Aspect("rejected drafts", _DRAFTED, "--draft-noise 0.1", bool, "a first drafted scale that is rejected"),
    Aspect("accepted drafts of several scales", _DRAFTED, "--draft-noise 0.002 --draft-len 5", bool,
           "a draft of several scales that is accepted"),
    Aspect("corrections after accepted scales", _DRAFTED, "--draft-noise 0.002 --draft-len 5", bool,
           "a correction after accepted scales"),
    Aspect("images that diverge", _DRAFTED, "--labels all --batch 4", _any(lambda s, r: r.B > 1),
           "images of one batch that accept different numbers of scales", (_PARTS, "several images")),
    Aspect("bonus scales", "bonus", "--bonus", _any(lambda s, r: s.bonus), _BONUS, ("bonus",)),
    Aspect("bonus scales where images part", "bonus", "--bonus --labels all --batch 4",
           _any(lambda s, r: s.bonus and r.B > 1), f"{_BONUS} in a batch that diverges",
           ("bonus", _PARTS, "several images")),
    Aspect("more_smooth", "kinds", "Request(more_smooth=True) from Python alone", _any(lambda s, r: r.more_smooth),
           declines=("more_smooth",)),
)  # fmt: skip
FILTERS = tuple(aspect.word for aspect in ASPECTS if aspect.family == "filters")[1:]  # which filter at all
RARE = ("more_smooth", BY_SCALE)  # not asked of everybody: many a right decoder does not read them
LAWS, ADALN, DTYPES = "laws", "shared AdaLN", "other dtypes"
KINDS = {LAWS: "--laws 2", ADALN: "--laws 2", DTYPES: "--dtype bfloat16"}  # which no request asks, with what does
# what is shown before all else: without these no speculation was tested
FIRST = ("accepted drafts of several scales", "images that diverge", "one decoder for several requests", LAWS, *FILTERS)


def _listed(words: Iterable[str], most: int, hint: str = "") -> str:
    """Write the first `most` words, filters as one where all are there, and how many more there are."""
    words = _first_first(words)
    if len(words) > most + 1 and set(FILTERS) - {BY_SCALE} <= {*words}:
        words = list(dict.fromkeys("filters" if word in FILTERS else word for word in words))
    more = len(words) - most
    text = ", ".join(words) if more < 2 else f"{', '.join(words[:most])} and {more} more"
    hints = "; ".join(filter(None, (hint, "--json has all" * (more > 1))))
    return text + f" ({hints})" * bool(hints)


def _first_first(words: Iterable[str]) -> list[str]:
    """Return words in the order in which they are shown: those of `FIRST`, others of drafts, all else."""
    drafts = [aspect.word for aspect in ASPECTS if aspect.family in (_DRAFTED, "bonus")]
    order = {word: rank for rank, word in enumerate(dict.fromkeys((*FIRST, *drafts)))}
    return sorted(words, key=lambda word: order.get(word, len(order)))


@dataclass(frozen=True)
class Exercised:
    """What was asked of a decoder and what not; the three lists hold every aspect that applies to it once."""

    asked: tuple[str, ...] = ()  # exercised: by decodes, and by their rounds where these must show it
    not_done: dict[str, str] = field(default_factory=dict)  # what the decoder does not do -> how that is known
    missing: dict[str, str] = field(default_factory=dict)  # what nothing exercised -> the option that would ask it
    claims: tuple[str, ...] = ()  # of `missing`, those that a covering design is there to exercise, in `CLAIMS`' words
    decodes: int = 0  # that were asked for
    refused: int = 0  # of them, by the decoder
    declared: int = 0  # of them, what it declares not to do

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON, lists apart."""
        return {**vars(self), "asked": list(self.asked), "claims": list(self.claims)}

    @property
    def words(self) -> list[str]:
        return [*self.asked, *self.not_done, *self.missing]

    @property
    def drafts(self) -> bool:
        """Whether it says anything of drafts."""
        return any(aspect.word in self.words for aspect in ASPECTS if aspect.family == _DRAFTED and aspect.claim)

    @property
    def clause(self) -> str:
        """What was not exercised, in words, and what asks it in Python; empty where all was."""
        hint = "" if {*self.missing} <= {*RARE} else "verify without settings and requests asks most"
        return self.first_of(len(ASPECTS) + len(KINDS), hint)

    def first_of(self, most: int, hint: str = "") -> str:
        """Return the same with the first `most` words of every list, how many more there are, and a hint."""
        clauses = [f"not exercised: {_listed(self.missing, most, hint)}"] if self.missing else []
        by_why: dict[str, list[str]] = {}
        needs = {aspect.word: {*aspect.declines} for aspect in ASPECTS}
        for word, why in self.not_done.items():
            # what combines things goes without saying where one of them is not done
            if not any(needs.get(other, set()) < needs.get(word, set()) for other in self.not_done if needs.get(other)):
                by_why.setdefault(why if why != DECLARED else "declined by the decoder", []).append(word)
        return "; ".join([*clauses, *(f"{why}: {_listed(words, most)}" for why, words in by_why.items())])

    def brief(self, hint: str = "") -> str:
        """Return the same in the fewest words, families in the place of aspects, and a hint."""
        families = {aspect.word: aspect.family for aspect in ASPECTS} | {ADALN: "kinds", DTYPES: "kinds", LAWS: LAWS}
        shown = dict.fromkeys(families.get(word, word) for word in _first_first([*self.missing, *self.not_done]))
        return f"not exercised: {', '.join(shown)}{f' ({hint})' * bool(hint)}" if shown else ""

    def hint(self, covers: bool) -> str:
        """Return which options ask what is missing; `covers`: a covering design was asked, and is not proposed."""
        options = list(dict.fromkeys(self.missing.values()))
        return ", ".join(options) if len(options) < 3 else "" if covers else "--cover asks them"


def exercised(run: Any) -> Exercised:
    """Sum up what was exercised in a run (`Verification`)."""
    decodes, coverage, laws, record = run.decoded, run.coverage, run.laws, run.record
    declines = {word for words in (record.declines if record else ()) for word in words}
    # it takes dtypes, and rules of draft lengths and bonus scales as `Settings` has them; published code does not
    ours = any(setting.settings.policy for setting in run.settings)
    drafts = record is None or not record.terms.sequential
    judged = drafts and bool(coverage.judged or not coverage.rounds)
    lengths = drafts and any(setting.settings.draft_len != "" for setting in run.settings)
    applying = _applying(ours, judged, lengths)
    met = [one for one in decodes if not (one.refused or one.declared)]
    asked, not_done, missing, claims = [], dict[str, str](), dict[str, str](), []
    lock_step = coverage.together >= LOCK_STEP and not coverage.diverged
    covers = run.covers and run.is_whole  # what is not in the plan of a design was refused before it was begun
    for aspect in applying:
        if aspect.test(met) and (not aspect.claim or CLAIMS[aspect.claim](coverage)):
            asked.append(aspect.word)
        elif set(aspect.declines) & declines:
            not_done[aspect.word] = DECLARED
        elif lock_step and _PARTS in aspect.declines:
            not_done[aspect.word] = TOGETHER
        elif not aspect.test(met) and (aspect.test(decodes) or (covers and aspect.word not in RARE)):
            not_done[aspect.word] = REFUSED
        else:
            missing[aspect.word] = aspect.asks
            claims += [aspect.claim] * bool(aspect.claim)
    refuses_laws = laws is not None and laws.asked == len(laws.refused) and bool(laws.why)
    kinds = _kinds_met(laws, run.modes[0], record is not None and record.networks.shared_adaln)
    for kind, option in KINDS.items():
        if kind in kinds:
            asked.append(kind)
        elif (refuses_laws and option == KINDS[LAWS]) or (kind == DTYPES and not ours):
            not_done[kind] = REFUSED
        elif kind != LAWS or not run.against:  # no law can be asked of two decoders
            missing[kind] = option
    counts = len(decodes), sum(one.refused for one in decodes), sum(bool(one.declared) for one in decodes)
    return Exercised(tuple(asked), not_done, missing, tuple(claims), *counts)


def _applying(ours: bool, judged: bool, lengths: bool) -> list[Aspect]:
    """Return what a decoder can be asked at all: one that takes `Settings`, and whose drafts and lengths are seen."""
    applies = {BY_SCALE: ours, LENGTHS: lengths, RULE: judged and ours, _DRAFTED: judged, "bonus": judged and ours}
    return [aspect for aspect in ASPECTS if applies.get(aspect.word, applies.get(aspect.family, True))]


def _kinds_met(laws: LawsTried | None, mode: str, adaln: bool) -> set[str]:
    """Return those of `KINDS` that a run in a mode, and laws that were tried after it, met."""
    met = {LAWS, *laws.networks} - {mode} if laws is not None and laws.held else set[str]()
    dtypes = {DTYPES} if met - {LAWS, ADALN} else set[str]()
    return met & {LAWS, ADALN} | dtypes | ({ADALN} if adaln else set())


def misstated(stated: Exercised, decodes: Sequence[Decode], laws: LawsTried | None, mode: str) -> str:
    """Return what somebody's statement of these decodes, all that there were, says wrongly; empty where nothing.

    Of what rounds, a decoder's word or its networks alone show, it is seen that it stands there once.
    """
    met, words, drafted = [one for one in decodes if not one.refused], stated.words, stated.drafts
    lengths = any(one.settings.draft_len != "" for one in decodes) and (drafted or LENGTHS in words)
    applying = _applying(any(one.settings.policy for one in decodes), drafted, lengths)
    options = {aspect.word: aspect.asks for aspect in applying} | KINDS
    if other := Counter(words) - Counter([*options]) | Counter([*options]) - Counter(words):
        return f"it does not say once whether this was exercised: {min(other)}"
    kinds = _kinds_met(laws, mode, ADALN in stated.asked)
    known = {each.word: each.test(met) for each in applying} | {kind: kind in kinds for kind in KINDS}
    open_words = {each.word for each in applying if each.claim}
    for word, is_asked in known.items():
        if word in stated.asked and not is_asked:
            return f"it says that this was exercised, and nothing asks it: {word}"
        if word not in stated.asked and is_asked and word not in open_words:
            return f"it says that this was not exercised, and it was: {word}"
    claims = tuple(each.claim for each in applying if each.claim and each.word in stated.missing)
    if stated.claims != claims or any(options[word] != option for word, option in stated.missing.items()):
        return "it names other options than those that would ask what is missing"
    return ""


def only_said(stated: Exercised) -> list[str]:
    """Return what of a statement `misstated` has no means to see."""
    shown = {each.word for each in ASPECTS if each.claim} | {*KINDS}
    parts = {
        "what rounds and laws show": [word for word in stated.asked if word in shown],
        "what the decoder is said not to do": [*stated.not_done, *([] if stated.drafts else ["drafts"])],
    }
    return [f"{what} ({', '.join(words)})" for what, words in parts.items() if words]


def why_untested(decodes: Sequence[Decode], unasked: int = 0) -> list[str]:
    """Return why a decoder that refuses or declares so much is untested; `unasked` decodes are not in the plan."""
    decodes = [one for one in decodes if not one.request.more_smooth]  # nobody can speculate on soft codes
    met = [one for one in decodes if not (one.refused or one.declared)]
    refused, declared = sum(one.refused for one in decodes) + unasked, sum(bool(one.declared) for one in decodes)
    asked, reasons = len(decodes) + unasked, list[str]()
    if refused + declared > MOST_REFUSED * asked:
        words = ", ".join(dict.fromkeys(one.declared for one in decodes if one.declared))
        counts = [f"{refused} refused"] * bool(refused) + [f"{declared} declined ({words})"] * bool(declared)
        reasons.append(f"{refused + declared} of {asked} decodes were not made: {', '.join(counts)}")
    asks = {"filter": _filtered(lambda k, p: k > 0 or p > 0), "guidance": _any(lambda s, r: r.is_guided)}
    for word, holds in asks.items():
        if holds(decodes) and not holds(met):
            reasons.append(f"no {word} was exercised: the decoder refuses or declines whatever asks for one")
    return reasons
