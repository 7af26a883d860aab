"""What stands in the place of a network's input, query or head is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.decoders._factory import Factory
from harness.models._pair import ModelPair
from harness.models.network import Condition, Network
from harness.protocol._decoder import Settings
from harness.protocol.pyramid import ScalePyramid
from harness.speculative import _var as var
from harness.speculative.parts import PARTS
from harness.speculative.sampler import build_decoder
from tests.helpers import decoder_factory, verify_here
from tests.unit.judge.named import REQUESTS, STRANGERS, first
from tests.unit.judge.planted_lines import TEMPLATE, module_of

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
