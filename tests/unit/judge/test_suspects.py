"""Whose mistake it is: condition, rows, accept and draw told apart; a crash names its part."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.judge import Evidence, Verdict, judge
from harness.models._pair import ModelPair, close_pair
from harness.models.network import Condition, Network
from harness.mutants import acceptance, batch, positions, randomness, reuse, windows
from harness.mutants._mutant import Mutant, parts
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Intermediates, Round, Trace
from harness.protocol.noise import SeededNoise
from harness.protocol.pyramid import ScalePyramid
from harness.reference.sequential import sample_sequential
from harness.rounding import quick_budget
from harness.runs._cover import covering, plan_of, verify_coverage_plan
from harness.runs._decodes import Decodes, Terms
from harness.speculative import _var as steps
from harness.speculative._state import KVCache
from harness.speculative.parts import PARTS
from tests.helpers import Layout, some, tiny, verify_here

MODELS = close_pair(tiny(Layout((1, 2, 3, 4, 5))), 0.1)
REQUESTS = [Request((0, 2, 3, 1), seed) for seed in range(4)] + [Request((1, 1, 0, 2), 9)]


def first(bug: Any, *settings: Settings) -> Any:
    return verify_here(MODELS, bug, settings or [Settings(3), Settings(2, True)], REQUESTS).first_divergence


def rows_in_turns(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    """Put the two halves of every image side by side, where they must lie B rows apart."""
    x_RnD = steps.build_combined_query(network, condition, raw_BnC, first, last)
    B = len(x_RnD) // 2
    return x_RnD[[row for b in range(B) for row in (b, B + b)]]


IN_TURNS = Mutant("positions.in-turns", "rows in turns", "another order", parts(build_combined_query=rows_in_turns))


@pytest.mark.parametrize(
    ("bug", "component"),
    [
        (acceptance.ALL_STAND, "accept"), (acceptance.FIRST_STANDS, "accept"), (acceptance.NOT_REPLACED, "accept"),
        (windows.SECOND_FREE, "accept"), (windows.LATE_FREE, "accept"), (windows.FIRST_CONDITION, "condition"),
        (reuse.STALE_CONDITION, "condition"), (batch.FIRST_LABEL, "condition"), (IN_TURNS, "rows"),
        (randomness.REDRAWN, "draw"), (randomness.WRONG_SCALE, "draw"), (windows.BONUS_GREEDY, "draw"),
        (windows.BONUS_FIRST, "rows"), (positions.OFFSET, "positions"), (windows.LATE_MASK, "mask"),
        (windows.INTERLEAVED_ROWS, "guidance"),
    ],
    ids=lambda value: getattr(value, "id", value),
)  # fmt: skip
def test_a_planted_bug_is_named_by_its_part(bug: Mutant, component: str):
    found = first(bug)
    assert found is not None
    assert found.component == component, str(found)


def left_inputs(
    state: Any, given: Any, images: list[int], first: int, tokens: list[Tensor], finished: list[int]
) -> Any:
    """Leave the input after a round as the draft made it, where its tokens were corrected."""
    before = state.raw_BLC.clone()
    PARTS.update_state_with_accepted_tokens(state, given, images, first, tokens, finished)
    for image, count in zip(images, finished, strict=True):
        if first + count < state.pyramid.S:
            span = state.pyramid.span(first + count)
            state.raw_BLC[image, span] = before[image, span]


def short_input(f_hat: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    return PARTS.next_input(f_hat.bfloat16(), si, pyramid).float()


def no_start(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    mask_11nK = PARTS.attention_mask(pyramid, first, last, device, dtype).clone()
    mask_11nK[..., 0] = float("-inf") if first > 1 else 0.0
    return mask_11nK


class HalfCache(KVCache):
    """Keys and values in float16, converted as they are read."""

    short = True, True

    def window(self, images: list[int]) -> Any:
        window = super().window(images)
        extend = window.extend

        def kept(layer: int, *kv: Tensor) -> tuple[Tensor, Tensor]:
            pairs = zip(kv, self.short, strict=True)
            return extend(layer, *(each.half().float() if short else each for each, short in pairs))

        window.extend = kept  # type: ignore[method-assign]
        return window


class HalfKeys(HalfCache):
    short = True, False


class HalfValues(HalfCache):
    short = False, True


def own_labels(network: Network, request: Request, labels_B: Tensor) -> Condition:
    return network.condition(labels_B.repeat(2))


def label_0(network: Network, request: Request, labels_B: Tensor) -> Condition:
    return network.condition(torch.cat((labels_B, torch.zeros_like(labels_B))))


@pytest.mark.parametrize(
    ("changes", "component", "clause"),
    [
        ({"update_state_with_accepted_tokens": left_inputs}, "next input", "what was drafted at scale"),
        ({"next_input": short_input}, "precision", "f_hat that was resized in bfloat16"),
        ({"attention_mask": no_start}, "mask", "position 0 is not seen"),
        ({"new_cache": HalfCache}, "precision", "rounded to float16 (values)"),  # at scale 0, where keys do not show
        ({"new_cache": HalfKeys}, "precision", "rounded to float16 (keys)"),
        ({"new_cache": HalfValues}, "precision", "rounded to float16 (values)"),
        ({"condition_rows": label_0}, "condition", "the unconditional rows of scale 0 are those of label 0"),
        ({"condition_rows": own_labels}, "condition", "rows of scale 0 are those of the images' own labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_tensor_is_made_of_names_the_part(changes: dict[str, Any], component: str, clause: str):
    found = first(parts(**changes))
    assert found.component == component, str(found)
    assert clause in found.detail, found.detail


def test_right_unconditional_rows_are_not_blamed_for_an_image_that_has_their_label():
    def moved(network: Network, request: Request, labels_B: Tensor) -> Condition:
        return network.condition(torch.cat((labels_B.roll(1), torch.full_like(labels_B, 3))))

    requests = [Request((0, 3, 2, 1), 0)]  # 3 is the unconditional label
    found = verify_here(MODELS, parts(condition_rows=moved), [Settings(3)], requests).first_divergence
    assert found is not None
    assert found.component == "condition"
    assert "unconditional rows" not in found.detail, found.detail


# an error in hundreds of tokens, or cfg and filters of the default requests: the larger pyramid and codebook of digits
LARGE = ("acceptance.nearly-whole", "acceptance.one-forgiven", "randomness.nearly-one", "streams.bent")
BEYOND = [
    thing
    for module in (reuse, windows)
    for thing in vars(module).values()
    if isinstance(thing, Mutant) and thing.component and thing.id not in LARGE
]


@pytest.mark.parametrize("bug", some(3, BEYOND), ids=lambda bug: bug.id)
def test_the_default_verification_catches_and_places_what_a_close_draft_shows(bug: Mutant):
    blocks = covering(tiny(Layout((1, 2, 3, 4, 5))), noise=0.1)
    decodes = Decodes(bug, plan_of(blocks), Terms(in_process=True, first_only=True))
    found = verify_coverage_plan(blocks[0].models, decodes).first_divergence
    assert found is not None
    assert found.component == bug.component, str(found)


class Short(KVCache):
    """A cache that is too small."""

    def window(self, images: list[int]) -> Any:
        window = super().window(images)
        if window.start:
            window.start += 1000
        return window


def flat_mask(*_: Any) -> Tensor:
    return torch.zeros(1, 1, 1, 1, dtype=torch.int64).view(7)


def no_guidance(rows_RnV: Tensor, *_: Any) -> Tensor:
    return rows_RnV[99]


def no_draw(*_: Any) -> Tensor:
    raise IndexError("list index out of range")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"attention_mask": flat_mask}, "mask"), ({"new_cache": Short}, "cache"), ({"draw": no_draw}, "draw"),
        ({"guide": no_guidance}, "guidance"),
    ],
)  # fmt: skip
def test_a_crash_names_the_part_in_which_it_happened(changes: dict[str, Any], part: str):
    found = first(parts(**changes), Settings(3))
    assert found.component == "crash"
    assert found.detail.endswith(f": part {part}"), found.detail


def corrected_too_late(models: ModelPair, settings: Settings) -> Any:
    """Accept the first scale unseen, and put right its token and f_hat at the end: what was decided behind it stays."""
    inner = acceptance.FIRST_STANDS(models, settings)

    def decode(request: Request, noise: SeededNoise) -> Trace:
        made = inner.decode(request, noise)
        due = sample_sequential(models.target, models.vae, request, models.noise(request))
        tokens_BL = torch.cat((due.tokens_BL[:, :1], made.tokens_BL[:, 1:]), 1)
        f_hat_SBCPP = torch.cat((due.intermediates.f_hat_SBCPP[:1], made.intermediates.f_hat_SBCPP[1:]))
        return replace(made, tokens_BL=tokens_BL, intermediates=replace(made.intermediates, f_hat_SBCPP=f_hat_SBCPP))

    return SimpleNamespace(contract=inner.contract, decode=decode)


@pytest.mark.parametrize("draft_len", [2, 3])
def test_a_scale_behind_a_replaced_one_is_named_as_kept(draft_len: int):
    """The second scale of the window stands on what the draft had drawn at the first, which is no longer there."""
    # one image: where there are others, their rows may hold the same token by chance
    requests = [Request((label,), seed) for label in (0, 1) for seed in range(3)]
    found = verify_here(MODELS, corrected_too_late, [Settings(draft_len)], requests).first_divergence
    assert found is not None
    assert (found.component, found.scale) == ("accept", 1)
    assert found.detail == "scale 1 was made final after tokens of scale 0 that its input does not hold"


@pytest.mark.parametrize(("drafted", "accepted"), [(0, 2), (1, 3), (8, 3)])
def test_rounds_that_say_less_than_they_made_final_stop_no_judge(drafted: int, accepted: int):
    """Passes are gone through again as rounds tell of them, and these lie."""
    request, pyramid = REQUESTS[0], MODELS.pyramid
    made = sample_sequential(MODELS.target, MODELS.vae, request, MODELS.noise(request))
    rounds, first = [], 0
    while first < pyramid.S:
        count = min(accepted, pyramid.S - first)
        tokens = sum(pyramid.tokens(first + k) for k in range(count))
        rounds.append(Round(first, drafted, count, False, False, tokens, 0, 0, tokens))
        first += count
    shown = {name: tensor.clone() for name, tensor in made.shown.named().items()}
    shown["rows_RLV"][:, pyramid.begin(pyramid.S - 1) :] += 3 * torch.sin(torch.arange(float(MODELS.target.config.V)))
    actual = replace(made, intermediates=Intermediates(**shown), rounds=[rounds] * request.B)
    judgement = judge(Evidence(MODELS, request, actual, made, quick_budget(MODELS)))
    assert judgement.verdict is Verdict.DEFECT
    assert {each.scale for each in judgement.defects if each.component != "counts"} == {pyramid.S - 1}
