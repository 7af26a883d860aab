"""Laws that right decoders broke by computing otherwise: those hold, and a wrong neighbour of each is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.laws import Case, Violation, check
from harness.models._pair import ModelPair
from harness.models.network import Around, Condition
from harness.mutants._mutant import parts, production
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import Noise
from harness.reference.sequential import GrowingCache, sample_sequential
from harness.speculative import sampler
from harness.speculative.sampler import SpeculativeDecoder

CASE = Case(V=3, labels=(0, 1), draft_len=1)


class ByParity(SpeculativeDecoder):
    """The own decoder, even and odd images in groups of their own."""

    def _groups(self, state: Any) -> Any:
        return list(self._some(super()._groups(state)))

    def _some(self, groups: Any) -> Any:
        for key, images in groups:
            for odd in (0, 1):
                if some := [b for b in images if b % 2 == odd]:
                    yield key, some


class Unafraid(ByParity):
    """The same, which looks at no number before it returns."""

    def decode(self, request: Request, noise: Noise) -> Trace:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampler, "check_finite", lambda state: None)
            patch.setattr("harness.speculative._round.finite_flag", lambda rows_RnV: torch.ones(1, dtype=torch.int64))
            patch.setattr("harness.speculative._accept.finite_flag", lambda rows_RnV: torch.ones(1, dtype=torch.int64))
            return super().decode(request, noise)


def of(kind: type[SpeculativeDecoder]) -> Any:
    def build(models: ModelPair, settings: Settings) -> SpeculativeDecoder:
        own = production(models, settings)
        return kind(models, own.options, own.parts)

    return build


@pytest.mark.parametrize("policy", ["coupled", "rejection"])
@pytest.mark.parametrize("patch_nums", [(1,), (1, 2)])
def test_images_that_run_in_groups_end_at_a_logit_that_is_not_finite(patch_nums: tuple[int, ...], policy: str):
    case = replace(CASE, patch_nums=patch_nums, policy=policy)
    assert check("numbers.finite", of(ByParity), case) is (len(patch_nums) > 1)
    with pytest.raises(Violation, match="ended well"):
        check("numbers.finite", of(Unafraid), case)


def test_a_logit_that_no_pass_was_given_need_not_end_a_decode():
    assert check("numbers.finite", lambda models, settings: production(CASE.models, settings), CASE)


@dataclass(frozen=True)
class Apart(Around):
    """A network that runs the guidance halves in passes of their own; the cache that it is given stays empty."""

    caches: tuple[GrowingCache, GrowingCache]

    def hidden(self, x_RnD: Tensor, condition: Condition, cache: Any, mask_11nK: Any, positions: Any = None) -> Tensor:
        halves = torch.arange(len(x_RnD)).chunk(2)
        passes = [(x_RnD[half], condition.rows(half), own) for half, own in zip(halves, self.caches, strict=True)]
        return torch.cat([self.network.hidden(*each, mask_11nK, positions) for each in passes])


def in_halves(passes: int) -> Callable[[ModelPair, Settings], Any]:
    """Return a factory of sequential decoders that run halves apart, and say that a scale took so many passes."""

    def build(models: ModelPair, settings: Settings) -> Any:
        def decode(request: Request, noise: Noise) -> Trace:
            network: Any = Apart(models.target, (GrowingCache(), GrowingCache()))
            trace = sample_sequential(network, models.vae, request, noise)
            return replace(trace, target_calls=[passes * calls for calls in trace.target_calls])

        return SimpleNamespace(contract="token-identical", decode=decode)

    return build


@pytest.mark.parametrize("labels", [(0,), (0, 1)])
@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_halves_in_passes_of_their_own_are_one_call(cfg: float, labels: tuple[int, ...]):
    case = replace(CASE, cfg=cfg, labels=labels)
    assert check("rules.recount", in_halves(1), case)
    with pytest.raises(Violation, match=rf"add up to {4 * case.B}, and a spy counted {2 * case.B}"):
        check("rules.recount", in_halves(2), case)


ABOVE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "0.7 of it": lambda above, target: 0.7 * above,
    "as it is": lambda above, target: above,
}
WRONG: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "below 0": lambda above, target: -above,
    "nothing": lambda above, target: torch.zeros_like(above),
    "NaN": lambda above, target: above / 0,
    "the target's law": lambda above, target: target,
    "smoothed": lambda above, target: above + 1e-6,
}


def residual(change: Callable[[Tensor, Tensor], Tensor]) -> Any:
    def changed(draft_BnV: Tensor, target_BnV: Tensor) -> Tensor:
        above_BnV = (target_BnV - draft_BnV).clamp_min(0)
        is_some = above_BnV.sum(-1, keepdim=True) > 0
        return torch.where(is_some, change(above_BnV, target_BnV), target_BnV)

    return parts(residual=changed)


@pytest.mark.parametrize("change", ABOVE.values(), ids=ABOVE)
def test_a_residual_is_a_law_up_to_a_factor(change: Any):
    assert check("acceptance.residual", residual(change), CASE)


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_another_residual_is_none(change: Any):
    with pytest.raises(Violation, match="residual"):
        check("acceptance.residual", residual(change), CASE)
