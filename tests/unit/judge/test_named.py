"""One part is named: each rule meets a decoder with exactly that mistake, every precision a right one."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.decoders._factory import Factory
from harness.models._pair import ModelPair, close_pair
from harness.models.network import Condition, Network
from harness.models.var.transformer import Transformer
from harness.mutants import masks, state
from harness.mutants._mutant import Mutant
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol.pyramid import ScalePyramid
from harness.rounding import quick_budget
from harness.speculative import _var as var
from harness.speculative._state import KVCache
from harness.speculative.parts import PARTS
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, decoder_factory, tiny, verify_here
from tests.unit.judge.named import MODELS, REQUESTS, first, within
from tests.unit.judge.planted_lines import BY_LEVEL, CUT, TEMPLATE, module_of

STRANGERS = tiny(Layout((1, 2, 3, 4)), kin=float("inf"))  # hardly a drafted scale is accepted
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


RUNNING = TEMPLATE.replace(
    "        accepted = wrong = 0\n", "        accepted = wrong = 0\n        running = self.f_hat(START)\n"
).replace(
    "self.f_hats.append(self.f_hat(self.tokens))",
    "running = running + self.f_hat(self.tokens) - self.f_hat(self.tokens[:-1]); self.f_hats.append(running)",
)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("self.tokens", None),
        ("self.tokens + drafted", "starts from the draft's f_hat after drafted scale 2, not from zeros"),
        ("self.tokens + drafted[:-1]", "starts from the draft's f_hat after drafted scale 1, not from zeros"),
        ("self.tokens[:-1]", "starts from zeros, not from that after scale 0"),
    ],
)
def test_where_f_hat_starts_from_is_said(start: str, said: str | None, tmp_path: Path):
    mine = module_of(RUNNING.replace("START", start), tmp_path / "mine.py")
    found = verify_here(STRANGERS, mine.factory, [Settings(3)], REQUESTS).first_divergence
    assert (found is None) == (said is None), str(found)
    assert found is None or (found.component, said in found.detail) == ("f_hat", True), str(found)


def test_an_input_that_is_made_of_the_drafts_f_hat_says_after_which_scale(tmp_path: Path):
    """The target's first input of a round is made of what the draft had in the round before."""
    text, of_tokens = TEMPLATE, "self.f_hat(tokens[:si])"
    for old, new in (
        ("- 1\n        x_RnD =", "- 1\n        self.first = first\n        x_RnD ="),
        ("wrong = 0\n", "wrong = 0\n        self.left = self.f_hat(self.tokens + drafted)\n"),
        (of_tokens, f"(self.left if network is self.models.target and si == self.first else {of_tokens})"),
    ):
        assert old in text
        text = text.replace(old, new)
    component, detail = first(module_of(text, tmp_path / "mine.py").factory, STRANGERS)
    assert (component, detail) == (
        "next input",
        "the input of scale 1 is made of the draft's f_hat after drafted scale 2",
    )


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


class Headed(SimpleNamespace):
    """A network whose head is given something else; everything else is the network's own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Any, mask_11nK: Tensor | None, positions=None
    ) -> Tensor:
        hidden_RnD = self.inner.hidden(x_RnD, condition, cache, mask_11nK)
        return self.change(self.inner, x_RnD, hidden_RnD, condition, mask_11nK)


def headed(change: Callable[..., Tensor]) -> Factory:
    def factory(models: ModelPair, settings: Settings) -> Any:
        return build_decoder(replace(models, target=Headed(inner=models.target, change=change)), settings)

    return factory


def raw(inner: Network, x_RnD: Tensor, *_: Any) -> Tensor:
    return x_RnD


def late(inner: Network, x_RnD: Tensor, hidden_RnD: Tensor, *_: Any) -> Tensor:
    return hidden_RnD.roll(-1, 1)


def test_the_raw_input_in_the_heads_place_is_called_head():
    assert first(headed(raw)) == (
        "head",
        "the head of scale 0 is given the network's raw input, not the last hidden state",
    )


def test_the_output_of_an_earlier_block_is_called_head():
    def shallow(models: ModelPair, settings: Settings) -> Any:
        weights = {
            name: torch.zeros_like(tensor) if name.startswith(("blocks.1.attn.proj", "blocks.1.ffn.fc2")) else tensor
            for name, tensor in models.target.weights.items()
        }  # a block that adds nothing is none
        return build_decoder(replace(models, target=replace(models.target, weights=weights)), settings)

    assert first(shallow) == (
        "head",
        "the head of scale 0 is given the output of block 1 of 2, not the last hidden state",
    )


def test_rows_that_are_one_late_are_called_split():
    component, detail = first(headed(late), draft_len=4)
    assert component == "split"
    assert detail == "logits of scale 0 are those of positions 1..1, not 0..0, one late"


def test_a_network_that_is_wrong_by_itself_is_neither_mask_nor_cache():
    def bent(models: ModelPair, settings: Settings) -> Any:
        weights = {**models.target.weights, "blocks.0.ffn.fc1.bias": models.target.weights["blocks.0.ffn.fc1.bias"] + 1}
        return build_decoder(replace(models, target=replace(models.target, weights=weights)), settings)

    assert first(bent, draft_len=1)[0] == "network"


def query(change: Callable[..., Tensor]) -> Factory:
    """Return decoders whose query holds what `change` makes of network, tokens' codes and window."""
    return decoder_factory(replace(PARTS, build_combined_query=change))


def without_bias(network: Network, condition: Condition, raw_BnC: Tensor, start: int, last: int) -> Tensor:
    x_RnD = var.build_combined_query(network, condition, raw_BnC, start, last)
    behind = slice(1 if start == 0 else 0, None)
    x_RnD[:, behind] -= network.weights["word_embed.bias"]
    return x_RnD


def one_late(network: Network, condition: Condition, raw_BnC: Tensor, start: int, last: int) -> Tensor:
    """Put a start token in front of every window."""
    x_RnD = var.build_combined_query(network, condition, raw_BnC, start, last)
    begin = condition.cond_RD[:, None] + network.start_1D + network.lvl_SD[0] + network.pos_LD[:1]
    return torch.cat((begin, x_RnD), 1)[:, :-1]


def resized(mode: str) -> Callable[..., Tensor]:
    def next_input(f_hat_BCPP: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
        side = pyramid.patch_nums[si]
        return F.interpolate(f_hat_BCPP, (side, side), mode=mode).flatten(2).mT

    return next_input


def turned(f_hat_BCPP: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    return var.next_input(f_hat_BCPP.mT, si, pyramid)


INPUTS = [
    (replace(PARTS, build_combined_query=without_bias), "query", "scale 1 is made of its f_hat without the embedding"),
    (replace(PARTS, build_combined_query=one_late), "split", "scale 1 is that of positions 0..3, not 1..4"),
    (replace(PARTS, next_input=resized("nearest")), "next input", "made of f_hat resized by nearest, not by area"),
    (replace(PARTS, next_input=turned), "next input", "made of f_hat with rows and columns exchanged"),
]


@pytest.mark.parametrize(("used", "component", "said"), INPUTS, ids=[said for *_, said in INPUTS])
def test_what_stands_in_an_inputs_place_is_named(used: Any, component: str, said: str):
    found, detail = first(decoder_factory(used))
    assert (found, said in detail) == (component, True), detail


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
