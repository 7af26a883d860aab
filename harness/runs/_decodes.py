"""Decode many requests under many settings, and judge every decode.

Promise: every setting sees the same requests and the same reference, and the verdict is the worst one met.
What decides the verdict (contract demanded, budget, precision mode) is fixed before the decoder is built, and a decoder
that is not the harness's own runs in a process of its own. Who does the tasks, and in which order, changes nothing.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from harness.adapters import PUBLISHED_PREFIX
from harness.decoders import Factory, Other, Terms, factory_name, is_own_decoder, pickled_factory
from harness.errors import InputError, NonFiniteError, StopSignal
from harness.judge import Divergence, Judgement, law_of, weigh_law, weigh_run
from harness.models import ModelPair
from harness.pool import ALONE, Died, Parallelism, employ
from harness.protocol import Contract, Request, ScalePyramid, Settings, guidance_text
from harness.rounding import Allowance, Budget, certifying_precision, joint_budget
from harness.runs._identity import DECODER, HARNESS, NetworksUsed, RunHeader, identity_of, names_of
from harness.runs._plan import Plan, Task
from harness.runs._records import JudgedRow, readable
from harness.runs._result import Verification
from harness.runs._runfile import UNKEPT, Kept, RunFile, RunFileOptions, begin, read_run
from harness.runs._setting import SettingResult
from harness.runs._work import Done, VerifyWork
from harness.runs.pictures import MOST_PICTURES
from harness.signals import held

TERMS = Terms()
MOST_DEATHS = 3  # of one setting's process, one after the other: what is left would end as they did


@dataclass(frozen=True)
class Decodes:
    """What one decoder is to decode, and how that is judged."""

    factory: Factory | str  # builds the decoder for one setting; a function, or its name package.module:factory
    plan: Plan  # every request, under the settings that meet it
    terms: Terms = TERMS  # how it is judged


@dataclass(frozen=True)
class Step:
    """What was added to a run: decoded images, defects among them, and images that will not be decoded."""

    images: int
    defects: int = 0
    off: int = 0
    first: Divergence | None = None  # of the defects

    @classmethod
    def of(cls, rows: Sequence[JudgedRow]) -> Self:
        done = [row.judgement for row in rows if not row.refused]
        off = sum(row.judgement.images for row in rows if row.refused)
        first = next((defect for each in done for defect in each.defects), None)
        return cls(sum(each.images for each in done), sum(each.count("defects") for each in done), off, first)


class RunInterrupted(StopSignal):
    """A signal ended a run; `result` is what was judged until then."""

    def __init__(self, result: Verification, number: int) -> None:
        super().__init__(number)
        self.result = result


def verify_decodes(
    models: ModelPair, decodes: Decodes, parallelism: Parallelism = ALONE, store: RunFileOptions = UNKEPT,
    progress: Callable[[Step], None] = lambda step: None,
) -> Verification:  # fmt: skip
    """Run a decoder, on copies of the networks, and the reference over all requests and settings; judge every token.

    `progress` is called after every decode, or after every task of another process, and once for all that a resumed
    run has already.

    Raises:
        InputError: a setting or a request that the decoder or the networks refuse; a decoder that claims less than is
            demanded; a stored budget that is too wide; a run file of another run, or one that is being written.
        RunInterrupted: SIGINT or SIGTERM; holds what was judged.

    Effects: processes, which have ended when this returns; the run file.
    """
    factory, plan, terms = decodes.factory, decodes.plan, decodes.terms
    plan.check()
    check_pairs(plan, terms)
    name = factory if isinstance(factory, str) else factory_name(factory)
    result = Verification([], None, models.device, models.target.dtype, models.draft.dtype, models.title, plan=plan)
    tested = name, next(iter(plan.settings), Settings())  # without settings nothing is compared
    result.tested, result.against = names_of(tested, terms.against)
    try:
        models.check_finite()
        budget = joint_budget(models, any(setting.compiled for setting in plan.settings), terms.budgets)
    except NonFiniteError as error:
        result.early.append(Divergence("weights", str(error), plan.tasks[0].request.seed))
        return result
    result.budget = widest(budget, models.pyramid, [task.request for task in plan.tasks])
    identity = identity_of(models, tested, terms.against) if store.recipe is not None or store.file else None
    crew = employ(parallelism, torch.device(parallelism.device or models.device), len(plan.tasks))
    sent = pickled_factory(factory, name) if crew.is_elsewhere and not isinstance(factory, str) else factory
    told = replace(terms, against=_sent(terms.against)) if crew.is_elsewhere else terms
    if crew.cluster:  # it trusts whoever reaches it
        told = replace(told, limits=replace(terms.limits, connects=False))
    wanted = MOST_PICTURES if store.file else 0
    heard = None if crew.is_elsewhere else lambda row: progress(Step.of([row]))
    work = VerifyWork(models, sent, plan.settings, plan.most, budget, told, plan.drafts, wanted, heard)
    with closing(crew.open(work)) as pool:
        once = plan.lengthless() if pool.about.lengthless and terms.against is None else plan
        if once.decodes < plan.decodes:  # the same decoder under every length
            progress(Step(0, off=plan.images - once.images))
            return verify_decodes(models, replace(decodes, plan=once), parallelism, store, progress)
        is_published = isinstance(factory, str) and factory.startswith(f"{PUBLISHED_PREFIX}:")
        is_counted = is_own_decoder(factory) or is_published  # by the harness: calls, rows and rounds
        seed, built = plan.tasks[0].request.seed, pool.about
        result.early += [Divergence("precision", f"building changed {what}", seed) for what in built.moved]
        contracts = [Contract.of(contract) for contract in built.contracts]
        result.settings = [SettingResult(*of) for of in zip(plan.settings, contracts, strict=True)]
        record = RunHeader(
            identity, NetworksUsed.of(models), terms, tuple(contracts), budget, plan.images, store.recipe,
            tuple(sys.argv[1:]), isolation=built.isolation, declines=tuple(map(tuple, built.declines)),
            counted_by=HARNESS if is_counted else DECODER,
        )  # fmt: skip
        file = begin(store, record, plan)
        with closing(file) if file else nullcontext():
            run = RunInProgress(plan, result, file, progress, heard is not None)
            try:
                result.stopped = run.go(pool.map, terms.first_only)
            except InputError:
                if file and not run.rows:  # bad input leaves no file of nothing
                    file.path.unlink()
                raise
            result.sealed = file.digest if file else ""
        result.record = replace(record, workers=pool.name, certifying=str(certifying_precision(models)))
    put_together(result, run.rows, record.networks, budget)
    if result.stopped:
        raise RunInterrupted(result, result.stopped)
    return result


def check_pairs(plan: Plan, terms: Terms) -> None:
    """Refuse two decoders whose settings do not pair up. Raises `InputError`."""
    if terms.against is not None and len(terms.against.settings) != len(plan.settings):
        rule = f"has {len(terms.against.settings)} settings, and the decoder {len(plan.settings)}"
        raise InputError("against", terms.against.name, rule, "pass one --draft-len")


def _sent(other: Other | None) -> Other | None:
    """Return the other decoder as it travels to a worker. Raises `InputError` where it cannot."""
    if other is None or other.factory is None or isinstance(other.factory, bytes):
        return other
    return replace(other, factory=pickled_factory(other.factory, other.name))


class RunInProgress:
    def __init__(
        self,
        plan: Plan,
        result: Verification,
        file: RunFile | None,
        progress: Callable[[Step], None],
        is_heard: bool = False,  # whoever decodes says so of every decode himself
    ) -> None:
        self.plan, self.result, self.file, self.progress, self.is_heard = plan, result, file, progress, is_heard
        self.rows: dict[int, list[JudgedRow]] = {}  # by task
        self._front, self._last = 0, dict[int, list[JudgedRow]]()  # tasks judged without a gap; last rows by setting
        for row in file.rows() if file else []:
            self.rows.setdefault(row.task, []).append(row)

    def go(self, do: Callable[[Iterator[Task]], Iterator[tuple[Task, Done | Died]]], first_only: bool = False) -> int:
        """Do what is left, to the first defect if it is asked; return the signal that stopped it, or 0."""
        start = time.perf_counter()
        if self.rows:
            self.progress(Step.of([row for rows in self.rows.values() for row in rows]))
        try:
            left = () if first_only and self._is_wrong(self.rows) else do(self._left())
            for task, answer in left:
                self._take(task, answer)
                if first_only and self._is_wrong([task.number]):
                    break
        except StopSignal as stop:
            return stop.status - 128
        finally:
            self.result.wall_seconds = time.perf_counter() - start
        return 0

    def _is_wrong(self, tasks: Iterable[int]) -> bool:
        return any(row.judgement.defects for task in tasks for row in self.rows[task])

    def _left(self) -> Iterator[Task]:
        """Yield what is left, without settings whose process keeps dying."""
        for task in self.plan.tasks:
            judged = {row.setting for row in self.rows.get(task.number, [])}  # not all, after a first defect
            left = [number for number in task.settings if number not in judged]
            alive = tuple(number for number in left if not keeps_dying(self._so_far(number)))
            if len(alive) < len(left):
                self.progress(Step(0, off=task.request.B * (len(left) - len(alive))))
            if alive:
                yield replace(task, settings=alive)

    def _so_far(self, setting: int) -> list[JudgedRow]:
        """Return the last rows of a setting, as far as every task before them is judged."""
        while self._front < len(self.plan.tasks) and self.plan.tasks[self._front].number in self.rows:
            for row in self.rows[self.plan.tasks[self._front].number]:
                self._last[row.setting] = [*self._last.get(row.setting, []), row][-MOST_DEATHS:]
            self._front += 1
        return self._last.get(setting, [])

    def _take(self, task: Task, answer: Done | Died) -> None:
        if isinstance(answer, Died):
            detail = f"every worker that took the request died, {MOST_DEATHS} of them; the last: {answer.why}"
            lost = Divergence("process", detail, task.request.seed)
            rows = [JudgedRow(task.number, k, Judgement(task.request.B, defects=[lost])) for k in task.settings]
            answer = Done(task.number, rows, [])
        with held():
            if self.file:
                self.file.write(answer.rows, answer.exhibits, answer.pictures)
            self.rows[task.number] = [*self.rows.get(task.number, []), *answer.rows]
        self.result.decode_seconds += answer.decode_seconds
        self.result.seconds += answer.seconds
        if not self.is_heard:
            self.progress(Step.of(answer.rows))


def keeps_dying(rows: Sequence[JudgedRow]) -> bool:
    """Tell whether a setting's last decodes all cost its process: the others would take as long for the same."""
    last = [row.judgement.defects[:1] for row in rows[-MOST_DEATHS:]]
    return len(last) == MOST_DEATHS and all(found and found[0].component == "process" for found in last)


