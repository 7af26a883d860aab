"""Process-wide settings of precision: what somebody else's code changes is listed and undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from harness.rounding._precision import precision, precision_unchanged, set_precision, watched


def products() -> Tensor:
    """Return a product whose last bits tell in which precision it was made, on CPUs that have several."""
    a_nn = torch.rand(256, 256, generator=torch.Generator().manual_seed(0))
    return a_nn @ a_nn


@pytest.fixture(autouse=True, params=[False, True])
def tf32(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    set_precision(request.param)
    before_all = products()
    yield request.param
    assert torch.equal(products(), before_all)
    set_precision(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def newer() -> None:
    torch.backends.cuda.matmul.fp32_precision = "ieee" if precision()["tf32_matmul"] else "tf32"


CHANGES: dict[str, Callable[[], None]] = {
    "tf32_matmul": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", not torch.backends.cuda.matmul.allow_tf32),
    "tf32_convolution": lambda: setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32),
    "float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "deterministic_convolution": lambda: setattr(torch.backends.cudnn, "deterministic", False),
    "benchmark_convolution": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "reduced_bfloat16_sums": lambda: setattr(
        torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False
    ),
    "cpu_matmul": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "fp32_precision": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "tf32_matmul from": newer,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_named_and_undone(name: str):
    before = watched()
    with precision_unchanged() as changed:
        CHANGES[name]()
    assert any(clause.startswith(name) for clause in changed)
    assert watched() == before


def test_it_is_undone_when_the_code_fails():
    before = watched()

    def failing() -> None:
        with precision_unchanged():
            torch.set_float32_matmul_precision("medium")
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert watched() == before


def test_nothing_changed_is_nothing_listed(tf32: bool):
    with precision_unchanged() as changed:
        pass
    assert changed == []
    assert precision()["tf32_matmul"] is tf32
