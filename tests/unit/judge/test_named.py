"""One part is named: each rule meets a decoder with exactly that mistake, every precision a right one."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.decoders._factory import Factory
from harness.models._pair import ModelPair, close_pair
from harness.models.network import Cache, Condition
from harness.models.var.transformer import Transformer
from harness.mutants import masks, state
from harness.mutants._mutant import Mutant
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol.pyramid import ScalePyramid
from harness.rounding import quick_budget
from harness.speculative._state import KVCache
from harness.speculative.parts import PARTS
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, decoder_factory, tiny, verify_here
from tests.unit.judge.named import MODELS, REQUESTS, STRANGERS, first, within
from tests.unit.judge.planted_lines import BY_LEVEL, CUT, module_of

# What a pass finds in its cache: of keys and values (layers, 2, guidance rows, heads, positions, c), of B images.
CACHES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "those of the other half": lambda kv, B: kv.roll(B, 2),
    r"those of image \d of the batch": lambda kv, B: kv.unflatten(2, (2, B)).roll(1, 3).flatten(2, 3),
    "zeros": lambda kv, B: torch.zeros_like(kv),
}


@pytest.mark.parametrize("what", CACHES)
@pytest.mark.parametrize("draft_len", [1, 3])
def test_a_cache_of_other_keys_is_told_from_a_mask(what: str, draft_len: int):
    class Other(KVCache):
        """Keeps something else of passes that are over."""

        def window(self, images: list[int]) -> Any:
            self.kv.copy_(CACHES[what](self.kv, len(self.lengths)))
            return super().window(images)

    component, detail = first(decoder_factory(replace(PARTS, new_cache=Other)), STRANGERS, draft_len)
    assert component == "cache"
    assert re.search(f"where (cached keys and values are|the last cached scale is) {what}", detail)


def test_rows_of_the_cache_at_another_images_place_are_told_from_a_mask():
    class Offset(KVCache):
        """Counts unconditional rows from the part of the batch, not from the batch."""

        def window(self, images: list[int]) -> Any:
            window = super().window(images)
            if window.rows_R is not None:
                window.rows_R = torch.tensor([*images, *(len(images) + image for image in images)])
            return window

    models = close_pair(tiny(Layout((1, 2, 3, 4))), 0.03)
    component, detail = first(decoder_factory(replace(PARTS, new_cache=Offset)), models, 2)
    assert component == "cache"
    assert re.search(r"where the unconditional .*rows of the cache are those of image \d of the batch", detail)


class OtherCondition:
    """A network whose blocks and head have another image's condition; its inputs are right."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def condition(self, label_R: Tensor) -> Condition:
        own, B = self.inner.condition(label_R), len(label_R) // 2
        rows = torch.tensor([0] * B + list(range(B, 2 * B)))
        return replace(own.rows(rows), cond_RD=own.cond_RD)


def test_another_images_condition_where_inputs_are_right_is_called_condition():
    component, detail = first(within(nullcontext, lambda m: replace(m, target=OtherCondition(m.target))))
    assert (component, detail[:31]) == ("condition", "the conditional rows of scale 0")


def test_keys_that_a_rejected_scale_left_are_told_from_a_mask():
    component, detail = first(state.STALE, STRANGERS)
    assert component == "cache"
    assert "where keys and values of a rejected scale stay as they were first written" in detail


@pytest.mark.parametrize(
    ("draft_len", "said"), [(2, "cached"), (4, "cached, and seen by their own and later scales alone")]
)
def test_rejected_scales_that_a_mask_by_level_sees_are_told_from_a_mask(draft_len: int, said: str, tmp_path: Path):
    """Of one rejected scale every row sees all; of several no row sees those that are later than its own."""
    mine = module_of(BY_LEVEL.replace(CUT, "            pass\n"), tmp_path / "mine.py")
    component, detail = first(mine.factory, STRANGERS, draft_len)
    assert (component, detail.partition("rows of rejected scales are still ")[2]) == ("cache", said), detail
    right = module_of(BY_LEVEL, tmp_path / "right.py")
    assert verify_here(STRANGERS, right.factory, [Settings(draft_len)], REQUESTS).first_divergence is None


