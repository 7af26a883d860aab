"""Which f_hat is shown, or made an input: of other tokens, with a scale too many, or in fewer bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.judge._components import first_wrong_of
from harness.judge._evidence import Evidence
from harness.judge._suspects import drafted
from harness.protocol.noise import TOKEN
from harness.reference import family_of
from tests.unit.judge.test_places import PYRAMID, said, same, stairs
from tests.unit.judge.test_tokens import MODELS


def added(found: Evidence, f_hat_BCPP: Tensor, tokens_l: Tensor, si: int) -> Tensor:
    """Return f_hat of image 1 after one more scale."""
    quantizer, pyramid = found.models.vae.quantizer, found.models.pyramid
    codes = quantizer.codes(tokens_l[None], *pyramid.sides[si])
    return family_of(found.models.target).accumulate(f_hat_BCPP[1:2], codes, si, quantizer, pyramid)[0]


def of_other_tokens(found: Evidence, which: str, si: int = 1) -> Tensor:
    """Give image 1 tokens of its own at a scale, with their f_hat; return the target's, or what the draft draws."""
    span, f_hat_SBCPP = PYRAMID.draws.span(si), found.expected.intermediates.f_hat_SBCPP
    found.actual.tokens_BL[1, span] = (found.actual.tokens_BL[1, span] + 1) % MODELS.target.config.V
    for side in (found.actual, found.expected):
        side.intermediates.f_hat_SBCPP[si, 1] = added(found, f_hat_SBCPP[si - 1], found.actual.tokens_BL[1, span], si)
    return found.expected.tokens_BL[1, span] if which == "target" else drafted(found, 1, si, TOKEN)


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("target", "that of the target's draws of that scale"),
        ("draft", "that of the tokens that the draft draws there"),
    ],
)
def test_an_f_hat_of_other_tokens_than_the_decoders_says_of_which(which: str, words: str):
    found = same()
    other_l, before = of_other_tokens(found, which), found.expected.intermediates.f_hat_SBCPP[0]
    assert said(found, 1) is None
    found.actual.intermediates.f_hat_SBCPP[1, 1] = added(found, before, other_l, 1)
    assert said(found, 1) == ("f_hat", f"f_hat after scale 1 is {words}, not of its tokens")
    wrong = first_wrong_of(found, 1, [1])
    assert wrong is not None and wrong.is_f_hat


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("own", "its own tokens"),
        ("target", "the target's draws of that scale"),
        ("draft", "the tokens that the draft draws there"),
    ],
)
def test_an_input_of_an_f_hat_to_which_a_scale_was_added_twice_says_of_which_tokens(which: str, words: str):
    found, family = same(), family_of(MODELS.target)
    other_l = of_other_tokens(found, which)
    tokens_l = found.actual.tokens_BL[1, PYRAMID.draws.span(1)] if which == "own" else other_l
    after, network = added(found, found.actual.intermediates.f_hat_SBCPP[1], tokens_l, 1), MODELS.target
    own_lD = network.lvl_SD[2] + network.pos_LD[PYRAMID.span(2)]
    for side, f_hat in ((found.expected, found.expected.intermediates.f_hat_SBCPP[1, 1]), (found.actual, after)):
        made_lD = network.embed(family.next_input(f_hat[None], 2, PYRAMID))[0] + own_lD
        side.intermediates.x_RLD[[1, 3], PYRAMID.span(2)] = made_lD
    why = f"the input of scale 2 is made of f_hat after scale 1, to which that of {words} was added besides"
    assert said(found, 1, 2) == ("next input", why)


@pytest.mark.parametrize(("dtype", "word"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_an_f_hat_that_was_rounded_once_it_was_made_is_named(dtype: torch.dtype, word: str):
    found = stairs()
    made = found.actual.intermediates.f_hat_SBCPP[1, 1]
    made.copy_(made.to(dtype))
    assert said(found, 1) == ("precision", f"f_hat after scale 1 is the right one, rounded to {word}")
    other = "f_hat after scale 1 differs: codes, their resize or the sum"
    assert said(replace(found, is_exact=True), 1) == ("f_hat", other)
