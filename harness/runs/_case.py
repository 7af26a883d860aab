"""One recorded defect: read from a run file, as a file that can be sent, and as the command line that shows it alone.

Promise: a bundle is a plain safetensors file, whose reading executes nothing; on another class of machine the case
meets the recorded numbers, since generators differ there. Weights do not travel: their digests do. The words of the
command line are those of `sdvar-harness verify`, quoted for a shell; the image it names meets the same numbers.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Self

from safetensors.torch import save
from torch import Tensor

from harness.content import read_safetensors, refuse_other
from harness.decoders import Other, Terms
from harness.errors import InputError
from harness.files import write_whole
from harness.judge import Divergence
from harness.models import ModelPair
from harness.protocol import Request, Settings, request_of, request_values
from harness.protocol.noise import ACCEPT, CORRECT, DRAFT, TOKEN, RecordedNumbers
from harness.runs._identity import Identity, RunHeader, against_values, identity_of
from harness.runs._records import A_RECORD, readable, settings_of, settings_values, to_json
from harness.runs._runfile import exhibit_of, read_run
from harness.schema import record_of, typed
from harness.wording import count_of

MOST_SCALES = 2**10
MOST_CASES = 16  # that are repeated where none is named
KEY, SCHEMA = "sdvar-bundle", 1
STREAMS = (TOKEN, DRAFT, ACCEPT, CORRECT)
NUMBERS, EXHIBIT = "numbers/", "exhibit/"
USUAL = {"cfg": 1.5, "top_k": 0, "top_p": 0.0}


@dataclass(frozen=True)
class KeptCase:
    number: int  # in its file
    record: RunHeader  # what the run said of itself
    settings: Settings  # of the decoder
    request: Request  # what was drawn
    defect: Divergence  # what is wrong
    scales: int = 0  # the first ones of the pyramid that the networks are cut to; 0 = all
    # those that were drawn, where they are kept; None = they are generated anew
    numbers: RecordedNumbers | None = field(default=None, repr=False)
    exhibit: Mapping[str, Tensor] = field(default_factory=dict, repr=False)  # tensors around it
    draft_noise: float | None = None  # of the draft that the setting met, where a design chose it (`Plan.drafts`)
    against: Other | None = None  # the decoder that stood in the reference's place, with its one setting
    is_own: bool = False  # its file was written by this user on this machine
    in_process: bool = False  # its decoder runs in this process: never the file's choice

    @property
    def implementation(self) -> str:
        return self.recorded.decoder.implementation

    @property
    def recorded(self) -> Identity:
        assert self.record.identity is not None, "a case is of a run that was asked what it is of"
        return self.record.identity

    @property
    def terms(self) -> Terms:
        """How it was judged; the budget is that of the machine at hand, and no file says that code runs in here."""
        terms = self.record.terms
        return Terms(terms.contract, terms.sequential, self.in_process, terms.limits, against=self.against,
                     strict=terms.strict, may_differ_from=terms.may_differ_from)  # fmt: skip

    @property
    def settings_of_both(self) -> list[Settings]:
        """Settings of the decoder, then of the one in the reference's place."""
        return [self.settings, *(self.against.settings if self.against else ())]

    @property
    def code(self) -> list[tuple[str, str]]:
        """Factory and checkout of the decoder, and of the one in the reference's place."""
        names = [self.implementation, *([self.against.name] if self.against else [])]
        return [(name, each.option("checkout")) for name, each in zip(names, self.settings_of_both, strict=True)]

    def under(self, settings: Sequence[Settings]) -> Self:
        """Return the case under other settings, in the order of `settings_of_both`."""
        other = replace(self.against, settings=tuple(settings[1:])) if self.against else None
        return replace(self, settings=settings[0], against=other)

    def identity(self, models: ModelPair) -> Identity:
        return identity_of(models, (self.implementation, self.settings), self.against)

    def __str__(self) -> str:
        labels = sorted(set(self.request.labels or ()))
        images = f"{count_of(self.request.B, 'image')} of label {', '.join(map(str, labels))}"
        scales = f", the first {count_of(self.scales, 'scale')}" if self.scales else ""
        draft = f", {'own' if self.draft_noise is None else 'close'} draft" if self.record.terms.covers else ""
        return f"{images}, {self.settings}{draft}{scales}: {self.defect}"


