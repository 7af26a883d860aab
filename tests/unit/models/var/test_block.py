"""Blocks, compiled or not: who runs which, what a mode of its own means for budgets, and that answers stay right."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.errors import InputError
from harness.judge._verdict import Verdict
from harness.models.network import Modulation
from harness.models.var import transformer as block
from harness.models.var.transformer import Transformer
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.reference.sequential import sample_sequential
from harness.rounding._budget import COMPILED, EXACT, BudgetEntry, mode_of
from harness.speculative.sampler import build_decoder, build_sequential
from tests.helpers import Layout, command, tiny, verify_here

MODELS = tiny(Layout((1, 2, 3)))
REQUEST = Request((0, 1), 3)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Stand in for the compiler: the functions themselves, counted."""
    seen: Counter[str] = Counter()

    def counted(name: str):
        def call(*given: object) -> object:
            seen[name] += 1
            return getattr(block, name)(*given)

        return call

    monkeypatch.setattr(block, "compiled", lambda: (counted("before"), counted("after")))
    return seen


def test_only_a_compiled_pair_meets_the_compiler(calls: Counter[str]):
    plain = sample_sequential(MODELS.target, MODELS.vae, REQUEST, MODELS.noise(REQUEST))
    assert not calls
    made = build_decoder(MODELS, Settings(2, compiled=True)).decode(REQUEST, MODELS.noise(REQUEST))
    assert torch.equal(made.tokens_BL, plain.tokens_BL)
    passes = made.target_calls[0] * MODELS.target.config.depth + made.draft_calls[0] * MODELS.draft.config.depth
    assert calls == {"before": passes, "after": passes}


def test_a_view_in_another_precision_is_not_compiled():
    target = MODELS.compiled().target
    assert isinstance(target, Transformer)
    assert target.compiled
    assert not target.converted(torch.float64).compiled
    plain = MODELS.compiled().compiled(False)
    assert (plain.target.compiled, plain.target.weights) == (False, MODELS.target.weights)


def test_sequential_decoding_out_of_the_same_parts_is_sequential(calls: Counter[str]):
    for network in (MODELS.target, MODELS.draft):
        plain = sample_sequential(network, MODELS.vae, REQUEST, MODELS.noise(REQUEST))
        made = build_sequential(MODELS, network).decode(REQUEST, MODELS.noise(REQUEST))
        assert torch.equal(made.tokens_BL, plain.tokens_BL)
        assert torch.equal(made.f_hat_BCPP, plain.f_hat_BCPP)
    assert not calls


def test_compiled_blocks_are_a_mode_of_their_own():
    *same, products = mode_of(MODELS.compiled())
    assert [*same, products.removesuffix(COMPILED)] == list(mode_of(MODELS))
    assert products == EXACT + COMPILED
    entry = BudgetEntry(*mode_of(MODELS.compiled()), 1e-6, 1e-7, 1e-7, 6, 2, {})
    entry.check_explained(10.0, 1.0)
    with pytest.raises(InputError, match="exact compiled\\) rows"):  # as tight as float32, not as TF32
        replace(entry, rows=2.0 * 256 * 2**-23 * 10).check_explained(10.0, 1.0)


def test_a_wrong_compiler_widens_no_budget(monkeypatch: pytest.MonkeyPatch):
    """It is measured, too, so what it does wrong would excuse itself."""

    def swapped(x_RnD: Tensor, out_RHnc: Tensor, six: Modulation, w: block.BlockWeights) -> Tensor:
        return block.after(x_RnD, out_RHnc, (six[1], six[0], *six[2:]), w)

    monkeypatch.setattr(block, "compiled", lambda: (block.before, swapped))
    result = verify_here(MODELS, build_decoder, [Settings(2, compiled=True)], [REQUEST])
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence.component == "mask or network"


def test_settings_say_how_the_work_is_done():
    assert str(Settings(2, graphs=True, compiled=True)) == "draft_len=2 graphs compiled"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify", "--compile", "--implementation", "tests.naive:naive"), "compile=True: is how the harness's own"),
        (("verify", "--graphs", "--implementation", "tests.naive:naive"), "graphs=True: is how the harness's own"),
        (("verify", "--cover", "--compile"), "compile=True: is what --cover, a design with settings and requests"),
        (("verify", "--graphs", "--seeds", "0:1", "--labels", "0"), "graphs=True: need a CUDA device"),
        (("sample", "--graphs", "--sampler", "sequential"), "graphs=True: need a CUDA device"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: tuple[str, ...], said: str, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_compiler_itself_stays_within_the_budget():
    result = verify_here(MODELS, build_decoder, [Settings(2, True, compiled=True)], [REQUEST])
    assert result.verdict in (Verdict.IDENTICAL, Verdict.TIE)
    assert result.budget is not None
    assert "compiled" in result.budget.source


def test_without_a_compiler_compiling_is_refused_and_says_how_to_go_on():
    from torch._inductor import config

    models = tiny()
    assert models.compiled().target.compiled
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert not models.compiled(False).target.compiled
        with pytest.raises(
            InputError, match=r"compile=True: takes a compiler of C\+\+, which is not there .*; install g"
        ):
            models.compiled()
