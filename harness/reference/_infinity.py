"""What sampling does with a network of Infinity, one scale at a time, as its page reads (§3 to §5).

Promise: pure functions; arguments are never written into. The module of this name in `speculative/` keeps the same
contracts, a window of scales at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.models import Around, Cache, Condition, ModelPair, Network
from harness.models.infinity.autoencoder import BinaryQuantizer, from_map
from harness.models.infinity.transformer import MOST_SIDE, InfinityConfig, infinity_config
from harness.protocol import Request, Rows, ScaleGuidance, ScalePyramid


def condition(network: Network, request: Request, labels_B: Tensor) -> Condition:
    """Return the condition of the guidance rows of some images; unconditional rows are as long as the text beside."""
    infinity_config(network).check_request(request)
    labels, nothing_XA = labels_B.tolist(), network.weights["cfg_uncond"].float().cpu()
    # the label after the last text is unconditional: no request has it, but the judge asks what it would give
    given = [*(rows.numbers_TA for rows in request.texts), nothing_XA]
    against, texts = [rows.numbers_TA for rows in request.negative_texts], [given[label] for label in labels]
    if request.is_guided:
        texts += [against[k] if k < len(against) else nothing_XA[: len(given[k])] for k in labels]
    return replace(network.condition(texts), guidance=request.scale_guidance)


def scale_input(network: Network, condition: Condition, raw_BlN: Tensor | None, si: int) -> Tensor:
    """Return the network's input x_RlD of scale `si`, its level included; `raw_BlN` is None at scale 0."""
    if raw_BlN is None:
        return (condition.cond_RD + network.start_1D)[:, None] + network.lvl_SD[0]
    x_BlD = network.embed(raw_BlN) + network.lvl_SD[si]
    return torch.cat([x_BlD] * (len(condition.cond_RD) // len(x_BlD)))  # the same input for both guidance halves


def positions(network: Network, first: int, last: int) -> Tensor:
    """Return level, row and column (n,3) of the rows of scales first..last, float64, under every position rule."""
    config = infinity_config(network)
    where = [_coordinates(config, si) for si in config.pyramid]
    if not config.fused:  # a scale sits where the first positions of the image do (§9)
        where = [torch.cat(where)[: len(each)] for each in where]
    rows = [F.pad(where[si], (1, 0), value=float(si)) for si in range(first, last + 1)]
    return torch.cat(rows).to(network.device)


def _coordinates(config: InfinityConfig, si: int) -> Tensor:
    """Row and column (l,2) of every position of a scale; fractions are places between two points of the grid."""
    (h, w), (H, W) = config.pyramid.sides[si], config.full
    y_h, x_w = torch.arange(h, dtype=torch.float32), torch.arange(w, dtype=torch.float32)
    if config.rule == 2:
        y_h, x_w = (y_h * (H / h)).round(), (x_w * (W / w)).round()  # half to even
    if config.rule == 1:
        u, v = (MOST_SIDE, int(MOST_SIDE / H * W)) if H >= W else (int(MOST_SIDE / W * H), MOST_SIDE)
        y_h, x_w = y_h * ((u - 1) / max(h - 1, 1)), x_w * ((v - 1) / max(w - 1, 1))
    return torch.cartesian_prod(y_h, x_w).double()


def guide(rows_RlV: Tensor, guidance: ScaleGuidance, si: int, S: int) -> Tensor:
    """Return z = rows/τ, guided where place 0 acts at this scale; else those of the conditional rows."""
    z_RlV, w = rows_RlV * (1 / guidance.temperature(si)), guidance.weights[si]
    if not guidance.guided:
        return z_RlV
    if len(rows_RlV) % 2:
        raise InputError("guidance rows", len(rows_RlV), "must be 2B: conditional, then unconditional", "pass both")
    conditional_BlV, unconditional_BlV = z_RlV.chunk(2)
    if w == 1 or 0 not in guidance.places:
        return conditional_BlV
    return w * conditional_BlV + (1 - w) * unconditional_BlV


def accumulate(
    f_hat_BChw: Tensor, codes_BChw: Tensor, si: int, quantizer: BinaryQuantizer, pyramid: ScalePyramid
) -> Tensor:
    """Return f_hat after scale `si`, whose codes these are; the last scale's are not resized."""
    if si < pyramid.S - 1:
        codes_BChw = resized(codes_BChw, tuple(f_hat_BChw.shape[2:]))
    return f_hat_BChw + codes_BChw


def next_input(f_hat_BChw: Tensor, si: int, pyramid: ScalePyramid) -> Tensor:
    """Return the raw input (B,l,N) of scale `si` from f_hat after scale si-1."""
    h, w = pyramid.sides[si]
    patch = f_hat_BChw.shape[3] // pyramid.sides[-1][1]
    map_BChw = resized(f_hat_BChw, (patch * h, patch * w))
    raw_BlN: Tensor = from_map(map_BChw, patch).unflatten(1, (h * w, -1))
    return raw_BlN


def resized(map_BChw: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Return a map at other sides, by two taps a side; as one frame, channels last: as published, to the last bit."""
    frame = map_BChw.unsqueeze(2).contiguous(memory_format=torch.channels_last_3d)
    return F.interpolate(frame, size=(1, *sides), mode="trilinear").squeeze(2)


def example(models: ModelPair, images: int, seed: int) -> Request:
    """Return a request such as error budgets are measured with: guided texts that ship, or made up, of 1, 2, … rows."""
    config, generator = infinity_config(models.target), torch.Generator().manual_seed(seed)
    made = (Rows(torch.randn(1 + k % config.X, config.A, generator=generator)) for k in range(images))
    texts = tuple(models.texts[k % len(models.texts)] for k in range(images)) if models.texts else tuple(made)
    return Request(tuple(range(images)), seed, texts=texts, scale_guidance=ScaleGuidance((3.0,) * config.pyramid.S))


COPIED = 1 + 2.0**-20  # a weight that copies rows as any but 1 does, and changes the conditional ones by rounding alone
# Ways to count rows and columns that are rule 2 in many schedules: (clause, edge, by height, how products are rounded).
_COUNTED: tuple[tuple[str, int, bool, Callable[[Tensor], Tensor]], ...] = (
    ("coordinates were rounded half up", 0, False, lambda x: (x + 0.5).floor()),
    ("coordinates were cut off, not rounded", 0, False, torch.floor),
    ("coordinates went from edge to edge of the full sides", 1, False, torch.round),
    ("rows and columns were counted by a scale's height, not its width", 0, True, torch.round),
)


@dataclass(frozen=True, eq=False)
class _Seated(Around):
    """A network whose rows sit elsewhere, or are of other levels."""

    where_L3: Tensor

    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Cache, mask_11nK: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        assert positions is not None
        begin = self.network.pyramid.begin(int(positions[0, 0]))
        return self.network.hidden(x_RnD, condition, cache, mask_11nK, self.where_L3[begin : begin + x_RnD.shape[1]])


def others(
    network: Network, request: Request, label: int, si: int, firsts: Sequence[int]
) -> Iterator[tuple[str, str, Network, Request]]:
    """Yield (component, clause, network, request) of mistakes with an image's text, places, guidance and levels.

    `si` is the first wrong scale, `firsts` of every scale the first one of its pass. Where several give the same
    numbers, as in passes of one scale, the first is named: wrong weights show in fewer requests than wrong places.
    """
    guidance, depth, scales = request.scale_guidance, network.config.depth, range(len(firsts))
    if guidance is not None and guidance.guided and min(guidance.places, default=0) < 0:
        by_pass = [guidance.weights[first] for first in firsts]
        off = [1.0 if of_first == 1 else own for of_first, own in zip(by_pass, guidance.weights, strict=False)]
        for clause, weights in (
            ("all rows of a pass had the weight of its first scale", by_pass),
            ("guidance was off in passes whose first scale has none", off),
        ):  # and one more than there are scales, so that there are two halves
            if any(weight != 1 for weight in weights):  # else it is guidance that acts nowhere, which has a name below
                changed = replace(guidance, weights=(*weights, COPIED))
                yield "guidance", clause, network, replace(request, scale_guidance=changed)
    levels = {
        "levels counted from the first scale of a pass": [k - first for k, first in enumerate(firsts)],
        "levels of the scale before": [max(k - 1, 0) for k in scales],
        "levels of the scale after": [min(k + 1, scales[-1]) for k in scales],
    }
    yield from _other_levels(network, request, levels)
    yield from _other_texts(network, request, label)
    yield from _other_places(network, request)
    if guidance is not None and guidance.guided:
        acting = {(1,), *((place,) for place in range(1 - depth, 1)), (0, *guidance.places)}
        for places in sorted(acting - {guidance.places}, reverse=True):
            clause = f"guidance acted at places {places}, not {guidance.places}"
            yield "guidance place", clause, network, replace(request, scale_guidance=replace(guidance, places=places))
        copied = replace(guidance, weights=tuple(COPIED if w == 1 else w for w in guidance.weights))
        clause = "both halves were the conditional one where guidance is off"
        yield "guidance", clause, network, replace(request, scale_guidance=copied)
    alone = {f"scale {si} at level {other}": [other if k == si else k for k in scales] for other in scales}
    yield from _other_levels(network, request, alone)


def _other_texts(network: Network, request: Request, label: int) -> Iterator[tuple[str, str, Network, Request]]:
    config, own, given = infinity_config(network), request.texts[label], request.texts
    nothing_XA, negative = network.weights["cfg_uncond"].float().cpu(), request.negative_texts
    kept = negative or tuple(Rows(nothing_XA[: len(rows.numbers_TA)]) for rows in given)
    for k, rows in enumerate(given):
        if rows != own:
            every, clause = (rows,) * len(given), f"its text were text {k}, not {label}"
            yield "text", clause, network, replace(request, texts=every)
            yield "text", clause, network, replace(request, texts=every, negative_texts=kept)
            if negative:
                swapped = replace(request, negative_texts=(negative[k],) * len(given))
                yield "text", f"its negative text were {k}'s", network, swapped
    yield "text", "its unconditional row read its own text", network, replace(request, negative_texts=given)
    if negative:
        yield "text", "there were no negative text", network, replace(request, negative_texts=())
    for n in sorted({config.X, *(len(rows.numbers_TA) for rows in (*given, *negative))}):
        cut = replace(request, negative_texts=(Rows(nothing_XA[:n]),) * len(given))
        yield "unconditional length", f"its unconditional row had {n} rows, not {len(own.numbers_TA)}", network, cut
        if negative:
            cut = replace(request, negative_texts=tuple(Rows(rows.numbers_TA[:n]) for rows in negative))
            yield "text", f"its negative text were cut to {n} rows", network, cut
        padded, beside = (
            tuple(Rows(F.pad(rows.numbers_TA, (0, 0, 0, max(n - len(rows.numbers_TA), 0)))) for rows in texts)
            for texts in (given, kept)
        )
        clause = f"texts were padded to {n} rows, and all of them were read"
        yield "text", clause, network, replace(request, texts=padded, negative_texts=beside)


def _other_places(network: Network, request: Request) -> Iterator[tuple[str, str, Network, Request]]:
    config, like = infinity_config(network), cast(Any, network)
    for component, clause, change in (
        ("positions", "rows and columns were counted on their own scale", {"rule": 0}),
        ("positions", "tables of angles were resized", {"rule": 1}),
        ("positions", "full sides were those of the last scale", {"full": config.pyramid.sides[-1]}),
        ("positions", "every scale sat where the image begins", {"fused": not config.fused}),
        ("level", "levels were added before other blocks", {"levels_once": not config.levels_once}),
    ):
        yield component, clause, replace(like, config=replace(config, **change)), request
    for clause, edge, by_height, rounded in _COUNTED:
        where = []
        for si, (h, w) in enumerate(config.pyramid.sides):
            place_l, row = torch.arange(h * w), h if by_height else w
            y_l = rounded((place_l // row) * torch.tensor((config.full[0] - edge) / max(h - edge, 1)))
            x_l = rounded((place_l % row) * torch.tensor((config.full[1] - edge) / max(w - edge, 1)))
            where.append(torch.stack((torch.full_like(y_l, si), y_l, x_l), 1))
        yield "positions", clause, _Seated(network, torch.cat(where).double().to(network.device)), request


def _other_levels(
    network: Network, request: Request, known: Mapping[str, list[int]]
) -> Iterator[tuple[str, str, Network, Request]]:
    """Yield levels that rows have beside their inputs, where guidance between blocks or chunks read them.

    Where levels are added once, guidance alone reads them: a list of weights that is read wrongly gives the same.
    """
    config = infinity_config(network)
    guidance, where_L3 = request.scale_guidance, positions(network, 0, network.pyramid.S - 1)
    component, said = "level", "rows had "
    if config.levels_once or config.chunks == 1:
        if guidance is None or min(guidance.places, default=0) >= 0:
            return
        component, said = "guidance", "guidance between blocks took the weights of other scales: "
    for clause, level_S in known.items():
        level_L1 = torch.tensor(level_S).to(where_L3)[where_L3[:, :1].long()]
        yield component, said + clause, _Seated(network, torch.cat((level_L1, where_L3[:, 1:]), 1)), request
