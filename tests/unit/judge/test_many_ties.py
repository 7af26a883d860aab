"""Many ties together: a right decoder is not accused, a wrong one is, and which ties are rejected."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from harness import ModelPair, SeededNoise, Settings, Trace, Verdict
from harness.judge import _ties as many_ties
from harness.judge._ties import (
    ALARM,
    FEW,
    MANY,
    THETAS,
    Tail,
    costs_N3,
    log_e,
    surprise_N,
    too_many,
    weigh_decode,
    weigh_run,
)
from harness.judge._verdict import Divergence, Judgement
from harness.protocol._request import Request
from harness.rounding._budget import Allowance, Budget
from harness.speculative.sampler import build_decoder
from tests.helpers import digits, verify_here
from tests.unit.judge.test_tokens import evidence

RATIO = 7.0  # largest error over the usual one: digits in float32


def simulated(
    generator: torch.Generator, usual: float, wrong: int = 0, N: int = 120, V: int = 32
) -> tuple[Tensor, int]:
    """Draw N tokens by a decoder whose logits are off by `usual`; `wrong` of them under another seed's numbers.

    Returns:
        Evidence less cost for every θ, and the number of tokens that are not the reference's.
    """

    def exponential(rows: int) -> Tensor:
        return torch.empty(rows, V, dtype=torch.float64).exponential_(generator=generator)

    logits_NV = 3 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    scores_NV = logits_NV - exponential(N).log()
    error_NV = usual * torch.randn(N, V, generator=generator, dtype=torch.float64).clamp(-RATIO, RATIO)
    drawn_N = (scores_NV + error_NV).argmax(1)
    drawn_N[:wrong] = (logits_NV[:wrong] - exponential(wrong).log()).argmax(1)
    margin_N = scores_NV.amax(1) - scores_NV.gather(1, drawn_N[:, None])[:, 0]
    # a budget is twice what was measured
    tail = Tail.of(Allowance(2 * RATIO * usual, 2 * usual, 0.0, ""))
    evidence_3 = surprise_N(margin_N, tail).sum() * margin_N.new_tensor(THETAS)
    return evidence_3 - costs_N3(scores_NV, tail).sum(0), int((margin_N > 0).sum())


def alarms(count: int, usual: float, wrong: int = 0) -> tuple[int, int]:
    """Return how many of `count` runs raise the alarm, and the number of differing tokens in all of them."""
    generator, found, ties = torch.Generator().manual_seed(0), 0, 0
    for _ in range(count):
        weights, differing = simulated(generator, usual, wrong)
        found, ties = found + int(too_many(weights)), ties + differing
    return found, ties


@pytest.mark.parametrize("usual", [3e-5, 0.01, 0.1, 0.3])
def test_a_right_decoder_is_not_accused(usual: float):
    found, ties = alarms(200, usual)
    assert found == 0
    assert (ties > 200) is (usual > 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("usual", [0.01, 0.1])
def test_ten_thousand_right_runs_raise_no_alarm(usual: float):
    assert alarms(10_000, usual)[0] == 0


@pytest.mark.parametrize(("usual", "wrong", "least"), [(3e-5, 3, 34), (0.01, 3, 32), (0.03, 6, 38), (0.1, 30, 38)])
def test_other_numbers_are_found_out(usual: float, wrong: int, least: int):
    assert alarms(40, usual, wrong)[0] >= least


def test_runs_add_up_to_what_none_of_them_shows():
    generator = torch.Generator().manual_seed(1)
    right = [simulated(generator, 0.1)[0] for _ in range(50)]
    assert not too_many(torch.stack(right).sum(0))
    biased = [simulated(generator, 0.1, wrong=8)[0] for _ in range(50)]
    assert int(too_many(torch.stack(biased)).sum()) < 25
    assert too_many(torch.stack(biased).sum(0))


def test_the_alarm_is_where_markov_puts_it():
    level_3 = torch.full((3,), math.log(1 / ALARM), dtype=torch.float64)
    assert not too_many(level_3)
    assert too_many(level_3 + 1e-9)
    assert not too_many(level_3 + 1e-9, looks=2)
    assert too_many(torch.stack((level_3, level_3 + 1e-9))).tolist() == [False, True]
    assert float(log_e(torch.tensor([0.0, -1e9, -1e9]).double())) == pytest.approx(math.log(1 / 3))


def test_an_e_value_has_expectation_at_most_one():
    generator = torch.Generator().manual_seed(2)
    weights_N3 = torch.stack([simulated(generator, 0.02)[0] for _ in range(500)])
    assert float(log_e(weights_N3).exp().mean()) <= 1


def test_the_tail_joins_the_usual_error_and_the_largest():
    assert Tail.of(Allowance(6.0, 1.0, 0.0, "")).power == 2  # a normal law reaches six times its usual error
    heavy = Tail.of(Allowance(20.0, 1.0, 0.0, ""))
    assert 1 < heavy.power < 2
    chance = 2 * math.exp(-0.5 * 20.0**heavy.power)
    assert chance == pytest.approx(1e-8)


def test_the_chance_of_a_gap_is_that_one_of_two_moves_by_half_of_it():
    tail = Tail(0.5, 2.0)
    found = tail.log_chance(torch.tensor([-1.0, 0.0, 3.0, 5.0, 1e9], dtype=torch.float64)).exp().tolist()
    assert found == pytest.approx([0.5, 0.5, 4 * math.exp(-4.5), 4 * math.exp(-12.5), 1e-300], rel=1e-12, abs=0)
    heavy = Tail(0.5, 1.5).log_chance(torch.tensor(4.0))
    assert heavy.exp().item() == pytest.approx(4 * math.exp(-0.5 * 4**1.5))


def test_a_draw_costs_what_its_rivals_may_flip():
    tail = Tail(0.5, 2.0)
    q, r = 4 * math.exp(-0.5 * 3.0**2), 4 * math.exp(-0.5 * 4.0**2)
    scores_NV = torch.tensor([[3.0, 0.0, -1.0], [-1.0, 2.0, -math.inf]])
    due = [(2 * q ** (1 - theta) - 2 * q) + (r ** (1 - theta) - r) for theta in (0.25, 0.5, 0.75)]
    floor = [1e-300 ** (1 - theta) for theta in (0.25, 0.5, 0.75)]
    total = costs_N3(scores_NV, tail).sum(0).tolist()
    assert total == pytest.approx([a + b for a, b in zip(due, floor, strict=True)], rel=1e-12)
    assert costs_N3(scores_NV[:, :1], tail).tolist() == [[0.0] * 3] * 2  # nobody to flip to


@pytest.mark.parametrize("rivals", [FEW - 2, FEW - 1, FEW, FEW + 1, 39, 3000])
def test_every_rival_within_reach_is_counted_however_many_there_are(rivals: int, monkeypatch: pytest.MonkeyPatch):
    """In bfloat16 on digits 52 and more of the nearest 64 tokens of 512 lie within reach; others lie far below."""
    monkeypatch.setattr(many_ties, "NUMBERS", 2 * (rivals + 50))  # several pieces
    tail = Tail(0.5, 2.0)
    gap_K = torch.linspace(0, 0.9 * tail.reach, rivals, dtype=torch.float64)
    scores_NV = torch.cat((torch.zeros(1).double(), -gap_K, torch.full((49,), -1e3).double())).repeat(5, 1)
    scores_NV = scores_NV[:, torch.randperm(rivals + 50, generator=torch.Generator().manual_seed(0))] + 7
    scores_NV[3] = torch.arange(rivals + 50.0) * -1e3  # nobody is near
    expected = [math.fsum(q ** (1 - theta) - q for q in tail.log_chance(gap_K).exp().tolist()) for theta in THETAS]
    for n, costs in enumerate(costs_N3(scores_NV, tail).tolist()):
        assert costs == pytest.approx([0.0] * 3 if n == 3 else expected, rel=1e-12), n
    assert FEW == 16


def test_what_is_out_of_reach_adds_next_to_nothing():
    """`NOTHING` states it: less than 1e-15 a rival, for every θ."""
    for power in (1.0, 1.4, 2.0):
        tail = Tail(0.5, power)
        chance = float(tail.log_chance(torch.tensor(tail.reach, dtype=torch.float64)).exp())
        assert chance == pytest.approx(1e-60)
        assert max(chance ** (1 - theta) - chance for theta in THETAS) < 1.001e-15


def test_ties_weigh_by_their_margins_and_filter_ties_nothing():
    tail = Tail(0.5, 2.0)
    due = [-math.log(4 * math.exp(-4.5)), -math.log(4 * math.exp(-8.0))]
    surprises = surprise_N(torch.tensor([3.0, 4.0, 0.0, -2.0]), tail).tolist()
    assert surprises == pytest.approx([*due, 0.0, 0.0], rel=1e-12)
    assert surprise_N(torch.tensor([]), tail).tolist() == []


def test_an_e_value_is_the_mean_over_theta_without_overflow():
    values = log_e(torch.tensor([[1.0, 2.0, 3.0], [1e6, 1e6, 1e6]]).double()).tolist()
    assert values == pytest.approx([math.log((math.e + math.e**2 + math.e**3) / 3), 1e6])


def test_an_error_without_a_tail_is_a_normal_one():
    assert Tail.of(Allowance(1.0, 1.0, 0.0, "")) == Tail(1.0, 2.0)
    assert Tail.of(Allowance(0.5, 1.0, 0.0, "")) == Tail(1.0, 2.0)
    assert Tail.of(Allowance(1.001, 1.0, 0.0, "")) == Tail(1.0, 2.0)
    assert Tail.of(Allowance(1e9, 1.0, 0.0, "")) == Tail(1.0, 1.0)


class BlindAtOneScale:
    """A decoder that shows no tensors and takes another seed's numbers at one scale."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings, scale: int) -> None:
        self.models, self.scale = models, scale
        self.inner = build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        trace = self.inner.decode(request, OtherAt(noise, self.models, request, self.scale))
        trace.intermediates = None
        return trace


