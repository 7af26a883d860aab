"""The exactness probe names the operation and the widths that differ, and predicts the ties that they make."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from harness.bench._exactness import WHOLE, Exactness, Width, expected_ties, measure, parting
from harness.models import ModelPair, load_digits
from harness.protocol import Request
from harness.reference import draw
from harness.reference.sequential import sample_sequential
from harness.speculative import CacheWindow, KVCache
from harness.speculative.parts import FAMILIES, PARTS
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from tests.helpers import Layout, tiny
from tests.unit.bench.machines import Apart, RowByRow
from tests.unit.speculative.test_infinity import REQUEST as TEXTS
from tests.unit.speculative.test_infinity import pair as infinity

PRODUCTS = ("attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2")
OPERATIONS = {WHOLE, "inputs", "between", "attn.attention", "head", *PRODUCTS}


def exactness(models: ModelPair, request: Request, *machine: TorchFunctionMode) -> Exactness:
    """Measure one batch on a machine, the layer next to its arithmetic first."""
    with ExitStack() as layers:
        for layer in machine:
            layers.enter_context(layer)
        rows = [row for each in measure(models, request) for row in each]
    return Exactness(models.name, "float32", models.pyramid.S, models.pyramid.draws.L, False, rows, {})


def differing(found: Exactness) -> dict[str, set[Width]]:
    """Return the widths that differ, by the name of the operation."""
    names: dict[str, set[Width]] = {}
    for row in found.rows:
        for name in row.differs if row.operation != WHOLE else ():
            names.setdefault(name, set()).add(row.width)
    return names


def test_where_every_width_agrees_contract_a_holds_at_every_length():
    found = exactness(tiny(), Request((0, 1), 0), RowByRow())
    assert {row.operation for row in found.rows} == OPERATIONS
    assert len(found.rows) == len(OPERATIONS) * 2 * 6
    assert found.exact_lengths == [1, 2, 3]
    with RowByRow():
        assert [expected_ties(tiny(), Request((0, 1), 0), length) for length in (1, 2, 3)] == [0, 0, 0]


def test_so_it_does_in_the_other_family_whose_attention_comes_in_pieces():
    found = exactness(infinity(dtype=torch.float32), replace(TEXTS, labels=(1, 2)), RowByRow())
    assert {"sa.attention", "ca.attention", "ca.mat_kv", "ca.mat_q"} < {row.operation for row in found.rows}
    assert differing(found) == {}
    assert found.exact_lengths == [1, 2, 3, 4, 5]
    with RowByRow():
        assert expected_ties(infinity(dtype=torch.float32), replace(TEXTS, labels=(1, 2)), 3) == 0


def planted(seed: int) -> tuple[dict[str, set[Width]], dict[str, set[Width]]]:
    """Put a split product or a tiled attention at a number of rows of this seed's choice; return (found, expected)."""
    chosen = random.Random(seed)
    models = tiny(Layout(chosen.choice([(1, 2, 3), (1, 3, 4), (1, 2, 4, 5)])))
    request = Request((0, 1)[: 1 + seed % 2], 0)
    pyramid, blocks = models.pyramid, range(models.target.config.depth)
    products = ["head", *(f"blocks.{i}.{name}" for i in blocks for name in PRODUCTS)]
    product = chosen.choice(products) if chosen.random() < 0.6 else ""
    widths = [
        Width(request.B, images, first, last)
        for images in range(1, request.B + 1) for first in pyramid for last in range(max(first, 1), pyramid.S)
    ]  # fmt: skip

    def rows(width: Width) -> int:
        return 2 * width.images * (pyramid.end(width.last) - pyramid.begin(width.first))

    at = rows(chosen.choice(widths))
    # the query of scale 0 sees one key, which no tile divides
    alone = {si: Width(request.B, request.B, si, si) for si in pyramid if product or si}
    every = {*widths, *(Width(request.B, images, 0, 0) for images in range(1, request.B + 1))}
    apart = {
        width
        for width in every
        for si in range(width.first, width.last + 1)
        if si in alone and (rows(width) == at) != (rows(alone[si]) == at)
    }
    weight = models.target.weights[f"{product}.weight"] if product else None
    found = differing(exactness(models, request, RowByRow(), Apart(at, weight)))
    named = [product] if product else [f"blocks.{i}.attn.attention" for i in blocks]
    return found, dict.fromkeys(named, apart)


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_split_or_tile_is_named_with_its_widths_and_nothing_else_is(seed: int):
    found, expected = planted(seed)
    assert found == expected
    assert all(expected.values())


