"""The trace of a published sampler, made of what the hooks saw, and the image that it returns.

Promise: the trace holds what the code did, and NaN where it did nothing; that of a decode which ends half-way is the
trace so far. Scales that the draft decided alone are rounds without target rows. Of an image the answer is None or one
`ImageError`: a defect of component `image`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from harness.adapters.recorder import Recorder, SeenDraw, SeenWrite, empty, rows_of
from harness.errors import ImageError
from harness.models.pair import ModelPair
from harness.protocol.trace import Intermediates, Round, Trace


def blank(models: ModelPair, B: int) -> Trace:
    """Return a trace in which nothing happened: tokens -1, everything else NaN or 0."""
    pyramid, config, device = models.pyramid, models.target.config, models.device
    L, S, P, C = pyramid.L, pyramid.S, pyramid.P, config.C
    kept = Intermediates(
        empty((2 * B, L, config.D), device),
        empty((2 * B, L, config.V), device),
        empty((B, L, config.V), device),
        empty((S, B, C, P, P), device),
    )
    return Trace(
        torch.full((B, L), -1, device=device),
        torch.zeros(B, C, P, P, device=device, dtype=models.vae.dtype),
        torch.zeros(B, S, dtype=torch.int64),
        intermediates=kept,
    )


def trace_of(recorder: Recorder, models: ModelPair, B: int) -> Trace:
    """Return what one decode did, from what was seen of it."""
    trace, pyramid = blank(models, B), models.pyramid
    kept = trace.intermediates
    assert kept is not None
    _keep_prefixes(recorder, models, kept.x_RLD)
    for write in recorder.writes:
        if write.scale not in pyramid:
            continue
        span = pyramid.span(write.scale)
        trace.scale_writes_BS[:, write.scale] += 1
        put(kept.f_hat_SBCPP, write.scale, write.f_hat_BCPP)
        if write.idx_Bl is not None:
            put(trace.tokens_BL, (slice(None), span), write.idx_Bl)
        _keep_draw(write, models, kept)
    if (f_hat_BCPP := recorder.image_f_hat(B)) is not None:
        trace.f_hat_BCPP = f_hat_BCPP
    elif recorder.writes:
        trace.f_hat_BCPP = recorder.writes[-1].f_hat_BCPP
    trace.rounds = [rounds_of(recorder, models)] * B
    for side in ("target", "draft"):
        calls = recorder.calls(side)
        setattr(trace, f"{side}_calls", [len(calls)] * B)
        setattr(trace, f"{side}_rows", [sum(calls)] * B)
    if not any(turn.drafted for turn in trace.rounds[0]) and not recorder.calls("draft"):
        trace.rounds = []  # a sequential sampler has none
    return trace


def _keep_prefixes(recorder: Recorder, models: ModelPair, x_RLD: Tensor) -> None:
    """Keep the target's inputs of a whole prefix, at scales that the draft decided too."""
    pyramid = models.pyramid
    ends = {pyramid.end(si) for si in pyramid}
    alone = {id(draw.made_by) for draw in recorder.draws if draw.made_by and _of_one_scale(draw, models)}
    for each in recorder.passes:
        if each.side == "target" and each.n in ends and each.cached == 0 and id(each) not in alone:
            put(x_RLD, (slice(None), slice(0, each.n)), each.x_RnD)


def _of_one_scale(draw: SeenDraw, models: ModelPair) -> bool:
    """Tell whether a draw's pass is over its scale alone: that may be as long as a prefix (9² = 1² + 4² + 8²)."""
    pyramid, si = models.pyramid, draw.scale
    return si in pyramid and si > 0 and draw.made_by is not None and draw.made_by.n == pyramid.tokens(si)


