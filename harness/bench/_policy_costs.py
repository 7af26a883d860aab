"""What a policy saves and what it costs: target passes and rows against the distance from sequential decoding.

Promise: every policy meets the same images under the same numbers; counts and distances are means over all of them,
beside two yardsticks: the draft's own image, and another seed's image of the same label.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace

import torch

from harness.judge import Distance, image_distances
from harness.models import ModelPair
from harness.pool import ALONE, Died, Parallelism, WorkerError, employ
from harness.protocol import Request, Trace
from harness.quality import DRAFT, ELSEWHERE
from harness.reference.sequential import sample_sequential
from harness.speculative import parse_policy, policy_speculates
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder


@dataclass
class PolicyRow:
    """One policy at one draft length; counts and distances of every image, in order."""

    policy: str  # text form, or the name of a yardstick
    contract: str = ""  # its letter; empty for a yardstick
    draft_len: str = ""  # text form; empty where it means nothing
    target_calls: list[int] = field(default_factory=list)  # target forward passes
    target_rows: list[int] = field(default_factory=list)  # positions that the target computed
    draft_rows: list[int] = field(default_factory=list)  # positions that the draft computed
    # from sequential decoding of the same numbers (under `greedy`: from greedy sequential decoding)
    distances: list[Distance] = field(default_factory=list)
    accepted_tokens: list[int] = field(default_factory=list)  # drafted tokens that were accepted
    scales_per_round: Counter[int] = field(default_factory=Counter)  # histogram, final scales -> rounds
    judged: Counter[int] = field(default_factory=Counter)  # scale -> how often it was judged on final earlier scales
    whole: Counter[int] = field(default_factory=Counter)  # scale -> how often it was accepted then

    def mean(self, name: str) -> float:
        """Return the mean of a count, or of a component of the distance."""
        if name in ("tokens", "f_hat", "pixels"):
            return statistics.fmean(getattr(distance, name) for distance in self.distances)
        return statistics.fmean(getattr(self, name))

    def join(self, other: PolicyRow) -> None:
        for part in fields(self):
            value, more = getattr(self, part.name), getattr(other, part.name)
            if isinstance(value, list):
                value += more
            elif isinstance(value, Counter):
                value.update(more)

    def add(self, models: ModelPair, actual: Trace, expected: Trace) -> None:
        self.target_calls += actual.target_calls
        self.target_rows += actual.target_rows
        self.draft_rows += actual.draft_rows or [0] * len(actual.tokens_BL)
        self.distances += image_distances(models, actual, expected)
        self.accepted_tokens += actual.total("accepted_tokens")
        self.scales_per_round.update(actual.scales_per_round())
        for turn in actual.turns:
            accepted = range(turn.first, turn.first + turn.accepted)
            self.whole.update(accepted)
            self.judged.update([*accepted, turn.first + turn.accepted] if turn.corrected else accepted)


def measure_policies(
    models: ModelPair,
    requests: Sequence[Request],
    settings: Sequence[tuple[str, str]],
    progress: Callable[[], None] = lambda: None,
    workers: Parallelism = ALONE,
) -> list[PolicyRow]:
    """Decode every request under every setting (policy and draft length, in text form); yardsticks first."""
    crew = employ(workers, torch.device(workers.device or models.device), len(requests))
    counted: dict[Request, list[PolicyRow]] = {}
    with closing(crew.open(PolicyBench(models, settings))) as pool:
        for request, rows in pool.map(requests):
            if isinstance(rows, Died):
                raise WorkerError(f"batch={request.B}: {rows.why}; pass a smaller --batch, or fewer --workers")
            counted[request] = rows
            progress()
        total: list[PolicyRow] = pool.about
    for request in requests:
        for row, more in zip(total, counted[request], strict=True):
            row.join(more)
    return total


class PolicyBench:
    """What a worker of a bench gets, networks and settings in text form, and once it is open decodes requests by."""

    def __init__(self, models: ModelPair, settings: Sequence[tuple[str, str]]) -> None:
        self.models, self.settings = models, settings

    def open(self) -> PolicyBench:
        """Build the decoders. Raises `InputError` where a setting does not fit."""
        self.policies = [parse_policy(text) for text, _ in self.settings]
        self.decoders = [
            SpeculativeDecoder(self.models, DecoderOptions(length, policy=policy, keep_intermediates=False))
            for policy, (_, length) in zip(self.policies, self.settings, strict=True)
        ]
        self.about = self.rows()
        return self

    def rows(self) -> list[PolicyRow]:
        """Return rows that count nothing yet."""
        policies = zip(self.policies, self.settings, strict=True)
        rows = [PolicyRow(policy.name, policy.contract.letter, length) for policy, (_, length) in policies]
        return [PolicyRow(DRAFT), PolicyRow("another seed"), *rows]

    def do(self, request: Request) -> list[PolicyRow]:
        models, rows = self.models, self.rows()
        draft_row, other_row, *policy_rows = rows
        usual = _sequential(models, request)
        greedy = _sequential(models, request, greedy=True) if any(policy.greedy for policy in self.policies) else usual
        draft = _sequential(replace(models, target=models.draft), request)
        draft.draft_rows, draft.target_rows = draft.target_rows, [0] * request.B
        draft.target_calls = [0] * request.B
        draft_row.add(models, draft, usual)
        other_row.add(models, _sequential(models, replace(request, seed=request.seed + ELSEWHERE)), usual)
        for policy, decoder, row in zip(self.policies, self.decoders, policy_rows, strict=True):
            row.add(models, decoder.decode(request, models.noise(request)), greedy if policy.greedy else usual)
        return rows

    def close(self) -> None:
        """Nothing is left to end."""


def _sequential(models: ModelPair, request: Request, greedy: bool = False) -> Trace:
    trace = sample_sequential(models.target, models.vae, request, models.noise(request), greedy=greedy)
    trace.intermediates = None
    return trace


HEADS = (
    "policy", "contract", "draft_len", "target calls", "target rows", "draft rows", "tokens that differ", "pixels",
    "rounds by final scales",
)  # fmt: skip


def policy_cells(row: PolicyRow) -> list[str]:
    """Return means and the histogram of a row, under `HEADS`."""
    histogram = " ".join(f"{scales}:{count}" for scales, count in sorted(row.scales_per_round.items()))
    counts = [f"{row.mean('target_calls'):.2f}", f"{row.mean('target_rows'):.0f}", f"{row.mean('draft_rows'):.0f}"]
    distance = [f"{row.mean('tokens'):.3f}", f"{row.mean('pixels'):.4f}"]
    return [row.policy, row.contract or "-", row.draft_len or "-", *counts, *distance, histogram or "-"]


def policy_markdown(rows: Sequence[PolicyRow]) -> str:
    lines = [f"| {' | '.join(HEADS)} |", "|---|---|---|---:|---:|---:|---:|---:|---|"]
    lines += [f"| {' | '.join(policy_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n" + "".join(f"\n{text}\n" for text in acceptance_sentences(rows))


def acceptance_sentences(rows: Sequence[PolicyRow]) -> list[str]:
    """Return a sentence on every policy whose scales were judged one by one."""
    return [_acceptance(row) for row in rows if row.draft_len == "1" and policy_speculates(row.policy)]


def _acceptance(row: PolicyRow) -> str:
    """Return how often each scale is accepted, and each token, when every scale is judged by itself."""
    scales = " ".join(f"{row.whole[si] / count:.2f}" for si, count in sorted(row.judged.items()))
    tokens = sum(row.accepted_tokens) / sum(row.draft_rows)
    return f"Scale by scale, `{row.policy}` keeps a drafted scale in a share of {scales}; tokens: {tokens:.3f}."