class OtherAt:
    """The true numbers but at one scale."""

    def __init__(self, noise: SeededNoise, models: ModelPair, request: Request, scale: int) -> None:
        self.noise, self.scale = noise, scale
        self.other = models.noise(Request(request.labels, request.seed + 1, images=request.images))

    def labels(self, classes: int) -> Tensor:
        return self.noise.labels(classes)

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        return (self.other if si == self.scale else self.noise).exponential(si, stream, reader)

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        return self.noise.uniform(si, stream, reader)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [-1, 0, 1])
def test_other_numbers_at_one_scale_are_no_ties_in_bfloat16(scale: int):
    models, request = digits().to("cpu", torch.bfloat16), Request((0, 1, 2, 3), 0)
    result = verify_here(models, lambda m, s: BlindAtOneScale(m, s, scale), [Settings(5)], [request])
    assert result.verdict is (Verdict.TIE if scale < 0 else Verdict.DEFECT)
    if scale >= 0:
        assert {d.scale for j in result.settings[0].judgements for d in j.defects} == {scale}


S, LOOKS = 3, 2
LEVEL = math.log(LOOKS * (S + 1) / ALARM)  # each scale and the run, in every setting
ONE = Request((0,), cfg=1.0)
OTHER = Request((1,), cfg=4.0)
WHOLE = "the {} ties of the run together are beyond rounding"


