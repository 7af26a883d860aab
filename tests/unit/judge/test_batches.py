"""Whatever batches a run is cut into, its results are the same, and one batch is judged as its images are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.errors import InputError
from harness.judge._components import first_wrong, first_wrong_of
from harness.judge._evidence import Evidence
from harness.judge._ties import ALARM, THETAS, Tail, costs_N3, margins_of_differing_tokens, weigh_run
from harness.judge._verdict import Divergence, Judgement
from harness.models._pair import ModelPair
from harness.mutants import guidance, positions, state
from harness.mutants._mutant import Mutant
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.reference._cachefree import teacher_forced
from harness.reference.sequential import KnownScales, sample_sequential
from harness.rounding._budget import Allowance, Budget
from harness.rounding._measure import quick_budget
from harness.rounding._precision import (
    NEGLIGIBLE,
    certifying_networks,
    certifying_precision,
    images_per_certifying_pass,
)
from harness.runs import _plan as batches
from harness.runs._plan import cut_batches, default_batch
from harness.runs._result import Verification
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, digits, tiny, verify_here
from tests.unit.judge.test_race import raced

MODELS = tiny(Layout((1, 2, 3, 4)))
WHOLE, SEEDS = Request((0, 1, 2)), (3, 4, 9)


def told(result: Verification) -> list[object]:
    """Return what a result says of its images, whatever batches it was made from; numbers to what rounding leaves."""
    (setting,) = result.settings
    listed = sorted(
        (d.seed, d.image, d.label, d.scale, d.position, d.actual, d.expected, d.component)
        for judgement in setting.judgements
        for d in (*judgement.defects, *judgement.ties)
    )
    names = ("draws", "identical", "ties", "wrong_tokens", "wrong_tensors", "defects")
    return [listed, [setting.total(name) for name in names], setting.target_calls, setting.accepted_scales]


@pytest.mark.parametrize("mutant", [None, positions.OFFSET, guidance.SWAPPED, state.TWICE], ids=str)
def test_the_result_does_not_depend_on_the_batch(mutant: Mutant | None):
    results = [
        verify_here(MODELS, mutant or build_decoder, [Settings(2)], cut_batches(WHOLE, SEEDS, size))
        for size in (1, 2, 4, 9)
    ]
    assert [told(result) for result in results[1:]] == [told(results[0])] * 3
    firsts = [result.first_divergence for result in results]
    assert len({(f.component, f.seed, f.image, f.scale, f.position) if f else None for f in firsts}) == 1


def test_an_image_of_a_mixed_batch_is_that_of_its_seed_alone():
    (mixed,) = cut_batches(WHOLE, SEEDS, 9)
    assert mixed.addresses == tuple((seed, image) for seed in SEEDS for image in range(3))
    tokens_BL = sample_sequential(MODELS.target, MODELS.vae, mixed, MODELS.noise(mixed)).tokens_BL
    for row in (0, 4, 8):
        one = mixed.only([row])
        assert (one.seed, one.image_ids) == (SEEDS[row // 3], (row % 3,))
        alone = sample_sequential(MODELS.target, MODELS.vae, one, MODELS.noise(one)).tokens_BL
        assert torch.equal(tokens_BL[row], alone[0])


@pytest.mark.parametrize(("size", "sizes"), [(4, [3, 3, 3]), (9, [9]), (100, [9]), (1, [1] * 9), (8, [4, 5])])
def test_batches_are_equal_and_in_order(size: int, sizes: list[int]):
    made = cut_batches(WHOLE, SEEDS, size)
    assert [request.B for request in made] == sizes
    assert [a for request in made for a in request.addresses] == [(s, k) for s in SEEDS for k in range(3)]
    assert all(request.seeds is None or len(set(request.seeds)) > 1 for request in made)


def test_a_mixed_batch_has_no_published_order():
    with pytest.raises(InputError, match=r"seeds=\(1, 2\): a batch in the published order has one seed"):
        Request((0, 1), seeds=(1, 2), order="batch")
    with pytest.raises(InputError, match=r"must hold one seed per image \(2\)"):
        Request((0, 1), seeds=(1,))
    with pytest.raises(InputError, match="seed=-1"):
        Request((0, 1), seeds=(1, -1))


def test_the_usual_batch_follows_the_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "cache_bytes", lambda: 32 * 2**20)
    monkeypatch.setattr(batches, "available_bytes", lambda: 16 * 2**30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    usual = default_batch(digits())
    assert usual.images == 10
    assert usual.why.startswith("2 threads, 16 MiB of cache, 1.5 MiB of activations an image")
    monkeypatch.setattr(batches, "available_bytes", lambda: 2 * batches.bytes_of_an_image(digits()))
    assert default_batch(digits()).images == 1
    monkeypatch.setattr(batches, "CACHES", "/nowhere")
    monkeypatch.undo()
    assert default_batch(digits()).images >= 1
    assert batches.cache_bytes() >= batches.LEAST_CACHE
    assert batches.available_bytes() > 2**28


def test_a_batch_is_judged_as_its_images_are():
    request = Request((0, 1, 2, 0), 1)
    actual = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    expected = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    bent = {name: tensor.clone() for name, tensor in actual.intermediates.named().items()}
    bent["x_RLD"][1, 2] += 1.0  # image 1, scale 1
    bent["rows_RLV"][2 + 4, 20] += 1.0  # image 2, scale 3, its unconditional row
    bent["guided_BLV"][3, 0, 0] = torch.nan
    actual.intermediates = type(actual.intermediates)(**bent)
    evidence = Evidence(MODELS, request, actual, expected, quick_budget(MODELS))
    found = first_wrong(evidence)
    assert [found[b] and found[b].scale for b in range(4)] == [None, 1, 3, 0]
    for image in range(4):
        one_by_one = (wrong for si in MODELS.pyramid if (wrong := first_wrong_of(evidence, image, [si])))
        assert next(one_by_one, None) == found[image]


def test_only_images_that_differ_run_again(monkeypatch: pytest.MonkeyPatch):
    request = Request((0, 1, 2, 0), 1)
    actual = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    expected = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    actual.tokens_BL = actual.tokens_BL.clone()
    actual.tokens_BL[2, 3] = (actual.tokens_BL[2, 3] + 1) % 11
    whole = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request), actual.tokens_BL)
    seen: list[int] = []
    real = sample_sequential
    monkeypatch.setattr(
        "harness.judge._evidence.sample_sequential", lambda *a, **k: (seen.append(a[2].B), real(*a, **k))[1]
    )
    along = Evidence(MODELS, request, actual, expected, quick_budget(MODELS)).along().expected
    assert seen == [1]
    assert torch.equal(along.tokens_BL, whole.tokens_BL)
    for name, tensor in along.intermediates.named().items():
        assert torch.allclose(tensor, whole.intermediates.named()[name], atol=1e-5), name
    assert torch.equal(expected.tokens_BL[2], real(*_arguments(request)).tokens_BL[2])  # the free run is as it was


@pytest.mark.parametrize("draw", [0, 3, 14, MODELS.pyramid.draws.L - 1])
def test_scales_that_a_free_run_knows_are_not_computed_again(monkeypatch: pytest.MonkeyPatch, draw: int):
    request, known = Request((0, 1, 2), 1), KnownScales()
    free = sample_sequential(*_arguments(request), known=known)
    actual = replace(free, tokens_BL=free.tokens_BL.clone())
    actual.tokens_BL[1, draw] = (actual.tokens_BL[1, draw] + 1) % 11
    one = Evidence(MODELS, request, actual, free, quick_budget(MODELS))
    passes: list[int] = []
    real = type(MODELS.target).hidden
    monkeypatch.setattr(
        type(MODELS.target), "hidden", lambda self, x, *a: (passes.append(x.shape[1]), real(self, x, *a))[1]
    )
    plain, plain_passes = one.along().expected, passes.copy()
    passes.clear()
    along = replace(one, cache=known.cache).along().expected
    after = range(MODELS.pyramid.level_of(draw) + 1, MODELS.pyramid.S)
    assert passes == [MODELS.pyramid.tokens(si) for si in after]
    assert plain_passes == [MODELS.pyramid.tokens(si) for si in MODELS.pyramid]
    assert torch.equal(along.tokens_BL, plain.tokens_BL)
    for name, tensor in along.intermediates.named().items():
        assert torch.allclose(tensor, plain.intermediates.named()[name], atol=1e-5), name


def _arguments(request: Request) -> tuple[object, ...]:
    return MODELS.target, MODELS.vae, request, MODELS.noise(request)


@pytest.mark.parametrize("words", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 7, "top_p": 0.9}])
def test_many_races_are_many_single_races(words: dict[str, float]):
    """By definition, token against token, as it was first written."""
    generator, request = torch.Generator().manual_seed(0), Request((0,), **words)
    exact_NV = 2 * torch.randn(40, 12, generator=generator, dtype=torch.float64)
    E_NV = torch.empty(40, 12).exponential_(generator=generator)
    token_N = torch.randint(12, (40,), generator=generator)
    error_N = torch.rand(40, generator=generator, dtype=torch.float64) * 0.3
    error_N[::4] = 0.0
    margins = margins_of_differing_tokens(exact_NV, E_NV, token_N, request, error_N).margin_N.tolist()
    for n, margin in enumerate(margins):
        assert margin == raced(exact_NV[n], E_NV[n], int(token_N[n]), request, float(error_N[n]))
        assert margin == pytest.approx(
            _margin(exact_NV[n].tolist(), E_NV[n].tolist(), int(token_N[n]), request, float(error_N[n]))
        )


def _margin(logits: list[float], E: list[float], token: int, request: Request, error: float) -> float:
    import math

    V = range(len(logits))
    above = {v: sum(logits[u] > logits[v] + 2 * error for u in V) for v in V}
    perhaps = {v: sum(logits[u] > logits[v] - 2 * error for u in V if u != v) for v in V}
    possible = {v for v in V if not request.top_k or above[v] < request.top_k}
    certain = {v for v in V if not request.top_k or perhaps[v] < request.top_k}
    if request.top_p:
        weight = [math.exp(x - max(logits)) for x in logits]
        slack = 4 * error + len(logits) * 2.0**-23
        least, most = sum(weight[v] for v in certain), sum(weight[v] for v in possible)
        high = {v: sum(weight[u] for u in possible - {v} if logits[u] <= logits[v] + 2 * error) + weight[v] for v in V}
        low = {v: sum(weight[u] for u in certain - {v} if logits[u] < logits[v] - 2 * error) + weight[v] for v in V}
        first = {v for v in V if above[v] == 0}
        alone = {v for v in V if all(logits[u] < logits[v] - 2 * error for u in V if u != v)}
        possible = {v for v in possible if high[v] / least + slack > 1 - request.top_p or v in first}
        certain = {v for v in certain if low[v] / most - slack > 1 - request.top_p or v in alone}
    if token not in possible:
        return float("inf")
    score = [x - math.log(e) for x, e in zip(logits, E, strict=True)]
    rivals = [score[v] for v in certain - {token}]
    return max(rivals) - score[token] if rivals else 0.0


@pytest.mark.parametrize("usual", [3e-5, 0.1, 3.0])
def test_what_is_out_of_reach_costs_nothing(usual: float):
    generator, tail = torch.Generator().manual_seed(1), Tail.of(Allowance(7 * usual, usual, 0.0, ""))
    scores_NV = 3 * torch.randn(50, 32, generator=generator, dtype=torch.float64)
    best_Nk = scores_NV.topk(32, dim=1).values
    chance_Nk = tail.log_chance(best_Nk[:, :1] - best_Nk[:, 1:]).exp()
    due = [float((chance_Nk ** (1 - theta) - chance_Nk).sum()) for theta in THETAS]
    assert costs_N3(scores_NV, tail).sum(0).tolist() == pytest.approx(due, rel=1e-9, abs=1e-9)
    assert costs_N3(scores_NV, tail).shape == (50, 3)


def test_a_run_weighs_its_ties_scale_by_scale():
    """Plant: nothing but ties at half the usual error, twice as many as a run of its cost may show."""
    budget = Budget(1e-3, 1e-4, 1e-6, "by hand")

    def allowed(request: Request) -> list[Allowance]:
        return [budget.guided(request.cfg, ramp) for ramp in (0.0, 1.0)]

    def judged(margin: float, cost_of_scale: float) -> list[tuple[Request, Judgement]]:
        ties = [Divergence("tie", "", 0, 0, 0, 1, 3, margin=margin) for _ in range(2)]
        made = [Judgement(1, 10, 8, list(ties)) for _ in range(20)]
        for judgement in made:
            weight = 2 * -float(Tail.of(allowed(WHOLE)[1]).log_chance(torch.tensor(margin, dtype=torch.float64)))
            judgement.surprise = [[0.0] * 3, [theta * weight - cost_of_scale for theta in THETAS]]
        return [(WHOLE, judgement) for judgement in made]

    right, wrong = judged(1e-5, 5.0), judged(2e-3, 0.01)
    for run in (right, wrong):
        weigh_run(run, allowed, looks=1)
    assert all(len(judgement.ties) == 2 for _, judgement in right)
    assert all((len(j.defects), j.wrong_tokens, j.ties) == (2, 2, []) for _, j in wrong)
    assert ALARM < 1e-5


@pytest.mark.parametrize(("dtype", "by"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_the_certifying_precision_is_negligible_beside_the_budget(dtype: torch.dtype, by: torch.dtype):
    """The stated share is a bound, and no loose one would do: in its own precision a network fills its budget."""
    models, request = MODELS.to("cpu", dtype), Request((0, 1), 2)
    chosen, budget = certifying_precision(models), quick_budget(models)
    assert (chosen.dtype, chosen.share <= NEGLIGIBLE) == (by, True)
    tokens_BL = sample_sequential(models.target, models.vae, request, models.noise(request)).tokens_BL
    labels_B = models.noise(request).labels(3)
    exact = models.to("cpu", torch.float64)
    due_RLV = teacher_forced(exact.target, exact.vae, request, labels_B, tokens_BL, 4)[0]
    with certifying_networks(models, chosen) as (network, vae):
        rows_RLV = teacher_forced(network, vae, request, labels_B, tokens_BL, 4)[0]
    assert network.dtype is by
    assert float((rows_RLV.double() - due_RLV).abs().max()) <= chosen.share * budget.rows
    own_RLV = teacher_forced(models.target, models.vae, request, labels_B, tokens_BL, 4)[0]
    assert float((own_RLV.double() - due_RLV).abs().max()) > NEGLIGIBLE * budget.rows
    assert images_per_certifying_pass(models, chosen) >= 1


def test_a_converted_network_keeps_no_wide_weights():
    models: ModelPair = MODELS.to("cpu", torch.bfloat16)
    view = models.target.converted(torch.float32)
    assert view.weights["head.weight"].dtype is torch.float32
    assert view.weights["head.weight"] is not view.weights["head.weight"]
    assert len(view.weights) == len(models.target.weights)
    assert replace(view).dtype is torch.float32


def test_the_image_is_named_by_its_address(tmp_path: Path):
    requests = [replace(WHOLE, images=(7, 8, 9), seed=2)]
    first = verify_here(MODELS, positions.OFFSET, [Settings(2)], requests).first_divergence
    assert (first.seed, first.image, first.label) == (2, 7 + first.label, first.label)