def rolled_back_too_far(masked: Callable[[ScalePyramid, int, int], Tensor]) -> Factory:
    """Return decoders whose caches lose the last final scale after a correction; passes go on with the masks given.

    Of images alone: those of one batch would have to be corrected at the same scale.
    """

    class Short(KVCache):
        lost = slice(0, 0)

        def rollback(self, image: int, length: int) -> None:
            if length < self.lengths[image]:
                pyramid = MODELS.pyramid
                self.lost = slice(pyramid.begin(pyramid.level_of(length - 1)), length)
            super().rollback(image, length)

        def window(self, images: list[int]) -> Any:
            window = super().window(images)
            extend, lost = window.extend, self.lost

            def short(*of: Any) -> tuple[Tensor, ...]:
                return tuple(torch.cat((kv[:, :, : lost.start], kv[:, :, lost.stop :]), 2) for kv in extend(*of))

            window.extend = short
            held.append(lost.stop - lost.start)
            return window

    held: list[int] = []

    def mask(pyramid: ScalePyramid, begin: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        right = PARTS.attention_mask(pyramid, begin, last, device, dtype)
        if not held[-1]:
            return right
        sees_nK = masked(pyramid, begin, last)[:, : right.shape[-1] - held[-1]]
        return torch.zeros(sees_nK.shape, dtype=dtype).masked_fill(~sees_nK, float("-inf"))[None, None]

    return decoder_factory(replace(PARTS, new_cache=Short, attention_mask=mask))


def sees_LL(pyramid: ScalePyramid) -> Tensor:
    level_L = torch.tensor(pyramid.levels())
    return level_L[:, None] >= level_L


def all_that_is_cached(pyramid: ScalePyramid, first: int, last: int) -> Tensor:
    """Take away the columns of what is lost."""
    before, K, end = pyramid.begin(first - 1), pyramid.begin(first), pyramid.end(last)
    return torch.cat((sees_LL(pyramid)[K:end, :before], sees_LL(pyramid)[K:end, K:end]), 1)


def rows_from_its_end(pyramid: ScalePyramid, first: int, last: int) -> Tensor:
    """Take as many rows as there are, from the cache's length on."""
    before, n = pyramid.begin(first - 1), pyramid.end(last) - pyramid.begin(first)
    return sees_LL(pyramid)[before : before + n]


def fewer_columns(pyramid: ScalePyramid, first: int, last: int) -> Tensor:
    """Take the right rows, and as many columns as there are keys."""
    return sees_LL(pyramid)[pyramid.begin(first) : pyramid.end(last)]


@pytest.mark.parametrize(
    ("masked", "said"),
    [(all_that_is_cached, ""), (rows_from_its_end, ", and mask rows "), (fewer_columns, ", and mask columns ")],
)
def test_a_cache_that_was_rolled_back_one_scale_too_far_is_told_from_a_mask(masked: Any, said: str):
    requests = [Request((2,), seed) for seed in range(4)]
    found = verify_here(MODELS, rolled_back_too_far(masked), [Settings(3)], requests).first_divergence
    assert found is not None
    assert (found.component, found.scale > 1) == ("cache", True), str(found)
    assert f"where the last cached scale is missing, as after a rollback too far{said}" in found.detail


def test_a_network_that_is_wrong_by_itself_is_neither_mask_nor_cache():
    def bent(models: ModelPair, settings: Settings) -> Any:
        weights = {**models.target.weights, "blocks.0.ffn.fc1.bias": models.target.weights["blocks.0.ffn.fc1.bias"] + 1}
        return build_decoder(replace(models, target=replace(models.target, weights=weights)), settings)

    assert first(bent, draft_len=1)[0] == "network"


@pytest.mark.parametrize(
    ("bug", "said"),
    [
        (masks.OPEN, "scale 0 are those of the pass over scales 0..2 where rows see the whole window"),
        (masks.EARLIER_ONLY, "scale 0 are those of the pass over scales 0..2 where rows do not see their own scale"),
        (masks.TOKEN_CAUSAL, "where rows do not see later tokens of their own scale"),
        (masks.CORNER, "where the mask is the "),
        (masks.NO_PREFIX, "of the 1 cached positions is seen"),
    ],
    ids=lambda value: getattr(value, "id", ""),
)
@pytest.mark.parametrize("bonus", [False, True])
def test_a_wrong_mask_is_named_by_what_it_shows(bug: Mutant, said: str, bonus: bool):
    found = verify_here(STRANGERS, bug, [Settings(3, bonus)], REQUESTS).first_divergence
    assert found is not None
    assert found.component == "mask", str(found)
    assert said.replace("0..2", "0..3" if bonus else "0..2") in found.detail


@dataclass(frozen=True)
class Padded:
    """A cache with empty positions after those that are written."""

    inner: Cache
    count: int

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        k_RHKc, v_RHKc = self.inner.extend(layer, k_RHnc, v_RHnc)
        return F.pad(k_RHKc, (0, 0, 0, self.count)), F.pad(v_RHKc, (0, 0, 0, self.count))


class SeesEmpty(Transformer):
    """It sees all that a cache of an image's length has left, or a spare position."""

    spare = False

    def hidden(self, x_RnD: Tensor, condition: Any, cache: Any, mask_11nK: Tensor | None, *given: Any) -> Tensor:
        L = self.pyramid.L
        count = 1 if self.spare else L - (mask_11nK.shape[-1] if mask_11nK is not None else x_RnD.shape[1])
        mask_11nK = None if mask_11nK is None else F.pad(mask_11nK, (0, count))
        return super().hidden(x_RnD, condition, Padded(cache, count), mask_11nK, *given)


class SeesSpare(SeesEmpty):
    spare = True


class SeesAhead(Transformer):
    """Its rows see the scale after their own, too."""

    def hidden(self, x_RnD: Tensor, condition: Any, cache: Any, mask_11nK: Tensor | None, *given: Any) -> Tensor:
        if mask_11nK is not None:
            n, K = mask_11nK.shape[-2:]
            level_K = torch.tensor(self.pyramid.levels()[:K])
            seen_nK = level_K[K - n :, None] + 1 >= level_K
            mask_11nK = torch.zeros_like(mask_11nK).masked_fill(~seen_nK, float("-inf"))
        return super().hidden(x_RnD, condition, cache, mask_11nK, *given)


class Interleaves(Transformer):
    """Each image's two rows come one after the other, and their conditions half after half."""

    def hidden(self, x_RnD: Tensor, *given: Any) -> Tensor:
        return super().hidden(x_RnD.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1), *given)