def put_together(
    result: Verification, rows: Mapping[int, Sequence[JudgedRow]], networks: NetworksUsed, budget: Budget
) -> None:
    """Put rows into a result in its plan's order, and weigh the ties and bets of the whole run."""
    settings, requests = result.settings, {task.number: task.request for task in result.plan.tasks}
    pyramid = networks.pyramid
    for task in result.plan.tasks:
        for row in sorted(rows.get(task.number, []), key=lambda row: row.setting):
            if not keeps_dying(settings[row.setting].rows):
                settings[row.setting].rows.append(row)
    for task in result.plan.tasks:  # but for what was left alone
        seen = {row.setting for row in rows.get(task.number, [])}
        left = (number for number in task.settings if number not in seen)
        result.unfinished += not all(keeps_dying(settings[number].rows) for number in left)

    def allowed(request: Request) -> list[Allowance]:
        return [budget.guided(request.guidance, pyramid.ramp(si), si) for si in pyramid]

    alike = list(dict.fromkeys(law_of(request) for request in requests.values()))
    looks = len(alike) * sum(setting.contract is Contract.LAW for setting in settings)
    for setting in settings:
        if setting.contract is Contract.LAW:
            for law in alike:
                judged = [(requests[r.task], r.judgement) for r in setting.rows if law_of(requests[r.task]) == law]
                wealth = weigh_law(judged, networks.V, looks)
                setting.bets += [wealth] if wealth else []
        weigh_run([(requests[row.task], row.judgement) for row in setting.rows], allowed, len(settings))


