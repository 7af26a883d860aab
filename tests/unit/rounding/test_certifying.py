"""Which precision certifies, and how many images at once: by hand, on devices that need not be there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from harness.models import mode_name
from harness.rounding import _precision as module
from harness.rounding._precision import (
    FEWEST,
    Certifying,
    SplitProducts,
    certifying_networks,
    certifying_precision,
    images_per_certifying_pass,
    set_precision,
)
from tests.helpers import Layout, tiny

CONFIG = SimpleNamespace(H=2, D=8, V=5, depth=3)
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def pair(dtype: torch.dtype, device: str, L: int = 10) -> Any:
    target = SimpleNamespace(dtype=dtype, config=CONFIG)
    return SimpleNamespace(
        target=target, device=torch.device(device), pyramid=SimpleNamespace(L=L, draws=SimpleNamespace(L=L))
    )


CASES = [
    (BF16, "cuda", False, Certifying(F32, False, 2.0**-4), "TF32, its error below 0.062 of the budget"),
    (BF16, "cuda", True, Certifying(F32, False, 2.0**-4), "TF32, its error below 0.062 of the budget"),
    (BF16, "cpu", False, Certifying(F32, True, 2.0**-13), "float32, its error below 0.00012 of the budget"),
    (F16, "cuda", True, Certifying(F32, True, 2.0**-9), "float32, its error below 0.002 of the budget"),
    (F16, "cpu", False, Certifying(F32, True, 2.0**-9), "float32, its error below 0.002 of the budget"),
    (F32, "cuda", True, Certifying(F32, True, 2.0**-9), "float32, its error below 0.002 of the budget"),
    (F32, "cuda", False, Certifying(F64, True, 2.0**-29), "float64, its error below 1.9e-09 of the budget"),
    (F32, "cpu", True, Certifying(F64, True, 2.0**-29), "float64, its error below 1.9e-09 of the budget"),
    (F64, "cuda", True, Certifying(F64, True, 2.0**-29), "float64, its error below 1.9e-09 of the budget"),
]


@pytest.mark.parametrize(("dtype", "device", "tf32", "due", "said"), CASES)
def test_the_cheapest_precision_whose_error_is_negligible(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: str, tf32: bool, due: Certifying, said: str
):
    monkeypatch.setattr(module, "precision", lambda: {"tf32_matmul": tf32})
    found = certifying_precision(pair(dtype, device))
    assert found == due
    assert str(found) == said
    assert found.share <= module.NEGLIGIBLE


def test_networks_are_lent_wide_and_the_mode_is_put_back(monkeypatch: pytest.MonkeyPatch):
    models, modes = tiny(Layout((1, 2))).to("cpu", BF16), []
    for exact in (True, False):
        with certifying_networks(models, Certifying(F64, exact, 0.0)) as (network, vae):
            assert (network.dtype, vae.dtype) == (F64, F64)
            modes.append(torch.backends.cuda.matmul.allow_tf32)
    assert modes == [False, True]
    assert not torch.backends.cuda.matmul.allow_tf32
    with certifying_networks(models, Certifying(F32, True, 0.0)) as (network, vae):
        assert (network.dtype, vae.dtype) == (F32, F32)


class TensorCores(TorchFunctionMode):
    """Multiply as TF32 does: operands keep 11 bits, whose products are exact; sums are exact here, too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.linear or args[0].dtype == F64 or not torch.backends.cuda.matmul.allow_tf32:
            return func(*args, **(kwargs or {}))
        exact_nM = F.linear(_rounded(args[0]), _rounded(args[1]))
        return (exact_nM + sum([*args[2:], *(kwargs or {}).values()])).float()


