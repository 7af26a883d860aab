"""The speed bench: what is timed is right, and the floor is counted by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from harness.bench._speed import Bench, Machine
from harness.commands.bench import settings_for
from harness.errors import HarnessError, InputError
from harness.models.network import Network
from harness.protocol._request import Request
from harness.speculative._policies import parse_policy
from harness.speculative.parts import PARTS
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from tests.helpers import command, some
from tests.unit.bench.measured import MODELS, bench

SIDES = ("draft", "target")
REQUESTS = [Request((0, 1), 0), Request((1, 2), 1)]


@pytest.mark.parametrize(("rate", "calls"), [(1.0, [1, 1]), (0.0, [3, 3])])
def test_imposed_rates_decide_what_stands(rate: float, calls: list[int]):
    decoder = SpeculativeDecoder(MODELS, DecoderOptions(3, policy=parse_policy(f"imposed:{rate}", bench=True)))
    trace = decoder.decode(REQUESTS[0], MODELS.noise(REQUESTS[0]))
    assert trace.target_calls == calls
    assert bool((trace.scale_writes_BS == 1).all())


def test_an_imposed_rate_is_kept_on_average():
    policy = parse_policy("imposed:0.3", bench=True)
    decoder = SpeculativeDecoder(MODELS, DecoderOptions(1, policy=policy))
    request = Request(tuple(k % 3 for k in range(200)), 0)
    trace = decoder.decode(request, MODELS.noise(request))
    stood = [turn.accepted for rounds in trace.rounds for turn in rounds]
    assert len(stood) == 600
    assert abs(sum(stood) / 600 - 0.3) < 0.08  # four standard deviations


@pytest.mark.parametrize("text", ["imposed", "imposed:", "imposed:2", "imposed:-1", "imposed:nan"])
def test_a_rate_outside_its_range_is_refused(text: str):
    with pytest.raises(InputError, match=r"policy=imposed.*RATE must be a number in \[0, 1\]; pass --policies imposed"):
        parse_policy(text, bench=True)


def test_the_rows_measure_every_setting():
    rows = list(bench().rows(REQUESTS, [("imposed:1", 2), ("imposed:1", 3), ("coupled", 3)]))
    assert [(row.policy, row.draft_len, row.batch) for row in rows] == [
        ("imposed:1", 2, 2), ("imposed:1", 3, 2), ("coupled", 3, 2),
    ]  # fmt: skip
    assert [row.target_calls for row in rows[:2]] == [2, 1]
    for row in rows[:2]:
        assert min(row.ms, row.reference_ms, row.draft_passes_ms, row.target_passes_ms, row.floor_ms) > 0
        assert row.target.passes_ms < 2 * row.target.ms  # a part of it, and this machine is noisy
    assert rows[0].floor_ms > rows[1].floor_ms  # two target passes read the weights twice


class Listening:
    """A machine that remembers the passes whose floor it was asked for: side, begin, first, last."""

    def __init__(self) -> None:
        self.passes: list[tuple[str, int, int, int]] = []

    def pass_ms(self, network: Network, R: int, begin: int, first: int, last: int) -> float:
        self.passes.append(("draft" if network is MODELS.draft else "target", begin, first, last))
        return 0.0


def passes(request: Request, settings: list[tuple[str, int]], bonus: bool) -> list[list[tuple[str, int, int, int]]]:
    """Return the passes that the bench counts for every setting; those of sequential decoding come before the first."""
    machine, found = Listening(), []
    for _ in Bench(MODELS, False, 1, machine, bonus).rows([request], settings):
        found.append(machine.passes)
        machine.passes = []
    alone = [(side, si, si, si) for side in ("target", "draft") for si in MODELS.pyramid]
    assert found[0][: len(alone)] == alone
    return [found[0][len(alone) :], *found[1:]]


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("seed", some(4, range(4)))
def test_the_passes_of_a_decode_are_all_counted(seed: int, bonus: bool):
    pyramid, request = MODELS.pyramid, Request((0,), seed)
    policies = ("imposed:0", "imposed:0.5", "imposed:1", "coupled", "handoff:2", "collaborative:1", "code:1", "code:3")
    settings = [(policy, draft_len) for policy in policies for draft_len in (1, 2, 3)]
    for (policy, draft_len), turns in zip(settings, passes(request, settings, bonus), strict=True):
        decoder = SpeculativeDecoder(MODELS, DecoderOptions(draft_len, bonus, parse_policy(policy, bench=True)))
        trace = decoder.decode(request, MODELS.noise(request))
        rows = {side: sum(pyramid.end(t[3]) - pyramid.begin(t[1]) for t in turns if t[0] == side) for side in SIDES}
        assert rows == {"draft": trace.draft_rows[0], "target": trace.target_rows[0]}
        assert sum(side == "target" for side, *_ in turns) == trace.target_calls[0]
        assert sum(side == "draft" for side, *_ in turns) == trace.draft_calls[0]


def test_the_draft_catches_up_behind_a_bonus_scale():
    # drafts scale 0, finishes 0 and 1; drafts scale 2 from a cache that lacks scale 1
    assert passes(REQUESTS[0], [("imposed:1", 1)], bonus=True) == [
        [("draft", 0, 0, 0), ("target", 0, 0, 1), ("draft", 1, 2, 2), ("target", 2, 2, 2)]
    ]
    (row,) = bench(bonus=True).rows(REQUESTS[:1], [("imposed:1", 1)])
    assert (row.target_calls, row.kept) == (2, 1.0)


def test_the_share_that_stood_is_what_the_coins_came_to():
    (row,) = bench().rows([Request((0,), seed) for seed in range(3)], [("imposed:0.5", 3)])
    # without a bonus scale each of an image's three coins is judged once
    assert 0 <= row.kept <= 1
    assert row.kept * 9 == pytest.approx(round(row.kept * 9))


def test_a_wrong_decoder_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    def doubled(*given: object) -> torch.Tensor:
        return 2 * PARTS.guide(*given)

    wrong = partial(SpeculativeDecoder, parts=replace(PARTS, guide=doubled))
    monkeypatch.setattr("harness.speculative.sampler.SpeculativeDecoder", wrong)
    with pytest.raises(HarnessError, match="sequential decoding of this mode is wrong, so nothing was timed"):
        list(bench().rows(REQUESTS, [("imposed:1", 2)]))


def test_the_floor_is_bytes_or_operations():
    network = MODELS.target
    D, depth, V, C = network.config.D, network.config.depth, network.config.V, network.config.C
    weights = 12 * depth * D * D + V * D + C * D
    # scales 1..2 of two rows: 13 positions behind 1; 4 see 5 columns, 9 see 14
    moved = 4 * weights + 2 * 2 * depth * D * (14 + 13) * 4 + 2 * 13 * V * 4
    operations = 2 * 2 * 13 * weights + 4 * 2 * (4 * 5 + 9 * 14) * D * depth
    assert Machine("m", 1.0, math.inf).pass_ms(network, 2, 1, 1, 2) == pytest.approx(1e3 * moved)
    assert Machine("m", math.inf, 1.0).pass_ms(network, 2, 1, 1, 2) == pytest.approx(1e3 * operations)
    # logits of scale 2 alone: the 4 positions of scale 1 have none
    assert Machine("m", 1.0, math.inf).pass_ms(network, 2, 1, 2, 2) == pytest.approx(1e3 * (moved - 2 * 4 * V * 4))
    fewer = operations - 2 * 2 * 4 * V * D
    assert Machine("m", math.inf, 1.0).pass_ms(network, 2, 1, 2, 2) == pytest.approx(1e3 * fewer)


def test_the_machine_is_measured():
    machine = Machine.measure(torch.device("cpu"), torch.float32)
    assert 1e8 < machine.bandwidth < 1e13
    assert 1e8 < machine.rate < 1e15
    assert "GB/s copied" in str(machine)


def test_target_first_is_timed_as_its_passes_are():
    machine, S = Listening(), MODELS.pyramid.S
    (row,) = Bench(MODELS, False, 1, machine).rows(REQUESTS[:1], [("code:2", 1)])  # type: ignore[arg-type]
    assert (row.target_calls, math.isnan(row.kept)) == (2, True)
    # the draft's first pass computes all scales to its own, with logits of that one
    due = [("target", 0, 0, 0), ("target", 1, 1, 1), ("draft", 0, 2, 2)]
    assert machine.passes[2 * S :] == due
    assert row.allowed == pytest.approx(row.target.passes_ms / (row.draft_passes_ms + row.target_passes_ms))


def test_a_policy_that_no_draft_length_touches_is_timed_once():
    assert settings_for("code:5,imposed:1", "2,5", 1) == [("code:5", 2), ("imposed:1", 2), ("imposed:1", 5)]


@pytest.mark.slow
def test_the_command_writes_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    options = ("--policies", "imposed:1,coupled", "--draft-len", "5", "--repeats", "1", "--json", "speed.json")
    assert command(monkeypatch, "bench", *options, "--quiet") == 0
    assert "digits on cpu, float32, kernel by kernel" in capsys.readouterr().out
    run = json.loads(Path("speed.json").read_text())
    assert (run["models"], [row["policy"] for row in run["rows"]]) == ("digits", ["imposed:1", "coupled"])
    assert min(row["ms"] for row in run["rows"]) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bench", "--repeats", "0"), "repeats=0: must be at least 1"),
        (("bench", "--batches", "0"), "batches=0: must all be at least 1"),
        (("bench", "--policies", "imposed:3"), "policy=imposed:3: RATE must be"),
        (("bench", "--policies", "guess"), "policy=guess: "),
        (("bench", "--draft-len", "11"), "draft_len=11: "),
        (("bench", "--graphs"), "graphs=True: need a CUDA device"),
        (("bench", "--json", "nowhere/a.json"), "json=nowhere/a.json: "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *arguments) == 2
    captured = capsys.readouterr().err.strip()
    assert captured.startswith(f"error: {said}")
    assert len(captured.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
