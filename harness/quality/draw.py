"""Drawing: batch after batch of every source becomes features, and no image is kept.

Promise: what comes of a portion depends on portion, weights and machine alone, whoever draws it; a decoder under test
lives where `verify` puts it, and one that fails is a source that failed, never a crash.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from harness.clock import timed
from harness.decoders.factory import is_own
from harness.decoders.runner import Built, Runner, claimed_contract, start_runner
from harness.decoders.terms import Terms
from harness.errors import InputError
from harness.judge.form import malformed
from harness.judge.verdict import Judgement
from harness.models.pair import ModelPair
from harness.protocol.contract import Contract
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.quality.features import Features
from harness.quality.sources import NONE, Source
from harness.reference.sequential import sample_sequential
from harness.runs.plan import Task
from harness.speculative.policies import parse_policy
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder


@dataclass(frozen=True)
class Drawn:
    """What is kept of one portion of one source; on the CPU.

    Args:
        features_BD: float32; none where the decode failed.
        classes_B: what was recognised, int64; empty where nothing is.
        calls_B: target forward passes, int64.
        tokens_BL: int16 or int32; empty where they are not kept.
        seconds: of the decode.
        failed: why the decoder gave no image, one clause; empty = it did.
    """

    features_BD: Tensor
    classes_B: Tensor
    calls_B: Tensor
    tokens_BL: Tensor
    seconds: float = 0.0
    failed: str = ""

    @classmethod
    def nothing(cls, why: str) -> Drawn:
        """Return the record of a failure: why."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(torch.zeros(0, 0), none, none, torch.zeros(0, 0, dtype=torch.int16), failed=why)


@dataclass(frozen=True)
class DrawWork:
    """What a worker gets.

    Args:
        models: networks.
        features: of images.
        sources: all that is drawn.
        most: images of the largest portion.
        terms: where decoders under test run.
    """

    models: ModelPair
    features: Features
    sources: tuple[Source, ...]
    most: int
    terms: Terms = Terms()  # noqa: RUF009  # frozen

    def open(self) -> Artist:
        """Build the decoders. Raises `InputError` where one refuses."""
        return Artist(self)


class Artist:
    """Draws portions; holds the decoders."""

    def __init__(self, work: DrawWork) -> None:
        self.work, self.features = work, work.features.to(work.models.device)
        # sequential decoding by the target claims its own tokens, by the draft nothing
        contracts = ["" if source.draft else Contract.TOKENS.letter for source in work.sources]
        self._own: dict[int, SpeculativeDecoder] = {}
        self._runners: dict[int, Runner] = {}
        with ExitStack() as stack:
            for k, source in enumerate(work.sources):
                if source.factory == NONE:
                    continue
                if is_own(source.factory):
                    settings, policy = source.settings, parse_policy(source.settings.policy)
                    options = DecoderOptions(settings.draft_len, settings.bonus, policy, keep_intermediates=False)
                    self._own[k], contracts[k] = SpeculativeDecoder(work.models, options), policy.contract.letter
                    continue
                runner = start_runner(work.models, source.factory, [source.settings], work.most, work.terms)
                stack.callback(runner.close)
                self._runners[k], contracts[k] = runner, claimed_contract(runner.contracts[0], work.terms).letter
            self._stack = stack.pop_all()
        self.about = Built(contracts)

    @torch.inference_mode()
    def do(self, task: Task) -> list[Drawn]:
        """Draw one portion of every source."""
        return [self._drawn(k, source, source.request(task.request)) for k, source in enumerate(self.work.sources)]

    def close(self) -> None:
        """End the decoders' processes."""
        self._stack.close()

    def _drawn(self, k: int, source: Source, request: Request) -> Drawn:
        models = self.work.models
        trace, seconds = timed(partial(self._decoded, k, source, request), models.device)
        if isinstance(trace, Judgement):
            return Drawn.nothing(str(trace.defects[0]) if trace.defects else "the decoder gave no trace")
        if (defect := malformed(models, request, trace)) is not None:
            return Drawn.nothing(str(defect))
        features_BD, classes_B = self.features(models.vae.decode(trace.f_hat_BCPP.to(models.vae.dtype)))
        if not bool(torch.isfinite(features_BD).all()):
            return Drawn.nothing("non-finite images")
        small = torch.int16 if models.target.config.V <= 2**15 else torch.int32
        tokens_BL = trace.tokens_BL.to("cpu", small) if source.keeps_tokens else torch.zeros(request.B, 0, dtype=small)
        return Drawn(
            features_BD.float().cpu(),
            torch.zeros(0, dtype=torch.int64) if classes_B is None else classes_B.cpu(),
            torch.tensor(list(trace.target_calls), dtype=torch.int64),
            tokens_BL,
            seconds,
        )

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
        return replace(trace, intermediates=None, target_calls=[0] * request.B) if source.draft else trace
