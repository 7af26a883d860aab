"""Parts of a wrong shape, for mypy: `tox -e lint` fails as soon as one of them is taken (an ignore is then unused)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness.protocol.pyramid import ScalePyramid
from harness.speculative.parts import PARTS, Parts


def mask(pyramid: ScalePyramid, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.zeros(1, 1, 1, 1, device=device, dtype=dtype)


def without_arguments() -> Tensor:
    return torch.zeros(1)


def without_numbers(probs_BnV: Tensor) -> Tensor:
    return probs_BnV


def right() -> Parts:
    return replace(PARTS, attention_mask=mask, residual=lambda draft_probs_BnV, target_probs_BnV: target_probs_BnV)


def wrong() -> None:
    replace(PARTS, build_combined_query=without_arguments)  # type: ignore[arg-type]
    replace(PARTS, attention_mask=without_arguments)  # type: ignore[arg-type]
    replace(PARTS, guide=mask)  # type: ignore[arg-type]
    replace(PARTS, split_logits_by_scale=mask)  # type: ignore[arg-type]
    replace(PARTS, filter_logits=without_arguments)  # type: ignore[arg-type]
    replace(PARTS, draw=without_numbers)  # type: ignore[arg-type]
    replace(PARTS, keep_drafted=PARTS.draw)  # type: ignore[arg-type]
    replace(PARTS, residual=PARTS.keep_drafted)  # type: ignore[arg-type]
    replace(PARTS, accumulate=PARTS.next_input)  # type: ignore[arg-type]
    replace(PARTS, next_input=PARTS.accumulate)  # type: ignore[arg-type]
    replace(PARTS, update_state_with_accepted_tokens=without_arguments)  # type: ignore[arg-type]
    replace(PARTS, new_cache=without_arguments)  # type: ignore[arg-type]
