"""What a policy saves and what it costs: target passes and rows against the distance from sequential decoding.

Every policy meets the same images of digits under the same numbers; counts and distances are means over all of them,
beside two yardsticks: the draft's own image, and another seed's image of the same label.

    python -m scripts.policy_costs --device cuda --batch 200     # writes docs/measured/policies.json, table and picture
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from harness import ModelPair, Request, Trace, load_digits
from harness.files import compact, write_whole
from harness.judge import Distance, image_distances
from harness.provenance import versions
from harness.quality import DRAFT, ELSEWHERE, portions
from harness.reference.sequential import sample_sequential
from harness.rounding import precision
from harness.speculative import parse_policy, policy_speculates
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from scripts.pages import DOCS, SIZE, replaced_parts, svg

DISTANCES = ("tokens", "f_hat", "pixels")
EVERY_LENGTH = ("coupled", "greedy", "rejection", "coupled-match:0.5", "match:0.5", "match:0.5+partial",
                "topk-match:5:0.5", "kl:0.1", "kl:0.5")  # fmt: skip
ONE_LENGTH = (*(f"collaborative:{n}" for n in (2, 3, 5, 7)), *(f"code:{n}" for n in range(4, 10)),
              *(f"handoff:{n}" for n in (1, 3, 5, 7, 9)))  # fmt: skip


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

    def add(self, models: ModelPair, actual: Trace, expected: Trace) -> None:
        """Count a batch, and its distance from `expected`."""
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
    models: ModelPair, requests: Sequence[Request], settings: Sequence[tuple[str, int]]
) -> list[PolicyRow]:
    """Decode every request under every (policy, draft_len); yardsticks first. Raises `InputError` for odd settings."""
    policies = [parse_policy(text) for text, _ in settings]
    decoders = [
        SpeculativeDecoder(models, DecoderOptions(length, policy=policy, keep_intermediates=False))
        for policy, (_, length) in zip(policies, settings, strict=True)
    ]
    named = zip(policies, settings, strict=True)
    rows = [PolicyRow(policy.name, policy.contract.letter, str(length)) for policy, (_, length) in named]
    draft_row, other_row = PolicyRow(DRAFT), PolicyRow("another seed")
    for request in requests:
        usual = _sequential(models, request)
        greedy = _sequential(models, request, greedy=True) if any(policy.greedy for policy in policies) else usual
        draft = _sequential(replace(models, target=models.draft), request)
        draft.draft_rows, draft.target_rows = draft.target_rows, [0] * request.B
        draft.target_calls = [0] * request.B
        draft_row.add(models, draft, usual)
        other_row.add(models, _sequential(models, replace(request, seed=request.seed + ELSEWHERE)), usual)
        for policy, decoder, row in zip(policies, decoders, rows, strict=True):
            row.add(models, decoder.decode(request, models.noise(request)), greedy if policy.greedy else usual)
    return [draft_row, other_row, *rows]


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
    """Return the table, and a sentence on every policy whose scales were judged one by one."""
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


def policies_chart(rows: Sequence[PolicyRow]) -> Figure:
    """Draw target calls against distance: a line a policy, a dot a draft length, dashes for rows without a contract."""
    figure = Figure(SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="mean target calls an image", ylabel="mean |pixel difference| from sequential")
    axes.set_prop_cycle(color=colormaps["tab20"](range(20)))  # there are more policies than default colours
    for name, group in groupby((row for row in rows if row.contract), _family):
        points = [(row.mean("target_calls"), row.mean("pixels")) for row in group]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, clip_on=False)
    for row in rows:
        if not row.contract:
            axes.axhline(row.mean("pixels"), color="gray", linestyle="--")
            axes.annotate(row.policy, (0, row.mean("pixels")), textcoords="offset points", xytext=(4, 4))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper")
    return figure


def _family(row: PolicyRow) -> str:
    """Policies that differ by ENTRY share a line."""
    name, _, rest = row.policy.partition(":")
    return f"{name}:ENTRY" if name in ("handoff", "collaborative", "code") and rest else row.policy


def policies_document(models: str, device: str, rows: list[PolicyRow]) -> bytes:
    """Return the rows as JSON, with what made them."""
    columns = [{name: [float(f"{getattr(d, name):.7g}") for d in row.distances] for name in DISTANCES} for row in rows]
    listed = [{**vars(row), "distances": distances} for row, distances in zip(rows, columns, strict=True)]
    header = {"models": models, "device": device, "precision": precision(), "versions": versions()}
    return compact({**header, "rows": listed})


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write file, table and picture. Raises `InputError` for bad settings, before anything is decoded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=200, help="of every setting, labels in turn")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--policies", default=",".join(EVERY_LENGTH), help="at every draft length, by commas")
    parser.add_argument("--once", default=",".join(ONE_LENGTH), help="policies at draft length 5 alone")
    parser.add_argument("--draft-len", default="1,2,3,5,10")
    parser.add_argument("--json", type=Path, default=DOCS / "measured" / "policies.json")
    parser.add_argument("--into", type=Path, default=DOCS / "policies.md")
    parser.add_argument("--picture", type=Path, default=DOCS / "policies.svg")
    given = parser.parse_args(words)
    lengths = [int(text) for text in given.draft_len.split(",")]
    settings = [(policy, length) for policy in filter(None, given.policies.split(",")) for length in lengths]
    settings += [(policy, 5) for policy in filter(None, given.once.split(","))]
    replaced_parts(given.into, {"table": ""})  # a page without markers is refused before the work
    models = load_digits().in_mode(given.device, "float32")
    requests = portions(given.images, given.batch, range(models.target.config.classes), Request((0,), 0, 1.5))
    rows = measure_policies(models, requests, settings)
    title = f"{given.images} images, cfg 1.5, {models.title} on {models.device.type}, float32"
    table = f"{title}\n\n{policy_markdown(rows)}"
    print(table)
    write_whole(given.json, policies_document(models.title, str(models.device), rows))
    write_whole(given.into, replaced_parts(given.into, {"table": table}).encode())
    write_whole(given.picture, svg(policies_chart(rows)))


if __name__ == "__main__":
    main()
