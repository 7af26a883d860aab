"""What is named where numbers of fewer bits are computed with, and that rounding explains no other mistake."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.judge import _rounded
from harness.judge._rounded import _ShortOperands, explains
from harness.models._pair import ModelPair
from harness.models.network import Condition
from harness.protocol._decoder import Settings
from harness.protocol.pyramid import ScalePyramid
from harness.speculative import _steps as steps
from harness.speculative import _var as var
from harness.speculative._state import KVCache
from harness.speculative.parts import PARTS
from harness.speculative.sampler import build_decoder
from tests.helpers import decoder_factory, verify_here
from tests.unit.judge.named import MODELS, REQUESTS, first, within

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Float32(SimpleNamespace):
    """A cache that keeps float32, whatever is computed in."""

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.inner.extend(layer, k_RHnc.float(), v_RHnc.float())
        return k.to(k_RHnc.dtype), v.to(v_RHnc.dtype)


class Autocast:
    """A network whose blocks and head run under autocast."""

    def __init__(self, inner: Any, dtype: torch.dtype) -> None:
        self.inner, self.autocast = inner, torch.autocast("cpu", dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Any, mask_11nK: Tensor | None, positions=None
    ) -> Tensor:
        with self.autocast:
            return self.inner.hidden(x_RnD, condition, Float32(inner=cache), mask_11nK)

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        with self.autocast:
            return self.inner.logits(h_RnD, condition).float()


def same(models: ModelPair) -> ModelPair:
    return models


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_numbers_of_fewer_bits_are_called_precision(name: str, how: str):
    if how == "autocast":
        bug = within(nullcontext, lambda models: replace(models, target=Autocast(models.target, HALF[name])))
    else:
        bug = within(nullcontext, lambda models: models.to("cpu", HALF[name]))
    component, detail = first(bug)
    assert component == "precision"
    assert re.search(rf"scale 0 (is the right one|are the right ones), rounded to {name}", detail)


def test_the_operands_of_tf32_are_called_precision():
    assert first(within(_ShortOperands, same)) == (
        "precision",
        "logits of scale 0 are the right ones, rounded to TF32",
    )


@pytest.mark.parametrize("name", HALF)
def test_guidance_in_fewer_bits_is_called_precision(name: str):
    def guide(rows_RnV: Tensor, *of: Any) -> Tensor:
        return var.guide(rows_RnV.to(HALF[name]), *of).float()

    component, detail = first(decoder_factory(replace(PARTS, guide=guide)))
    assert (component, detail) == ("precision", f"guided logits of scale 0 are combined in {name}")


@pytest.mark.parametrize("name", HALF)
def test_f_hat_in_fewer_bits_is_called_precision(name: str):
    def change(models: ModelPair) -> ModelPair:
        return replace(models, vae=models.vae.to("cpu", HALF[name]))

    def next_input(f_hat_BCPP: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
        return var.next_input(f_hat_BCPP.float(), si, pyramid)

    bug = within(nullcontext, change)
    component, detail = first(bug)
    assert (component, detail) == ("precision", f"f_hat after scale 0 is the right one, rounded to {name}")


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("draft_len", [1, 2])
def test_a_cache_of_fewer_bits_is_called_precision(name: str, draft_len: int):
    class Short(KVCache):
        """Keeps keys and values of passes that are over in fewer bits."""

        def window(self, images: list[int]) -> Any:
            self.kv.copy_(self.kv.to(HALF[name]))
            return super().window(images)

    component, detail = first(decoder_factory(replace(PARTS, new_cache=Short)), draft_len=draft_len)
    assert component == "precision"
    assert f"cached keys and values are rounded to {name}" in detail


class ShortHead:
    """A network whose head gets hidden states of fewer bits."""

    def __init__(self, inner: Any, short: torch.dtype) -> None:
        self.inner, self.short = inner, short

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        return self.inner.logits(h_RnD.to(self.short).to(h_RnD.dtype), condition)


@pytest.mark.parametrize("name", HALF)
def test_a_head_that_gets_fewer_bits_is_called_precision(name: str):
    bug = within(nullcontext, lambda models: replace(models, target=ShortHead(models.target, HALF[name])))
    assert first(bug) == ("precision", f"the head of scale 0 is given hidden states rounded to {name}")


RIGHT = [("float32", torch.float32), ("float64", torch.float64), ("bfloat16", torch.bfloat16)]


@pytest.mark.parametrize("dtype", [dtype for _, dtype in RIGHT], ids=[name for name, _ in RIGHT])
@pytest.mark.parametrize("draft_len", [1, 4])
def test_a_right_decoder_passes_in_each_precision(dtype: torch.dtype, draft_len: int):
    result = verify_here(MODELS.to("cpu", dtype), build_decoder, [Settings(draft_len)], REQUESTS)
    assert result.settings[0].total("defects") == 0, result.first_divergence


def test_rounding_comes_twice_as_near_or_explains_nothing():
    exact, rounded = torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, 1.0])
    assert explains(0.55 * rounded, exact, 0.8 * rounded)  # a distance of 0.25 to one of 0.55
    assert not explains(0.55 * rounded, exact, rounded)
    assert not explains(exact, exact, exact)
    assert not explains(torch.full((4,), torch.nan), exact, rounded)


def test_a_mask_that_moves_less_than_bfloat16_does_is_no_rounding():
    """Plant: the first column is hidden a little, by an additive mask of -0.001."""

    def attention_mask(pyramid: ScalePyramid, start: int, last: int, device: Any, dtype: torch.dtype) -> Tensor:
        mask = steps.attention_mask(pyramid, start, last, device, dtype).clone()
        mask[..., 1:, 0] -= 1e-2
        return mask

    component, _ = first(decoder_factory(replace(PARTS, attention_mask=attention_mask)))
    assert component in ("mask", "mask or cache", "mask, cache or network")


@pytest.mark.parametrize(("added", "tries"), [(100.0, 0), (0.01, 2)])
def test_rounding_is_tried_where_it_could_explain_and_on_one_image_of_a_batch(
    added: float, tries: int, monkeypatch: pytest.MonkeyPatch
):
    """A logit that is moved: too far for rounding, or so little that its own runs must tell, once a batch of three."""
    tried = []
    monkeypatch.setattr(_rounded, "_rounded_runs", lambda evidence, image, scales: tried.append(image) or iter(()))

    def moved(models: ModelPair) -> ModelPair:
        bias = {"head.bias": models.target.weights["head.bias"] + added * torch.arange(models.target.config.V)}
        return replace(models, target=replace(models.target, weights={**models.target.weights, **bias}))

    assert first(within(nullcontext, moved))[0] not in ("precision", "")
    assert len(tried) == tries  # two requests
