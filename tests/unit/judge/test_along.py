"""The reference along the decoder's own tokens: one precise pass, of the images of which a token differs alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.judge import _evidence as module
from harness.judge import judge
from harness.judge._evidence import Evidence
from harness.judge._tokens import _raced
from harness.judge._verdict import Verdict
from harness.models._pair import ModelPair
from harness.protocol import Contract, Request, Trace
from harness.reference.sequential import sample_sequential
from harness.rounding import quick_budget
from tests.helpers import Layout, tiny
from tests.unit.judge.test_tokens import evidence, swapped

MODELS = tiny(Layout((1, 2, 3, 4)))
DRAWS = MODELS.pyramid.draws
REQUEST = Request((0, 1, 2, 0), 1, cfg=4.0)


def _run(models: ModelPair, tokens_BL: Tensor | None = None, greedy: bool = False) -> Trace:
    return sample_sequential(models.target, models.vae, REQUEST, models.noise(REQUEST), tokens_BL, greedy)


def _moved(trace: Trace, *places: tuple[int, int]) -> Trace:
    """Return a trace with other tokens at some places (image, draw)."""
    tokens_BL = trace.tokens_BL.clone()
    for place in places:
        tokens_BL[place] = (tokens_BL[place] + 1) % MODELS.target.config.V
    return replace(trace, tokens_BL=tokens_BL)


def _evidence(*places: tuple[int, int], models: ModelPair = MODELS, greedy: bool = False) -> Evidence:
    """Return a decoder's trace that is the free run's but for tokens at some places, and that run."""
    free = _run(models, greedy=greedy)
    return Evidence(models, REQUEST, _moved(free, *places), free, quick_budget(models), greedy)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("most", [1, 2, 8])
def test_images_that_differ_are_those_of_a_run_along_their_tokens_however_many_go_at_once(
    monkeypatch: pytest.MonkeyPatch, most: int, greedy: bool
):
    found = _evidence((0, 0), (2, 3), (2, 20), (3, DRAWS.L - 1), greedy=greedy)
    passes, real = list[tuple[int, int, torch.dtype]](), module.teacher_forced
    monkeypatch.setattr(module, "images_per_certifying_pass", lambda *_: most)
    monkeypatch.setattr(
        module, "teacher_forced", lambda *a: (passes.append((len(a[4]), a[5], a[0].dtype)), real(*a))[1]
    )
    along = found.along()
    sizes = {1: [1, 1, 1], 2: [2, 1], 8: [3]}[most]
    assert passes == [(size, MODELS.pyramid.S, torch.float64) for size in sizes]
    list(_raced(along, torch.nonzero(found.actual.tokens_BL != along.expected.tokens_BL)))
    assert len(passes) == len(sizes)  # ties are certified by it, too
    due, free, made = _run(MODELS, found.actual.tokens_BL, greedy), found.expected, along.expected
    assert torch.equal(made.tokens_BL, due.tokens_BL)
    assert torch.allclose(made.f_hat_BCPP, due.f_hat_BCPP, rtol=0, atol=1e-5)
    rows = {"x_RLD": [1, 5], "rows_RLV": [1, 5], "guided_BLV": [1], "f_hat_SBCPP": (slice(None), 1)}
    for name, tensor in made.shown.named().items():
        assert tensor.dtype is due.shown.named()[name].dtype
        assert torch.allclose(tensor, due.shown.named()[name], rtol=0, atol=1e-4), name
        assert torch.equal(tensor[rows[name]], free.shown.named()[name][rows[name]]), name  # of the image that agrees
    assert torch.equal(free.tokens_BL, _run(MODELS, greedy=greedy).tokens_BL)  # the free run is as it was


@pytest.mark.parametrize(("dtype", "by"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_precise_logits_are_nearer_to_float64_than_the_networks_own(dtype: torch.dtype, by: torch.dtype):
    found = _evidence((0, 0), (2, 3), models=MODELS.to("cpu", dtype))
    along, wide = found.along(), found.models.wide()
    exact_BLV = along.exact_BLV
    assert exact_BLV is not None
    assert exact_BLV.dtype is by
    assert bool(exact_BLV[[1, 3]].isnan().all())  # no token of these differs
    due_BLV = _run(wide, found.actual.tokens_BL).shown.guided_BLV
    own_BLV = _run(found.models, found.actual.tokens_BL).shown.guided_BLV
    far, own_far = (float((each - due_BLV)[[0, 2]].abs().max()) for each in (exact_BLV, own_BLV))
    assert far < own_far / 100
    assert float((along.expected.shown.guided_BLV - due_BLV)[[0, 2]].abs().max()) < own_far / 4
    assert along.expected.shown.guided_BLV.dtype is own_BLV.dtype


def test_up_to_the_first_scale_that_differs_the_free_run_says_what_is_drawn():
    """Of a reference that rounding led to other tokens the first one stays: the image is not identical."""
    right = _run(MODELS)
    free = _moved(right, (1, 2), (1, 14), (3, 20))  # scales 1 and 3, and 3
    along = Evidence(MODELS, REQUEST, right, free, quick_budget(MODELS)).along().expected
    differ_BL = along.tokens_BL != right.tokens_BL
    assert torch.nonzero(differ_BL).tolist() == [[1, 2], [3, 20]]  # what follows is the precise reference's draw
    assert int(along.tokens_BL[1, 2]) == int(free.tokens_BL[1, 2])


def test_a_right_decoder_in_bfloat16_ties_where_the_free_run_drew_otherwise():
    models = MODELS.to("cpu", torch.bfloat16)
    wide = _run(models.to("cpu", torch.float32))  # as right as can be
    found = Evidence(models, REQUEST, wide, _run(models), quick_budget(models))
    differ = (wide.tokens_BL != found.expected.tokens_BL).any(1)
    assert bool(differ.any())
    judgement = judge(found, drafts=False)
    assert (judgement.verdict, judgement.wrong_tensors) == (Verdict.TIE, 0)
    assert len({tie.image for tie in judgement.ties}) == int(differ.sum())


@pytest.mark.parametrize("contract", [Contract.LAW, Contract.QUALITY])
def test_where_no_tie_is_certified_the_pass_is_in_the_networks_own_precision(
    monkeypatch: pytest.MonkeyPatch, contract: Contract
):
    found, _ = swapped(evidence(), 0, 3)
    seen, real = list[torch.dtype](), module.teacher_forced
    monkeypatch.setattr(module, "teacher_forced", lambda *a: (seen.append(a[0].dtype), real(*a))[1])
    judge(found, contract)
    judge(replace(found, may_differ_from=2), contract)  # tokens of scales 0 and 1 are claimed
    judge(found, Contract.TOKENS)
    assert seen == [torch.float32, torch.float64, torch.float64]
    along = found.along(certifies=False)
    assert along.exact_BLV is None
    assert torch.equal(along.expected.tokens_BL, found.along().expected.tokens_BL)
