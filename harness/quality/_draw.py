"""Drawing: sets of images of the same labels, by sequential decoding or a decoder under test; features stay of each.

Promise: image k of every set has the same label, and the same numbers where the seeds are the same; a set under other
seeds shares no number with it. What comes of a portion depends on portion, weights and machine alone, whoever draws
it; a decoder under test lives where `verify` puts it, and one that fails is a source that failed, never a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from harness.clock import timed
from harness.decoders import Built, Runner, Terms, claimed_contract, is_own_decoder, start_runner
from harness.errors import InputError
from harness.judge import Judgement, malformed, nats_of, undrawn
from harness.models import ModelPair
from harness.protocol import Contract, Request, Settings, Trace
from harness.quality._features import Features
from harness.reference import filter_logits, sample_sequential
from harness.rounding import joint_budget
from harness.runs import Task
from harness.speculative import parse_policy
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder

ELSEWHERE = 2**32  # what other seeds are away
TARGET, DRAFT = "sequential", "the draft alone"
NONE = ""  # no factory: sequential decoding


@dataclass(frozen=True)
class Source:
    name: str  # for people; no two sources of a run share one
    factory: str = NONE  # builds the decoder, ``package.module:factory``; `NONE` = sequential decoding
    settings: Settings = Settings()  # noqa: RUF009  # frozen; of the decoder
    seeds: int = 0  # how many times `ELSEWHERE` its seed is away
    draft: bool = False  # sequential decoding by the draft

    @property
    def length(self) -> str:
        """Draft length as text; empty where there is none."""
        return str(self.settings.draft_len) if self.factory else ""

    def request(self, request: Request) -> Request:
        """Return what this source draws of a request."""
        return replace(request, seed=request.seed + self.seeds * ELSEWHERE)


# Every run draws these: sequential decoding, and the target's law as other seeds show it.
BASE = Source(TARGET)
LAW = Source("the target's law", seeds=1)


def control_sources(count: int) -> list[Source]:
    """Return sequential decoding under `count` other seeds, which loses nothing. Raises `InputError` below 0."""
    if count < 0:
        raise InputError("control", count, "must be 0 or more", "pass --control 1")
    numbered = [f"sequential, other seeds{f' {k + 1}' if count > 1 else ''}" for k in range(count)]
    return [Source(name, seeds=k + 2) for k, name in enumerate(numbered)]


def check_distinct(sources: Sequence[Source]) -> None:
    """Refuse two sources of one name. Raises `InputError`."""
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError("policies", twice, "is asked for twice", "drop one of them")


def portions(images: int, batch: int, labels: Sequence[int], request: Request) -> list[Request]:
    """Return the batches of one set: labels in turn, every image with an address of its own. Raises `InputError`."""
    if min(images, batch) < 1:
        raise InputError("images", images, "and batch must be at least 1", "pass --images 10000")
    if request.order != "image":
        raise InputError("noise", request.order, "gives no image a stream of its own", "pass --noise image")
    requests = []
    for begin in range(0, images, batch):
        ids = tuple(range(begin, min(begin + batch, images)))
        drawn = tuple(labels[k % len(labels)] for k in ids)
        requests.append(replace(request, labels=drawn, images=ids, count=len(ids), seeds=None))
    return requests


@dataclass(frozen=True)
class Drawn:
    """What is kept of one portion of one source; on the CPU."""

    features_BD: Tensor  # float32; none where the decode failed
    classes_B: Tensor  # what was recognised, int64; empty where nothing is
    calls_B: Tensor  # target forward passes, int64
    nats_BX: Tensor  # as of `nats_of`; empty of sequential decoding
    seconds: float = 0.0  # of the decode
    failed: str = ""  # why the decoder gave no image, one clause; empty = it did

    @classmethod
    def nothing(cls, why: str) -> Drawn:
        none = torch.zeros(0, dtype=torch.int64)
        return cls(torch.zeros(0, 0), none, none, torch.zeros(0), failed=why)


@dataclass(frozen=True)
class DrawWork:
    """What a worker gets; `most`: images of the largest portion, `terms`: where decoders under test run."""

    models: ModelPair
    features: Features
    sources: tuple[Source, ...]
    most: int
    terms: Terms = Terms()  # noqa: RUF009  # frozen
    heard: Callable[[int], None] | None = None  # called with the images of every decode, in this process

    def open(self) -> Artist:
        """Build the decoders. Raises `InputError` where one refuses."""
        return Artist(self)


class Artist:
    """Draws portions; holds the decoders."""

    def __init__(self, work: DrawWork) -> None:
        self.work, self.features = work, work.features.to(work.models.device)
        self.budget = joint_budget(work.models, compiled=False)
        # sequential decoding by the target claims its own tokens, by the draft nothing
        contracts = ["" if source.draft else Contract.TOKENS.letter for source in work.sources]
        self._own: dict[int, SpeculativeDecoder] = {}
        self._runners: dict[int, Runner] = {}
        with ExitStack() as stack:
            for k, source in enumerate(work.sources):
                if source.factory == NONE:
                    continue
                if is_own_decoder(source.factory):
                    settings, policy = source.settings, parse_policy(source.settings.policy)
                    options = DecoderOptions(settings.draft_len, settings.bonus, policy)
                    self._own[k], contracts[k] = SpeculativeDecoder(work.models, options), policy.contract.letter
                    continue
                runner = start_runner(work.models, source.factory, [source.settings], work.most, work.terms)
                stack.callback(runner.close)
                self._runners[k], contracts[k] = runner, claimed_contract(runner.built.contracts[0], work.terms).letter
            self._stack = stack.pop_all()
        self.about = Built(contracts)

    @torch.inference_mode()
    def do(self, task: Task) -> list[Drawn]:
        portion = []
        for k, source in enumerate(self.work.sources):
            portion.append(self._drawn(k, source, task.request))
            if self.work.heard:
                self.work.heard(task.request.B)
        return portion

    def close(self) -> None:
        self._stack.close()

    def _drawn(self, k: int, source: Source, asked: Request) -> Drawn:
        models, request = self.work.models, source.request(asked)
        trace, seconds = timed(partial(self._decoded, k, source, request), models.device)
        if isinstance(trace, Judgement):
            trace = trace.whole_trace or trace
        if isinstance(trace, Judgement):
            return Drawn.nothing(str(trace.defects[0]) if trace.defects else "the decoder gave no trace")
        if source.factory and (defect := malformed(models, request, trace)) is not None:
            return Drawn.nothing(str(defect))
        if source.factory and trace.law_BLV is not None:
            noise, pyramid = models.noise(request), models.pyramid
            if (wrong := undrawn(trace.law_BLV, trace.tokens_BL, noise, pyramid)) is not None:
                row, draw, why = wrong
                return Drawn.nothing(f"image {request.addresses[row][1]}, draw {draw}: {why}")
        features_BD, classes_B = self.features(models.vae.decode(trace.f_hat_BCPP.to(models.vae.dtype)))
        if not bool(torch.isfinite(features_BD).all()):
            return Drawn.nothing("non-finite images")
        recognised_B = torch.zeros(0, dtype=torch.int64) if classes_B is None else classes_B.cpu()
        calls_B = torch.tensor(list(trace.target_calls), dtype=torch.int64)
        # sequential decoding by the target under the very request is what nats are against
        is_law = not source.factory and trace.law_BLV is None
        nats_BX = torch.zeros(0) if is_law else nats_of(models, self.budget, asked, trace)
        return Drawn(features_BD.float().cpu(), recognised_B, calls_B, nats_BX, seconds)

    def _decoded(self, k: int, source: Source, request: Request) -> Trace | Judgement:
        models = self.work.models
        if k in self._own:
            return self._own[k].decode(request, models.noise(request))
        if k in self._runners:
            try:
                return self._runners[k].decode(0, request)
            except InputError as error:
                raise InputError("implementation", source.name, f"refuses the request ({error})", "drop it") from None
        network = models.draft if source.draft else models.target
        trace = sample_sequential(network, models.vae, request, models.noise(request))
        if source.draft:  # another law than the target's
            by_scale = [(si, trace.shown.guided_BLV[:, models.pyramid.draws.span(si)]) for si in models.pyramid]
            laws = [filter_logits(guided_BlV, *request.filter(si)).softmax(-1) for si, guided_BlV in by_scale]
            return replace(trace, law_BLV=torch.cat(laws, 1), target_calls=[0] * request.B)
        return trace