class TurnsAndMore(Transformer):
    """Rows have the inputs of those before, and what comes of unconditional ones is something else besides."""

    def hidden(self, x_RnD: Tensor, *given: Any) -> Tensor:
        conditional_BnD, unconditional_BnD = super().hidden(x_RnD.roll(1, 0), *given).chunk(2)
        return torch.cat((conditional_BnD, unconditional_BnD.roll(1, -1)))


@pytest.mark.parametrize(
    ("network", "component", "said"),
    [
        (SeesAhead, "mask", "scale 0 are those of the pass over scales 0..2 where rows see the scale after their own"),
        (SeesEmpty, "mask", "rows see 16 empty positions of the cache, too"),
        (SeesSpare, "mask", "rows see 1 empty position of the cache, too"),
        (Interleaves, "rows", "rows of scale 0 are given the inputs of other rows of the batch: the conditional ones "
                              "those of the unconditional rows of image 1 and the unconditional ones those of the "
                              "conditional rows of image 2"),
        (TurnsAndMore, "mask or network", "blocks or head are wrong"),
    ],
)  # fmt: skip
def test_what_a_pass_sees_and_is_given_is_named(network: type[Transformer], component: str, said: str):
    def factory(models: ModelPair, settings: Settings) -> Any:
        target = network(models.target.config, models.target.weights)
        return build_decoder(replace(models, target=target), settings)

    found = verify_here(STRANGERS, factory, [Settings(3)], REQUESTS).first_divergence
    assert found is not None
    assert (found.component, said in found.detail) == (component, True), str(found)


def test_a_network_that_forgets_its_mask_is_no_rounding(monkeypatch: pytest.MonkeyPatch):
    """Both sides share it; a pass over one scale needs no mask, so that the reference is right."""
    quick_budget(STRANGERS)  # of the right network, and kept: a process may begin with this test
    attention, hidden, blocks = F.scaled_dot_product_attention, Transformer.hidden, list[int]()

    def first_block_alone(*qkv: Tensor, scale: float) -> Tensor:
        blocks.append(1)
        return attention(*qkv[:3], qkv[3] if len(blocks) == 1 else None, scale=scale)

    def counted(network: Transformer, *given: Any) -> Tensor:
        blocks.clear()
        return hidden(network, *given)

    monkeypatch.setattr(F, "scaled_dot_product_attention", first_block_alone)
    monkeypatch.setattr(Transformer, "hidden", counted)
    component, detail = first(build_decoder, STRANGERS)
    assert component == "mask", detail
    assert "scale 0 are those of the pass over scales 0..2 under the right mask" in detail
