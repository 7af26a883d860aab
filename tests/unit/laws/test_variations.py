"""Laws that right decoders broke by computing otherwise: those hold, and a wrong neighbour of each is caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.laws import Case, Violation, check
from harness.models._pair import ModelPair
from harness.mutants._mutant import production
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import Noise
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