def _rounded(operand: torch.Tensor) -> torch.Tensor:
    mantissa, exponent = torch.frexp(operand.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def test_split_products_on_tensor_cores_are_as_exact_as_float32():
    generator = torch.Generator().manual_seed(0)
    x_nK, weight_MK, bias_M = (torch.randn(*shape, generator=generator) for shape in ((40, 300), (50, 300), (50,)))
    exact_nM = F.linear(x_nK.double(), weight_MK.double(), bias_M.double())
    with TensorCores():
        set_precision(True)
        coarse_nM = F.linear(x_nK, weight_MK, bias_M)
        set_precision(False)
        with SplitProducts():
            split_nM, wide_nM = F.linear(x_nK, weight_MK, bias_M), F.linear(x_nK.double(), weight_MK.double())
            no_bias_nM, named_nM = F.linear(x_nK, weight_MK), F.linear(x_nK, weight_MK, bias=bias_M)
            assert not torch.backends.cuda.matmul.allow_tf32  # for what is no linear layer
    error, plain = ((each - exact_nM).abs().max() for each in (split_nM, F.linear(x_nK, weight_MK, bias_M)))
    assert error < 2 * plain < 2**-7 * (coarse_nM - exact_nM).abs().max()
    assert ((no_bias_nM + bias_M) - split_nM).abs().max() < 1e-5
    assert torch.equal(named_nM, split_nM)
    assert wide_nM.dtype == F64  # left to whoever multiplies


def test_only_float32_that_is_exact_on_cuda_is_split(monkeypatch: pytest.MonkeyPatch):
    models, entered = tiny(Layout((1, 2))), []
    monkeypatch.setattr(SplitProducts, "__enter__", lambda self: entered.append(self) or self)
    monkeypatch.setattr(SplitProducts, "__exit__", lambda self, *error: None)
    on_cuda = SimpleNamespace(target=models.target, vae=models.vae, device=torch.device("cuda"))
    monkeypatch.setattr(type(models.vae), "to", lambda vae, device, dtype: vae)
    for of, by in ((models, F32), (on_cuda, F64), (on_cuda, F32)):
        with certifying_networks(of, Certifying(by, True, 0.0)):
            assert not torch.backends.cuda.matmul.allow_tf32
    with certifying_networks(on_cuda, Certifying(F32, False, 0.0)):
        assert torch.backends.cuda.matmul.allow_tf32
    assert len(entered) == 1


@pytest.mark.parametrize(("mode", "share"), [("autocast-bfloat16", 2.0**-13), ("autocast-float16", 2.0**-9)])
def test_products_in_fewer_bits_are_certified_in_float32_outside_autocast(mode: str, share: float):
    models = tiny(Layout((1, 2))).in_mode("cpu", mode)
    by = certifying_precision(models)
    assert by == Certifying(F32, True, share)
    with certifying_networks(models, by) as (network, vae):
        assert (mode_name(network), mode_name(vae)) == ("float32", "float32")


def each(bytes_a_number: int, L: int = 10, scores: int = 0) -> int:
    """Return the bytes of one image: the mask twice, and two rows of activations, logits and scores of two heads."""
    return bytes_a_number * (2 * L * L + 2 * (16 * L * 8 + 3 * L * 5 + scores * 2 * L * L))


def test_as_many_images_at_once_as_a_quarter_of_the_free_memory_holds():
    free = int(FEWEST * 2**30)
    assert images_per_certifying_pass(pair(F32, "cpu"), Certifying(F64, True, 0.0)) == free // 4 // each(8)
    assert images_per_certifying_pass(pair(F32, "cpu"), Certifying(F32, True, 0.0)) == free // 4 // each(4)
    assert images_per_certifying_pass(pair(F32, "cpu", L=10**6), Certifying(F64, True, 0.0)) == 1


def test_on_cuda_what_the_allocator_keeps_unused_is_free_too(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def told(value: Any) -> Any:
        return lambda device: asked.append(device) or value

    monkeypatch.setattr(torch.cuda, "memory_reserved", told(9 * each(8, scores=3)))
    monkeypatch.setattr(torch.cuda, "memory_allocated", told(4 * each(8, scores=3)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", told((15 * each(8, scores=3), 10**15)))
    assert images_per_certifying_pass(pair(F32, "cuda:1"), Certifying(F64, True, 0.0)) == 5  # (15 + 9 - 4) / 4
    assert asked == [torch.device("cuda:1")] * 3