class Turned(TorchFunctionMode):
    """Does something to the result of a function at one number of rows."""

    def __init__(self, function: Any, rows: int, turn: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.rows, self.turn = function, rows, turn

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_it = func is self.function and len(args[0].flatten(0, -2)) == self.rows
        return (self.turn if is_it else func)(*args, **(kwargs or {}))


def layer_norm_next(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    out = F.layer_norm(x, *args, **kwargs)
    return torch.nextafter(out, torch.zeros_like(out))


def product_by_hand(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.addmm(bias, x.flatten(0, -2), weight.T).unflatten(0, x.shape[:-1])


def test_what_lies_between_two_operations_is_not_blamed_on_them():
    # the first norm alone has inputs that are put right; scales 0-2 are 14 positions
    found = differing(exactness(tiny(), Request((0,), 0), RowByRow(), Turned(F.layer_norm, 28, layer_norm_next)))
    assert found
    assert all(name.startswith("before ") for name in found)
    assert {width for widths in found.values() for width in widths} == {Width(1, 1, 0, 2)}


class Forgetful(KVCache):
    """Spoils what a pass over all scales leaves in the cache, after its logits are made."""

    def window(self, images: list[int]) -> CacheWindow:
        window, kv, L = super().window(images), self.kv, self.kv.shape[4]

        class Spoiling(CacheWindow):
            def commit(self, end: int) -> None:
                super().commit(end)
                if end - self.start == L:
                    kv[-1, :, :, :, -1] += 1

        return Spoiling(window.cache, images)


@pytest.mark.parametrize("name", ["keys and values", "guided logits"])
def test_what_no_operation_shows_is_seen_in_the_whole_pass(name: str, monkeypatch: pytest.MonkeyPatch):
    def guide(rows_RnV: torch.Tensor, pyramid: Any, cfg: float, first: int, last: int) -> torch.Tensor:
        guided_BnV = PARTS.guide(rows_RnV, pyramid, cfg, first, last)
        return guided_BnV + 1e-3 if last - first == 2 else guided_BnV

    wrong = replace(PARTS, new_cache=Forgetful) if name == "keys and values" else replace(PARTS, guide=guide)
    monkeypatch.setitem(FAMILIES, "var", wrong)
    found = exactness(tiny(), Request((0,), 0), RowByRow())
    assert found.exact_lengths == [1, 2]
    assert [(row.operation, row.width) for row in found.inexact(3)] == [(WHOLE, Width(1, 1, 0, 2))]
    assert next(iter(found.inexact(3)[0].differs)) == name


def test_what_is_not_met_or_not_finite_is_not_exact():
    def nothing(x: torch.Tensor, *args: Any) -> torch.Tensor:
        return F.linear(x, *args) * torch.nan

    request = Request((0,), 0)
    models = tiny()
    found = exactness(models, request, RowByRow(), Turned(F.linear, 28, nothing))
    assert found.exact_lengths == [1, 2]
    assert {len(row.differs) > 0 for row in found.inexact(3)} == {True}
    assert math.inf in {row.difference for row in found.inexact(3)}


@pytest.mark.parametrize("hidden", [True, False])
def test_a_product_that_another_function_computes_at_some_width_is_named(hidden: bool, monkeypatch: pytest.MonkeyPatch):
    """Of equal numbers: not measured is not exact."""
    from harness.models.var import transformer

    own = transformer.feed_forward

    def by_hand(h_RnD: torch.Tensor, w: transformer.BlockWeights) -> torch.Tensor:
        if h_RnD.shape[1] < 14:
            return own(h_RnD, w)
        between = F.gelu(product_by_hand(h_RnD, w.fc1, w.fc1_bias), approximate="tanh")
        return F.linear(between, w.fc2, w.fc2_bias)

    if hidden:
        monkeypatch.setattr(transformer, "feed_forward", by_hand)
    found = exactness(tiny(), Request((0,), 0), RowByRow())
    assert found.exact_lengths == ([1, 2] if hidden else [1, 2, 3])
    names = {name for name in differing(found) if name.endswith(".ffn.fc1") and not name.startswith("before")}
    assert names == ({"blocks.0.ffn.fc1", "blocks.1.ffn.fc1"} if hidden else set())


def test_the_chance_of_two_tokens_is_that_of_races_under_the_same_numbers():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(7, generator=generator) for _ in range(2))
    one[2], other[5] = -torch.inf, -torch.inf  # filtered on one side
    E_NV = torch.empty(400_000, 7).exponential_(generator=generator)
    differ = (draw(one.expand_as(E_NV), E_NV) != draw(other.expand_as(E_NV), E_NV)).float().mean()
    chance = parting(one.softmax(-1)[None], 3 * other.softmax(-1)[None])
    assert float(chance) == pytest.approx(float(differ), abs=4 * math.sqrt(0.25 / 400_000))
    near = parting(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5 + 2**-20, 0.5 - 2**-20]]))
    assert float(near) == pytest.approx(2**-20, rel=1e-6)
    assert float(parting(one.softmax(-1)[None], one.softmax(-1)[None])) == 0


def ties_of(models: ModelPair, request: Request, draft_len: int) -> int:
    """Count draws of one decode that are not the reference's along the decoder's own tokens."""
    decoder = SpeculativeDecoder(models, DecoderOptions(draft_len))
    tokens_BL = decoder.decode(request, models.noise(request)).tokens_BL
    expected = sample_sequential(models.target, models.vae, request, models.noise(request), tokens_BL)
    return int((expected.tokens_BL != tokens_BL).sum())


def test_ties_are_as_many_as_predicted():
    models, draft_len = load_digits().first_scales(5).in_mode("cpu", "bfloat16"), 3
    request = Request((0, 1), 0)
    predicted = expected_ties(models, request, draft_len)
    seen = sum(ties_of(models, replace(request, seed=seed), draft_len) for seed in range(1, 21)) / 40
    assert seen > 0.5  # an image, of 55 draws
    assert predicted / 1.5 < seen < 1.5 * predicted