def cases_of(path: Path) -> list[KeptCase]:
    """Return the defects of a run file, the first of each request and setting. Raises `InputError` for another file."""
    run, rows = read_run(path, "file")
    if run.record.identity is None:
        raise InputError("file", str(path), "does not say of what its run was", "record it with verify --run")
    requests = {task.number: task.request for task in run.plan.tasks}
    bad = sorted((row for row in rows if row.judgement.defects), key=lambda row: (row.setting, row.task))
    return [
        KeptCase(
            number, run.record, run.plan.settings[row.setting], requests[row.task], row.judgement.defects[0],
            exhibit=exhibit_of(path, row) if number < MOST_CASES else {}, draft_noise=run.plan.drafts[row.setting],
            against=run.record.against(row.setting), is_own=run.is_own,
        )
        for number, row in enumerate(bad)
    ]  # fmt: skip


def of_checkouts(case: KeptCase, checkouts: Sequence[Path | None]) -> KeptCase:
    """Return the case with its published code elsewhere. Raises `InputError` where no such decoder has a checkout."""
    settings = case.settings_of_both
    for side, (name, folder) in enumerate(zip(("checkout", "against_checkout"), checkouts, strict=True)):
        if folder is None:
            continue
        if side >= len(settings) or not settings[side].option("checkout"):
            raise InputError(name, str(folder), f"is of no use: case {case.number} was recorded without one", "drop it")
        given, there = settings[side].options, str(folder.absolute())
        options = tuple((option, there if option == "checkout" else value) for option, value in given)
        settings[side] = replace(settings[side], options=options)
    return case.under(settings)


def unlike(case: KeptCase, models: ModelPair) -> str:
    """Return why a case cannot be repeated on these networks at all; empty where it can."""
    here, recorded = case.identity(models), case.recorded
    for part, word in (("weights", "other weights"), ("mode", "another mode")):
        if clauses := here.differences(recorded, [part]):
            return f"{word}: {'; '.join(clauses)}"
    if here.machine.device != recorded.machine.device and case.numbers is None:
        names = f"recorded on {recorded.machine.name}, here {here.machine.name}"
        return f"another device: {names}, whose numbers are others; pass a --bundle"
    return ""


def write_bundle(case: KeptCase, models: ModelPair, path: Path) -> None:
    """Write a bundle of a case on its uncut networks. Raises `InputError`: no such numbers here, or no such file."""
    why = unlike(case, models)
    if why:
        raise InputError("bundle", str(path), f"cannot be made here: {why}", "make it where the run was recorded")
    numbers = case.numbers.tensors if case.numbers else _draw_numbers(case, models)
    values = {
        "schema": SCHEMA,
        "about": case.record.as_dict(),
        "settings": settings_values(case.settings, case.draft_noise),
        "request": request_values(case.request),
        "recorded": request_values(case.numbers.request if case.numbers else case.request),
        "found": list(astuple(case.defect)),
        "scales": case.scales,
        "against": against_values(case.against),
    }
    tensors = {NUMBERS + name: tensor.cpu().contiguous() for name, tensor in numbers.items()}
    tensors |= {EXHIBIT + name: tensor.contiguous() for name, tensor in case.exhibit.items()}
    write_whole(path, save(tensors, {KEY: to_json(values)}))


def _draw_numbers(case: KeptCase, models: ModelPair) -> dict[str, Tensor]:
    noise, drawn = replace(models, numbers=None).noise(case.request), dict[str, Tensor]()
    for si in range(case.scales or models.pyramid.S):
        for stream in STREAMS:
            numbers = (noise.uniform if stream == ACCEPT else noise.exponential)(si, stream, "bundle")
            drawn[f"{stream}/{si}"] = numbers[..., None] if stream == ACCEPT else numbers
    return drawn