def _keep_draw(write: SeenWrite, models: ModelPair, kept: Intermediates) -> None:
    """Keep the tensors behind the tokens of a scale: guided logits, and the rows and inputs of the pass before."""
    draw, span = write.draw, models.pyramid.span(write.scale)
    if draw is None:
        return
    put(kept.guided_BLV, (slice(None), span), draw.guided_BlV)
    if draw.made_by is None:
        return
    rows = rows_of(draw.made_by, models.pyramid, write.scale)
    if rows is None:
        return
    logits_RnV = draw.made_by.rows_RnV
    if logits_RnV is not None and logits_RnV.shape[1] == draw.made_by.n:
        put(kept.rows_RLV, (slice(None), span), logits_RnV[:, rows])
    elif logits_RnV is not None and logits_RnV.shape[1] == models.pyramid.tokens(write.scale):
        put(kept.rows_RLV, (slice(None), span), logits_RnV)  # the head saw this scale's rows alone
    if draw.side == "target":
        put(kept.x_RLD, (slice(None), span), draw.made_by.x_RnD[:, rows])


def put(buffer: Tensor, where: Any, value: Tensor) -> None:
    """SeenWrite a tensor where it fits; what has another shape was never what it should be, and stays NaN."""
    if buffer[where].shape == value.shape:
        buffer[where] = value.to(buffer.dtype)


def rounds_of(recorder: Recorder, models: ModelPair) -> list[Round]:
    """Return the rounds of a sampler that hands over: what one side decided in one go."""
    made: list[Round] = []
    decided: list[SeenWrite] = [write for write in recorder.writes if write.scale in models.pyramid]
    for alone, group in groupby(decided, lambda write: write.draw is not None and write.draw.side == "draft"):
        writes = list(group)
        made += _alone(writes, models) if alone else _by_target(writes, models)
    return made


def _alone(writes: list[SeenWrite], models: ModelPair) -> list[Round]:
    pyramid, count = models.pyramid, len(writes)
    tokens = sum(pyramid.tokens(write.scale) for write in writes)
    rows = sum(write.draw.made_by.n for write in writes if write.draw and write.draw.made_by)
    return [Round(writes[0].scale, count, count, False, False, tokens, 0, 0, 0, rows)]


def _by_target(writes: list[SeenWrite], models: ModelPair) -> Iterator[Round]:
    for write in writes:
        l = models.pyramid.tokens(write.scale)
        rows = write.draw.made_by.n if write.draw and write.draw.made_by else l
        yield Round(write.scale, 0, 0, False, True, 0, 0, l, rows)


PIXEL_ERROR = 1e-4  # float32 moves a pixel by about 1e-6, in whatever batch it is decoded; a step of 8 bits is 4e-3


def check_image(image: object, f_hat_BCPP: Tensor, models: ModelPair) -> None:
    """Require the picture of a latent map.

    Args:
        image: what the sampler returned; (B,3,H,W), floating point, in [0,1].
        f_hat_BCPP: the decode's last f_hat. One of another form, or with NaN, is the judge's.
        models: whose VQ-VAE makes the image that is due.

    Raises:
        ImageError: it is something else; one line.
    """
    C, P = models.target.config.C, models.pyramid.P
    if f_hat_BCPP.shape[1:] != (C, P, P) or not bool(torch.isfinite(f_hat_BCPP).all()):
        return
    if not isinstance(image, Tensor):
        raise ImageError(f"a {type(image).__name__} is returned, not an image (B,3,H,W)")
    with torch.no_grad():
        due_B3HW = models.vae.decode(f_hat_BCPP).double()
    if image.shape != due_B3HW.shape or not image.is_floating_point():
        kind = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
        raise ImageError(f"the image is {kind}, not floating point {tuple(due_B3HW.shape)}")
    image_B3HW = image.detach().to(due_B3HW)
    far_B = (image_B3HW - due_B3HW).abs().flatten(1).amax(1).nan_to_num(torch.inf)
    wrong = torch.nonzero(far_B > PIXEL_ERROR).flatten().tolist()
    if not wrong:
        return
    b = wrong[0]
    others = (due_B3HW - image_B3HW[b]).abs().flatten(1).amax(1)  # NaN compares False
    low, high = float(image_B3HW[b].min()), float(image_B3HW[b].max())
    why = ""
    if bool((others <= PIXEL_ERROR).any()):
        why = f": it is image {int((others <= PIXEL_ERROR).nonzero()[0])}"
    elif low < -PIXEL_ERROR or high > 1 + PIXEL_ERROR:
        why = f": its pixels are {low:.3g}..{high:.3g}, not in 0..1"
    raise ImageError(f"image {b} is not that of its f_hat, by up to {float(far_B[b]):.3g}{why}")
