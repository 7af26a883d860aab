"""A bet that goes on: are tokens that come one by one drawn from the target's law?

Promise: `harness.judge._likelihood` for a stream (a server's log, one request in a thousand). Weights, request,
alternatives and α are fixed when the test begins, and a state of others is refused; at any moment it says what is
proved; its state is a file of some kilobytes that is written whole after every call.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import InputError
from harness.files import check_readable, compact, write_whole
from harness.judge import ALPHA, Alternative, TokensSeen, Verdict, Wealth, bet, usual_alternatives
from harness.models import ModelPair
from harness.protocol import Request, request_values
from harness.rounding import joint_budget
from harness.runs._identity import weights_of

RESTART = "begin with another file"
DRAWN_BY = ("cfg", "top_k", "top_p", "scale_guidance", "filters", "texts", "negative_texts")  # of a request


class LikelihoodTest:
    """Bet on tokens of one request's guidance and filter, whatever their labels and seeds.

    Args:
        models: the target whose law is claimed, the draft, and the VQ-VAE.
        request: guidance and filter that the tokens should be drawn by; its labels and seeds are not looked at.
        alternatives: laws that a wrong decoder could follow; None = the usual ones.
        alpha: chance that a right decoder is accused, 0 < alpha < 1.
        file: state to go on from, if it is there, and to write; None = nothing is kept.

    Raises:
        InputError: alpha outside its range, or a file that is no state, or of other weights, request or alternatives.

    Images must be drawn independently: nobody here sees a seed, so that an image that comes twice counts twice.
    """

    def __init__(
        self,
        models: ModelPair,
        request: Request,
        alternatives: Sequence[Alternative] | None = None,
        alpha: float = ALPHA,
        file: Path | None = None,
    ) -> None:
        if not 0 < alpha < 1:
            raise InputError("alpha", alpha, "must lie between 0 and 1", f"drop it for {ALPHA:g}")
        request.check_for(models.target.config)
        self.models, self.request, self.file = models, request, file
        self.budget = joint_budget(models, compiled=False)
        chosen = usual_alternatives(request, models.target.config.V) if alternatives is None else tuple(alternatives)
        self.wealth = Wealth(chosen, models.pyramid.S, alpha=alpha)
        self.place = ""  # of the first forbidden token
        self._last_L: Tensor | None = None
        self._terms = {
            "weights": weights_of(models),
            "request": {k: v for k, v in request_values(request).items() if k in DRAWN_BY},
            "alternatives": [asdict(each) for each in chosen],
            "alpha": alpha,
        }
        if file is not None and file.exists():
            self._read(file)

    @torch.inference_mode()
    def take(self, tokens_BL: Tensor, labels: Sequence[int]) -> None:
        """Look at images: integers, all scales of every image in order, and the class of every image.

        Raises `InputError`: another shape, tokens or labels that there are not; nothing of the call is counted then.

        Effects: the state's file is written.
        """
        tokens_BL = self.check(tokens_BL, labels)
        request = replace(self.request, labels=tuple(labels), images=None, seeds=None)
        models, seen = self.models, TokensSeen.along(self.models, self.budget, request, tokens_BL, self._last_L)
        bets = bet(seen, models.pyramid, self.wealth.alternatives)
        if bets.forbidden and not self.place:
            row, draw = bets.forbidden[0]
            token, (position, channel) = int(tokens_BL[row, draw]), models.pyramid.place(draw)
            where = f"position {position}{f', channel {channel}' if channel >= 0 else ''}"
            self.place = f"image {self.wealth.images + row}, {where}: token {token} has probability 0"
        self.wealth.take(bets)
        self._last_L = tokens_BL[-1]
        if self.file is not None:
            write_whole(self.file, compact(self._state()))

    def check(self, tokens_BL: Tensor, labels: Sequence[int]) -> Tensor:
        """Return the tokens as they are looked at. Arguments and errors as `take`; nothing is counted."""
        L, V = self.models.pyramid.draws.L, self.models.target.config.V
        classes = self.request.conditions(self.models.target.config.classes)
        if tokens_BL.ndim != 2 or tokens_BL.shape != (len(labels), L) or not len(labels):
            rule = f"must be (images, {L}), with a label an image ({len(labels)})"
            raise InputError("tokens", tuple(tokens_BL.shape), rule, "see to it")
        if tokens_BL.dtype.is_floating_point or tokens_BL.dtype.is_complex or tokens_BL.dtype == torch.bool:
            raise InputError("tokens", tokens_BL.dtype, "must be integers", "pass the tokens themselves")
        tokens_BL = tokens_BL.to(self.models.device, torch.int64)
        outside = torch.nonzero((tokens_BL < 0) | (tokens_BL >= V))
        if len(outside):
            row, position = outside[0].tolist()
            where, token = f"tokens[{row}, {position}]", int(tokens_BL[row, position])
            raise InputError(where, token, f"must lie in 0..{V - 1}", "see which codebook it is of")
        for row, label in enumerate(labels):
            if not 0 <= label <= classes:
                raise InputError(f"labels[{row}]", label, f"must lie in 0..{classes}", "see which networks it is of")
        return tokens_BL

    @property
    def images(self) -> int:
        """Images that were looked at."""
        return self.wealth.images

    @property
    def verdict(self) -> Verdict:
        """DEFECT once proved; CONSISTENT where what is `required` would have been found; else INCONCLUSIVE."""
        return self.wealth.verdict

    def images_to_find(self) -> dict[str, float]:
        """Return how many images find a decoder that follows each alternative, 9 times in 10; may be infinite."""
        return {each.words: number for each, number in self.wealth.images_to_find().items()}

    def as_dict(self) -> dict[str, object]:
        """Return what is proved as JSON values; images that never suffice are None."""
        return {**self._terms, **self.wealth.as_dict(), **({"says": self.place} if self.place else {})}

    def __str__(self) -> str:
        return f"{self.verdict.value}: {self.place or self.wealth.says()}"

    def _state(self) -> dict[str, object]:
        wealth, last = self.wealth, self._last_L
        return {
            **self._terms,
            **{name: getattr(wealth, name) for name in ("images", "forbidden", "highest", "batches")},
            "place": self.place,
            "won": wealth.won_AT.tolist(),
            "under": wealth.under_3A.tolist(),
            "last": [] if last is None else last.tolist(),
        }

    def _read(self, file: Path) -> None:
        check_readable(file, "file", RESTART)
        try:
            state = json.loads(file.read_bytes())
            for name, value in self._terms.items():
                if state[name] != json.loads(json.dumps(value)):
                    raise InputError("file", file, f"is the state of other {name}", RESTART)
            wealth = self.wealth
            won, under = (torch.tensor(state[name], dtype=torch.float64) for name in ("won", "under"))
            numbers = [state[name] for name in ("images", "batches", "forbidden")]
            fits = won.shape == wealth.won_AT.shape and under.shape == wealth.under_3A.shape
            if not (fits and won.isfinite().all() and under.isfinite().all() and math.isfinite(state["highest"])):
                raise ValueError("numbers that no state has")
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise ValueError("counts that no state has")
            last_L = torch.tensor(state["last"], dtype=torch.int64, device=self.models.device)
            L, V = self.models.pyramid.draws.L, self.models.target.config.V
            if last_L.shape != (0,) and (last_L.shape != (L,) or not 0 <= int(last_L.min()) <= int(last_L.max()) < V):
                raise ValueError("tokens that there are not")
        except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
            raise InputError("file", file, f"is no state of a likelihood test ({error})", RESTART) from error
        wealth.images, wealth.batches, wealth.forbidden = numbers
        wealth.won_AT, wealth.under_3A = won, under
        wealth.highest, self.place = float(state["highest"]), str(state["place"])
        self._last_L = last_L if len(last_L) else None