def is_bundle(path: Path) -> bool:
    """Tell a bundle from a run file by its first bytes. Raises `InputError` where there is no file."""
    return refuse_other(path, "file", ("sqlite", "safetensors"), A_RECORD).kind == "safetensors"


def read_bundle(path: Path) -> KeptCase:
    """Read a bundle. Raises `InputError` where it is none, or of another schema."""
    metadata, tensors = read_safetensors(path, "file", "pass a file of replay --bundle")
    with readable("file", path):
        values = json.loads(metadata[KEY])
        if values["schema"] != SCHEMA:
            rule = f"has schema {values['schema']}, and this version reads {SCHEMA}"
            raise InputError("file", str(path), rule, "use the version of the harness that wrote it")
        numbers, exhibit = (
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            for prefix in (NUMBERS, EXHIBIT)
        )
        settings, draft_noise = settings_of(values["settings"])
        case = KeptCase(
            0, RunHeader.from_dict(values["about"]), settings, typed(request_of(values["request"])),
            record_of(Divergence, values["found"]), values["scales"],
            RecordedNumbers(numbers, typed(request_of(values["recorded"]))), exhibit, draft_noise,
            None if values["against"] is None else record_of(Other, values["against"]),
        )  # fmt: skip
        if case.record.identity is None or not 0 <= case.scales <= MOST_SCALES or type(case.scales) is not int:
            raise ValueError("it does not say of what it is")
        return case


def repeat_line(case: KeptCase) -> str:
    """Return the command line that decodes the batch of a case; where seeds have other images, its own seed's."""
    settings, request, against = case.settings, case.request, case.against
    words = recipe_words(case.record.recipe or {}, settings)
    words += ["--against", against.name, *_options("against-", against.settings[0])] if against else []
    words += ["--draft-noise", f"{case.draft_noise!r}"] if case.draft_noise is not None else []
    by_seed = dict[int, list[tuple[int, int]]]()  # what a fault needs may be the batch, so that no image is left out
    for (seed, image), label in zip(request.addresses, request.labels or (), strict=True):
        by_seed.setdefault(seed, []).append((label, image))
    seeds = list(by_seed)
    if any(drawn != by_seed[seeds[0]] for drawn in by_seed.values()):
        seeds = [case.defect.seed if case.defect.seed in by_seed else seeds[0]]
    labels, ids = zip(*by_seed[seeds[0]], strict=True)
    words += ["--seeds", _numbers(seeds), "--labels", _numbers(labels)]
    words += ["--images", _numbers(ids)] if ids != tuple(range(len(ids))) else []
    words += ["--batch", str(count)] if (count := len(seeds) * len(ids)) > 1 else []
    words += ["--noise", "batch"] if request.order == "batch" else []
    for name, usual in USUAL.items():
        if getattr(request, name) != usual:
            words += [f"--{name.replace('_', '-')}", repr(getattr(request, name)).removesuffix(".0")]
    words += ["--draft-len", str(settings.draft_len)] if settings.draft_len != "" else []
    words += ["--bonus"] if settings.bonus else []
    policy = settings.policy or (against.settings[0].policy if against else "")  # published code has none
    words += ["--policy", policy] if policy not in ("", "coupled") else []
    return shlex.join(words)


def _numbers(numbers: Sequence[int]) -> str:
    """Write numbers as options take them, a range where they are several in turn."""
    first, count = numbers[0], len(numbers)
    is_range = count > 2 and tuple(numbers) == tuple(range(first, first + count))
    return f"{first}:{first + count}" if is_range else ",".join(map(str, numbers))


def recipe_words(recipe: Mapping[str, str], settings: Settings) -> list[str]:
    """Return the words of `verify` with the options of a recipe and of a factory; what is drawn follows."""
    words = ["sdvar-harness", "verify"]
    for name, text in recipe.items():
        words += [f"--{name.replace('_', '-')}", *([text] if text else [])]
    return words + _options("", settings)


def _options(side: str, settings: Settings) -> list[str]:
    """Return the options of a factory; its checkout has a word of its own."""
    words = []
    for name, value in settings.options:
        words += [f"--{side}checkout", value] if name == "checkout" else [f"--{side}option", f"{name}={value}"]
    return words
