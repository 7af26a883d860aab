"""The trace of a published sampler, made of what the hooks saw, and the image that it returns.

Promise: the trace holds what the code did, and NaN where it did nothing; that of a decode which ends half-way is the
trace so far. Scales that the draft decided alone are rounds without target rows. Of an image the answer is None or one
`ImageError`: a defect of component `image`.
"""

from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from harness.adapters._recorder import Recorder, SeenWrite
from harness.errors import ImageError
from harness.models import ModelPair
from harness.protocol import Intermediates, Round, Trace

PIXEL_ERROR = 1e-4  # float32 moves a pixel by about 1e-6, in whatever batch it is decoded; a step of 8 bits is 4e-3


def blank(models: ModelPair, B: int, R: int = 0) -> Trace:
    """Return a trace of R guidance rows (0 = 2B) in which nothing happened: tokens -1, everything else NaN or 0."""
    pyramid, config, device = models.pyramid, models.target.config, models.device
    (L, S, draws), R = (pyramid.L, pyramid.S, pyramid.draws.L), R or 2 * B
    nan = partial(torch.full, fill_value=torch.nan, device=device)
    return Trace(
        torch.full((B, draws), -1, device=device),
        torch.zeros(B, *config.latent, device=device, dtype=models.vae.dtype),
        torch.zeros(B, S, dtype=torch.int64),
        intermediates=Intermediates(
            nan((R, L, config.D)), nan((R, draws, config.V)), nan((B, draws, config.V)), nan((S, B, *config.latent))
        ),
    )


def put(buffer: Tensor, where: Any, value: Tensor | None) -> None:
    """Write a tensor where it fits; what has another shape was never what it should be, and stays NaN."""
    if value is not None and buffer[where].shape == value.shape:
        buffer[where] = value.to(buffer.dtype)


def count_calls(trace: Trace, recorder: Recorder, B: int) -> None:
    """Say in a trace how many passes each side made, and over how many positions."""
    target, draft = recorder.calls("target"), recorder.calls("draft")
    trace.target_calls, trace.target_rows = [len(target)] * B, [sum(target)] * B
    trace.draft_calls, trace.draft_rows = [len(draft)] * B, [sum(draft)] * B


def trace_of(recorder: Recorder, models: ModelPair, B: int, R: int = 0) -> Trace:
    """Return what one decode did, of R guidance rows (0 = 2B), from what was seen of it."""
    trace, pyramid = blank(models, B, R), models.pyramid
    shown = trace.shown
    # the target's inputs of whole prefixes; a pass over one scale may be as long as one (9² = 1² + 4² + 8²)
    alone = set()
    for draw in recorder.draws:
        si, seen = draw.scale, draw.made_by
        if seen is not None and si in pyramid and si > 0 and seen.n == pyramid.tokens(si):
            alone.add(id(seen))
    ends = {pyramid.end(si) for si in pyramid}
    for each in recorder.passes:
        if each.side == "target" and each.n in ends and each.cached == 0 and id(each) not in alone:
            put(shown.x_RLD, (slice(None), slice(0, each.n)), each.x_RnD)
    for write in recorder.writes:
        if write.scale in pyramid:
            trace.scale_writes_BS[:, write.scale] += 1
            put(shown.f_hat_SBCPP, write.scale, write.f_hat_BCPP)
            put(trace.tokens_BL, (slice(None), pyramid.draws.span(write.scale)), write.idx_Bl)
            _put_draw(write, models, shown)
    if (f_hat_BCPP := recorder.image_f_hat(B)) is not None:
        trace.f_hat_BCPP = f_hat_BCPP
    elif recorder.writes:
        trace.f_hat_BCPP = recorder.writes[-1].f_hat_BCPP
    count_calls(trace, recorder, B)
    rounds = _rounds(recorder, models)
    if any(turn.drafted for turn in rounds) or recorder.calls("draft"):  # a sequential sampler has none
        trace.rounds = [rounds] * B
    return trace


def _put_draw(write: SeenWrite, models: ModelPair, shown: Intermediates) -> None:
    """Put in the tensors of the tokens of a scale: guided logits, and the rows and inputs of the pass before."""
    draw, pyramid = write.draw, models.pyramid
    span, draws = ((slice(None), runs.span(write.scale)) for runs in (pyramid, pyramid.draws))
    if draw is None:
        return
    put(shown.guided_BLV, draws, draw.guided_BlV)
    seen = draw.made_by
    if seen is None or (rows := seen.rows_of_scale(pyramid, write.scale)) is None:
        return
    if seen.rows_RnV is not None:  # the head may have seen this scale's rows alone
        put(shown.rows_RLV, draws, seen.rows_RnV[:, rows] if seen.rows_RnV.shape[1] == seen.n else seen.rows_RnV)
    if draw.side == "target":
        put(shown.x_RLD, span, seen.x_RnD[:, rows])


def _rounds(recorder: Recorder, models: ModelPair) -> list[Round]:
    """Return the rounds of a sampler that hands over: what one side decided in one go."""
    rounds, pyramid = [], models.pyramid
    decided = [write for write in recorder.writes if write.scale in pyramid]
    for alone, group in groupby(decided, lambda write: write.draw is not None and write.draw.side == "draft"):
        writes = list(group)
        sizes = [pyramid.tokens(write.scale) for write in writes]
        passes = [write.draw.made_by if write.draw else None for write in writes]
        if alone:
            rows, count = sum(seen.n for seen in passes if seen), len(writes)
            rounds.append(Round(writes[0].scale, count, count, False, False, sum(sizes), 0, 0, 0, rows))
            continue
        for write, l, seen in zip(writes, sizes, passes, strict=True):
            rounds.append(Round(write.scale, 0, 0, False, True, 0, 0, l, seen.n if seen else l))
    return rounds


def check_image(image: object, f_hat_BCPP: Tensor, models: ModelPair) -> None:
    """Raise `ImageError` unless a sampler returned the picture of its last f_hat, if that is one that can be judged."""
    C, P = models.target.config.C, models.pyramid.P
    if f_hat_BCPP.shape[1:] != (C, P, P) or not bool(torch.isfinite(f_hat_BCPP).all()):
        return
    if not isinstance(image, Tensor):
        raise ImageError(f"a {type(image).__name__} is returned, not an image (B,3,H,W)")
    with torch.no_grad():
        expected_B3HW = models.vae.decode(f_hat_BCPP).double()
    if image.shape != expected_B3HW.shape or not image.is_floating_point():
        kind = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
        raise ImageError(f"the image is {kind}, not floating point {tuple(expected_B3HW.shape)}")
    image_B3HW = image.detach().to(expected_B3HW)
    far_B = (image_B3HW - expected_B3HW).abs().flatten(1).amax(1).nan_to_num(torch.inf)
    wrong = torch.nonzero(far_B > PIXEL_ERROR).flatten().tolist()
    if not wrong:
        return
    b = wrong[0]
    others = (expected_B3HW - image_B3HW[b]).abs().flatten(1).amax(1)  # NaN compares False
    low, high = float(image_B3HW[b].min()), float(image_B3HW[b].max())
    why = ""
    if bool((others <= PIXEL_ERROR).any()):
        why = f": it is image {int((others <= PIXEL_ERROR).nonzero()[0])}"
    elif low < -PIXEL_ERROR or high > 1 + PIXEL_ERROR:
        why = f": its pixels are {low:.3g}..{high:.3g}, not in 0..1"
    raise ImageError(f"image {b} is not that of its f_hat, by up to {float(far_B[b]):.3g}{why}")