def widest(budget: Budget, pyramid: ScalePyramid, requests: Sequence[Request]) -> Allowance:
    """Return the allowance of the last scale under the largest guidance value; its source says which of several."""
    last = pyramid.S - 1
    each = {request.guidance: budget.guided(request.guidance, pyramid.ramp(last), last) for request in requests}
    widest = max(each, key=lambda guidance: each[guidance].logits)
    if len({abs(guidance) if isinstance(guidance, float | int) else guidance for guidance in each}) == 1:
        return each[widest]
    return replace(each[widest], source=f"{each[widest].source}; the widest, at {guidance_text(widest)}")


def recorded_result(path: Path) -> Verification:
    """Return the result of a run file, as its run had it, or would have if it had ended where the file does.

    Nothing is decoded or judged anew; counts, verdict and first divergence are those that `verify` printed. Raises
    `InputError` where it is none.
    """
    run, rows = read_run(path)
    with readable("run", path):
        result = _result_of(run, rows)
    result.is_kept = True
    return result


def _result_of(run: Kept, rows: list[JudgedRow]) -> Verification:
    record, networks, terms = run.record, run.record.networks, run.record.terms
    requests = [task.request for task in run.plan.tasks]
    settings = zip(run.plan.settings, record.contracts, strict=True)
    result = Verification(
        [SettingResult(setting, contract) for setting, contract in settings],
        widest(record.budget, networks.pyramid, requests),
        torch.device(networks.device), *networks.dtypes, networks.title, plan=run.plan, record=record,
    )  # fmt: skip
    if terms.against is not None:
        of = record.identity
        result.tested, result.against = of.decoder.title if of else "", terms.against.name
        result.against = of.against.title if of and of.against else result.against
    by_task: dict[int, list[JudgedRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
        result.decode_seconds += row.seconds + row.reference_seconds
    put_together(result, by_task, networks, record.budget)
    if terms.covers:
        result.take_design(terms.unasked)
    if run.claims is not None:
        result.take_quality(run.claims, run.quality)
    if run.laws is not None:
        result.take_laws(run.laws)
    return result
