"""What one decode did, as raw records. No judgement here.

Promise: a trace is complete (every scale of every image was made final exactly once) or `Trace.missing_scales` says
what is missing. Buffers are indexed by absolute position, so the traces of different decoders line up.
"""

from collections import Counter
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from harness.protocol.pyramid import ScalePyramid


@dataclass(frozen=True)
class Round:
    """One draft-then-verify turn of one image."""

    first: int  # scale that the round began at
    drafted: int  # scales proposed; 0 where the target decided one scale without a draft, which then counts as `bonus`
    accepted: int  # drafted scales accepted as a whole
    corrected: bool  # True when the first imperfect scale was replaced and is final
    bonus: bool  # True when the pass also finished the scale after the last drafted one
    accepted_tokens: int  # drafted tokens accepted, those in a corrected scale included
    corrected_tokens: int  # drafted tokens replaced
    bonus_tokens: int  # tokens finished that were never drafted
    target_rows: int  # positions that the target computed for this image; 0 where the draft decided alone
    draft_rows: int = 0  # positions that the draft computed for this image
    target_cache: int = 0  # positions in the target's cache after the round
    draft_cache: int = 0  # positions in the draft's cache after the round
    kept: int = 0  # of the accepted scales, those that the rule had rejected and that stayed as drafted all the same

    @property
    def finished(self) -> int:
        """Scales that are final after this round and were not before."""
        return self.accepted + self.corrected + self.bonus


@dataclass
class Intermediates:
    """Named tensors of the pass that made each position final; what a defect is traced with."""

    x_RLD: Tensor  # network inputs, position term included
    rows_RLV: Tensor  # logits of the guidance rows
    guided_BLV: Tensor  # logits after guidance, before the filter
    f_hat_SBCPP: Tensor  # f_hat after every scale

    def named(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass
class Trace:
    """What one decode did."""

    tokens_BL: Tensor  # int64 tokens of all scales, in order
    f_hat_BCPP: Tensor  # final latent map
    scale_writes_BS: Tensor  # how often each scale of each image was made final; all ones in a correct decode
    rounds: list[list[Round]] = field(default_factory=list)  # of every image, in order; empty for a sequential decoder
    target_calls: list[int] = field(default_factory=list)  # target forward passes of every image
    target_rows: list[int] = field(default_factory=list)  # positions that the target computed, of every image
    draft_calls: list[int] = field(default_factory=list)  # draft forward passes of every image
    draft_rows: list[int] = field(default_factory=list)  # positions that the draft computed, of every image
    intermediates: Intermediates | None = None  # named tensors, where the decoder exposes them
    # probabilities that every token was drawn from, by the race under the numbers of stream TOKEN; None where which law
    # that was hangs on those numbers, or is not shown
    law_BLV: Tensor | None = None
    seconds: float = 0.0  # wall time of the decode
    # bytes held by each network's cache, "draft" and "target"
    cache_bytes: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = 0  # high-water mark after the decode: of the device's allocator on CUDA, of the process on CPU
    # of an accelerator: positions of every scale that each block of the target did not compute, or whose keys it did
    # not keep, (B,S,blocks); its own word. None = nothing is left out
    skipped_BSN: Tensor | None = None

    @property
    def shown(self) -> Intermediates:
        """The intermediates of a trace that has them, as the reference's have."""
        assert self.intermediates is not None
        return self.intermediates

    @property
    def turns(self) -> list[Round]:
        """The rounds of all images, image by image."""
        return [turn for rounds in self.rounds for turn in rounds]

    def total(self, name: str) -> list[int]:
        """Return the sum of a count of `Round`, e.g. ``accepted_tokens``, over the rounds of every image."""
        return [sum(int(getattr(turn, name)) for turn in rounds) for rounds in self.rounds]

    def scales_per_round(self) -> dict[int, int]:
        """Return the histogram of final scales per round: scales -> rounds, over all images."""
        return dict(sorted(Counter(turn.finished for turn in self.turns).items()))

    def missing_scales(self, pyramid: ScalePyramid) -> list[tuple[int, int]]:
        """Return (image, scale) of every scale that was not made final exactly once."""
        if tuple(self.scale_writes_BS.shape) != (len(self.tokens_BL), pyramid.S):
            return [(b, si) for b in range(len(self.tokens_BL)) for si in pyramid]
        return [(int(b), int(si)) for b, si in torch.nonzero(self.scale_writes_BS.long() != 1).tolist()]
