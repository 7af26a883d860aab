"""How far rounding alone may move a correct decoder's numbers: the record that the judge reads.

Promise: a budget is stated before guidance, for one mode of one target; what it allows at a scale of a request follows
from that request's guidance and nothing else. How it is measured: `measure`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Allowance:
    """Largest distance of a correct decoder from float64 at one scale of one request, absolute.

    Args:
        logits: of guided logits, any one of them.
        logits_rms: of guided logits, root mean square over one scale of one image. In bfloat16 the largest error is
            far from the usual one, and only the mean tells a wrong mask from rounding.
        f_hat: of f_hat.
        source: how it was measured.
    """

    logits: float
    logits_rms: float
    f_hat: float
    source: str


@dataclass(frozen=True)
class Budget:
    """Largest distance of a correct decoder from float64 before guidance, absolute.

    Args:
        rows: of the logits of a guidance row, any one of them.
        rows_rms: root mean square of it over one scale of one row.
        f_hat: of f_hat.
        source: how it was measured.
    """

    rows: float
    rows_rms: float
    f_hat: float
    source: str

    def guided(self, cfg: float, ramp: float) -> Allowance:
        """Return what guidance makes of it: (1+t)·c − t·u moves by 1 + 2·|t| errors of a row at most.

        Args:
            cfg: guidance value.
            ramp: si/(S-1) of the scale (`ScalePyramid.ramp`); t = cfg·ramp, so the first scale allows no more than a
                row does, and the last one the most.
        """
        factor = 1 + 2 * abs(cfg * ramp)
        return Allowance(factor * self.rows, factor * self.rows_rms, self.f_hat, self.source)
