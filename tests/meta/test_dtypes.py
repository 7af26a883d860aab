"""Every law in every dtype that it allows: a right decoder keeps it, and what it allows for rounding is tight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.decoders._factory import load_factory
from harness.judge._verdict import Verdict
from harness.laws import LAWS, Law, Scope, Subject, try_law
from harness.laws import _numbers as numbers
from harness.laws._law import FLOAT64, require_equal
from harness.models import MODES
from harness.models.var.autoencoder import Autoencoder
from harness.models.var.quantizer import Quantizer
from harness.mutants._hunt import MUTANTS
from harness.mutants._mutant import Mutant, returned
from harness.protocol.pyramid import ScalePyramid
from harness.speculative.sampler import build_decoder
from tests.helpers import some
from tests.published.checkout import make

OWN, _ENCODE = Subject(build_decoder), Quantizer.encode
ROUNDED = [law for law in LAWS if law.id in ("numbers.transformer", "numbers.encode", "numbers.pixels")]
WRONG_INPUTS = [
    f"positions.{word}" for word in ("offset", "first-level", "half", "zero-leaks", "six-levels", "late-level")
]
IN_DTYPES = [(law, dtype) for law in LAWS for dtype in MODES]


def held(law: Law, subject: Subject, dtype: str, examples: int) -> bool:
    """Return whether a law that is not broken was tried, and means something in this dtype."""
    row = try_law(law, subject, Scope(examples, 3, dtype=dtype, shrink_s=0.0))
    assert row.verdict is not Verdict.DEFECT, str(row.violation)
    return row.verdict is Verdict.IDENTICAL


# all of them take minutes: `tox -e slow`
@pytest.mark.parametrize(
    ("law", "dtype"), some(13, IN_DTYPES), ids=[f"{law.id}-{dtype}" for law, dtype in IN_DTYPES]
)  # fmt: skip
def test_the_own_decoder_keeps_a_law_in_a_dtype(law: Law, dtype: str):
    row = try_law(law, OWN, Scope(4, 3, dtype=dtype, shrink_s=0.0))
    assert row.verdict is not Verdict.DEFECT, str(row.violation)
    assert row.verdict is not None or row.skipped.startswith(f"{dtype} networks: "), row.skipped


@pytest.mark.parametrize(
    "mutant", [mutant for mutant in MUTANTS if mutant.id in WRONG_INPUTS], ids=lambda each: each.id
)
@pytest.mark.parametrize("dtype", MODES)
def test_what_rounding_may_make_of_an_input_hides_no_wrong_one(mutant: Mutant, dtype: str):
    (query,) = (law for law in LAWS if law.id == "positions.query")
    assert try_law(query, Subject(mutant), Scope(8, 3, dtype=dtype, shrink_s=0.0)).verdict is Verdict.DEFECT


@pytest.mark.parametrize(("by", "verdict"), [(1 / 8, Verdict.IDENTICAL), (8, Verdict.DEFECT)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_an_input_may_be_off_by_is_some_roundings(by: float, verdict: Verdict, dtype: torch.dtype):
    """Inputs of these networks are of size 1 to 8."""
    (query,) = (law for law in LAWS if law.id == "positions.query")
    off = by * numbers.ROUNDINGS[dtype] * torch.finfo(dtype).eps
    shifted = Subject(returned(build_combined_query=lambda x_RnD, *given: x_RnD + off))
    scope = Scope(8, 3, dtype=str(dtype).removeprefix("torch."), shrink_s=0.0)
    assert try_law(query, shifted, scope).verdict is verdict


@pytest.mark.parametrize("law", ROUNDED, ids=lambda law: law.id)
@pytest.mark.parametrize("dtype", MODES)
def test_the_numbers_that_both_sides_share_are_right_in_every_dtype(law: Law, dtype: str):
    assert held(law, OWN, dtype, 6)


# Published code computes in float32 alone, and a sampler in Python, one scale a pass, takes its time.
@pytest.mark.parametrize("law", some(16, LAWS), ids=lambda law: law.id)
def test_a_pristine_published_decoder_keeps_a_law_in_float32(law: Law, shelf: Path):
    published = Subject(load_factory("published:var"), (("checkout", str(make(shelf, "var"))),))
    row = try_law(law, published, Scope(2, 3, ((1, 2, 3),), "float32", shrink_s=0.0))
    assert row.verdict is not Verdict.DEFECT, str(row.violation)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkouts")


@pytest.fixture
def allowed_at_most(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], float]], None]:
    """Let the laws of numbers allow something else than they do."""

    def plant(change: Callable[[float], float]) -> None:
        def equal(name: str, actual: Tensor, expected: Tensor, where: str = "", atol: float = 0.0) -> None:
            require_equal(name, actual, expected, where, change(atol) if atol else 0.0)

        monkeypatch.setattr(numbers, "require_equal", equal)

    return plant


@pytest.mark.parametrize("law", ROUNDED, ids=lambda law: law.id)
def test_at_the_tolerance_of_float64_they_break_for_everybody(law: Law, allowed_at_most):
    allowed_at_most(lambda atol: FLOAT64)
    assert try_law(law, OWN, Scope(6, 3, dtype="float32", shrink_s=0.0)).verdict is Verdict.DEFECT


@pytest.mark.parametrize(("law", "share"), list(zip(ROUNDED, (0.06, 0.03, 0.25), strict=True)), ids=str)
def test_a_share_of_what_is_allowed_in_float32_is_too_little(law: Law, share: float, allowed_at_most):
    allowed_at_most(lambda atol: share * atol)
    assert try_law(law, OWN, Scope(24, 3, dtype="float32", shrink_s=0.0)).verdict is Verdict.DEFECT


def _norm(x: Tensor) -> Tensor:
    """Take PyTorch's own eps for 1e-6."""
    return F.layer_norm(x, x.shape[-1:])


def _fixed_point(self: Quantizer, z_BCPP: Tensor, pyramid: ScalePyramid) -> tuple[Tensor, Tensor]:
    """Search a codebook that was stored in fixed point."""
    return _ENCODE(replace(self, codebook_VC=(self.codebook_VC * 2**15).round() / 2**15), z_BCPP, pyramid)


def _below_one(self: Autoencoder, f_hat_BCPP: Tensor) -> Tensor:
    return (self.latent_to_raw_image(f_hat_BCPP).clamp(-1, 1 - 2.0**-22) + 1) / 2


BUGS = {
    "numbers.transformer": {"harness.models.var.transformer:layer_norm": _norm},
    "numbers.encode": {"harness.models.var.quantizer:Quantizer.encode": _fixed_point},
    "numbers.pixels": {"harness.models.var.autoencoder:Autoencoder.decode": _below_one},
}


@pytest.mark.parametrize("law", ROUNDED, ids=lambda law: law.id)
def test_a_small_bug_is_found_in_float32_too_and_is_not_far_above_what_is_allowed(law: Law, allowed_at_most):
    with Mutant("numbers.small", "", "", shared=BUGS[law.id]).planted():
        assert try_law(law, OWN, Scope(12, 3, dtype="float32", shrink_s=0.0)).verdict is Verdict.DEFECT
        allowed_at_most(lambda atol: 16 * atol)
        assert held(law, OWN, "float32", 12)