def tie(si: int, margin: float, position: int = 0) -> Divergence:
    return Divergence("tie", "fine", 3, 0, scale=si, position=position, margin=margin)


def weighed(*ties: Divergence, weighs: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Judgement:
    """Return a judgement whose ties weigh so much by scale, whatever θ is: the mean over θ is that number."""
    return Judgement(1, ties=list(ties), surprise=[[weight] * 3 for weight in weighs])


def usual(request: Request) -> list[Allowance]:
    return [Allowance(9.0, 9.0, 0.0, "by hand")] * S


def run(*judgements: Judgement, looks: int = LOOKS) -> None:
    weigh_run([(ONE, judgement) for judgement in judgements], usual, looks)


@pytest.mark.parametrize(("share", "alarm"), [(0.999, False), (1.001, True)])
def test_one_scale_of_all_images_together_is_too_much(share: float, alarm: bool):
    low = share * LEVEL / 2
    stay, two, no_tie = [tie(1, 0.0), tie(1, -1.0), tie(2, 0.5), tie(0, 0.5)], [tie(1, 0.5), tie(1, 2.0)], weighed()
    first = weighed(*stay, two[0], weighs=(-99.0, low, -99.0))
    second = weighed(two[1], weighs=(-99.0, low, -99.0))
    run(first, no_tie, second)
    assert (first.ties, second.ties) == (stay if alarm else [*stay, two[0]], [] if alarm else [two[1]])
    for judgement, margin in ((first, 0.5), (second, 2.0)):
        assert [(d.component, d.detail, d.scale, d.margin) for d in judgement.defects] == (
            [("unknown", MANY, 1, margin)] if alarm else []
        )
        assert judgement.wrong_tokens == alarm
    assert (no_tie.defects, no_tie.wrong_tokens) == ([], 0)


@pytest.mark.parametrize(("share", "alarm"), [(0.999, False), (1.001, True)])
def test_a_run_may_be_too_much_where_no_scale_is_and_its_last_tie_says_so(share: float, alarm: bool):
    low = share * LEVEL / 9
    ties = [[tie(si, 0.1, 3 * b + si) for si in range(S)] for b in range(3)]
    made = [weighed(*of, weighs=(low, low, low)) for of in ties]
    made.append(weighed())
    run(*made)
    assert [judgement.ties for judgement in made] == [*ties[:2], ties[2][:2] if alarm else ties[2], []]
    assert [(j.wrong_tokens, len(j.defects)) for j in made] == [(0, 0), (0, 0), (alarm, alarm), (0, 0)]
    if alarm:
        (defect,) = made[2].defects
        assert (defect.component, defect.detail, defect.position) == ("unknown", WHOLE.format(9), 8)


def test_a_run_without_a_tie_that_is_left_has_nothing_to_reject():
    only = weighed(tie(1, 0.5), weighs=(9.0, 99.0, 9.0))
    run(only)  # the scale's alarm takes it, the run's finds none
    assert ([d.detail for d in only.defects], only.ties, only.wrong_tokens) == ([MANY], [], 1)
    no_tie = weighed(weighs=(99.0, 99.0, 99.0))
    run(no_tie)
    assert (no_tie.defects, no_tie.wrong_tokens) == ([], 0)


def test_what_weighs_nothing_is_no_part_of_the_run():
    """Another contract has no ties to weigh, and no surprise."""
    unclaimed = Judgement(1, ties=[tie(1, 0.5)])
    claimed = weighed(tie(1, 0.5), weighs=(0.0, 1.001 * LEVEL, 0.0))
    run(unclaimed, claimed)
    assert (unclaimed.defects, len(claimed.defects)) == ([], 1)


def test_unusual_ties_are_those_of_one_guidance_by_its_own_rounding():
    """Ten wide ties of cfg 1, five an image, and ten as wide of cfg 4, which rounds by so much."""

    def allowed(request: Request) -> list[Allowance]:
        return [Allowance(9.0, 0.1 if request.cfg == ONE.cfg else 0.9, 0.0, "by hand")] * S

    narrow = tie(1, 0.01)
    wide = [weighed(*[tie(si % S, 0.2, si) for si in range(5)]) for _ in range(2)]
    wide[0].ties.append(narrow)
    fine = [weighed(*[tie(si % S, 0.2, si) for si in range(5)]) for _ in range(2)]
    weigh_run([(ONE, wide[0]), (OTHER, fine[0]), (OTHER, fine[1]), (ONE, wide[1])], allowed, LOOKS)
    assert [[d.position for d in judgement.defects] for judgement in wide] == [[0, 1, 2, 3, 4]] * 2
    assert {d.detail for judgement in wide for d in judgement.defects} == {MANY}
    assert [judgement.ties for judgement in wide] == [[narrow], []]
    assert [(len(judgement.ties), judgement.defects) for judgement in fine] == [(5, []), (5, [])]


def test_an_image_without_ties_weighs_what_its_draws_cost():
    judgement = Judgement(2)
    costs_SB3 = torch.arange(18, dtype=torch.float64).reshape(S, 2, 3)
    weigh_decode(evidence(), judgement, costs_SB3, [])
    assert judgement.surprise == (-costs_SB3.sum(1)).tolist()
    assert (judgement.ties, judgement.defects) == ([], [])


def test_unusual_ties_of_a_decode_are_those_of_one_image():
    """Twenty wide ties: ten of one image are too many, five of each of two others are not."""
    budget = Budget(90.0, 1.0, 0.0, "by hand")
    far = 2 * evidence(budget).allowance(0).logits_rms
    ties, row_of = [tie(0, far, position) for position in range(20)], [0] * 5 + [2] * 10 + [1] * 5
    judgement = Judgement(3, ties=list(ties))
    weigh_decode(evidence(budget), judgement, torch.full((S, 3, 3), 1e3, dtype=torch.float64), row_of)
    assert judgement.ties == ties[:5] + ties[15:]
    assert [d.position for d in judgement.defects] == list(range(5, 15))
    assert MANY == "one of many ties whose margins together are beyond rounding"
