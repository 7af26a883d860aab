"""A decode that goes wrong, run again beside the reference: which of its values is the first wrong one.

Promise: the values come in the order in which they are made, and each is compared with the reference along the
decoder's own tokens, so that a wrong one is named once, where it begins.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.judge._decode import unverified_scales
from harness.judge._recorder import Known, rows_of
from harness.models import ModelPair
from harness.models.mode import product_dtype
from harness.models.network import Network
from harness.protocol import Request, Trace
from harness.reference.sequential import Progress, walked

# Relative to the length of a row: more than rounding moves it in a pass.
CLOSE = {torch.float64: 1e-8, torch.float32: 2e-5}
COARSE = 2e-2  # in fewer bits
SHOWN = {"x_RLD": "the input", "rows_RLV": "the rows", "guided_BLV": "the guided logits"}


@dataclass(frozen=True)
class Wrong:
    """A wrong value of a trace, of one scale and row of the batch."""

    name: str
    scale: int
    actual: Tensor
    expected: Tensor
    batch: Tensor  # the decoder's, all rows
    right: Tensor  # and the reference's

    @property
    def is_tokens(self) -> bool:
        return not self.actual.is_floating_point()

    @property
    def place(self) -> str:
        return f"{self.name} of scale {self.scale}"

    def __str__(self) -> str:
        if self.is_tokens:
            return f"{int((self.actual != self.expected).sum())} tokens of scale {self.scale}"
        far = float((self.actual.double() - self.expected.double()).abs().max())
        return f"{self.place} by {far:.3g}"


@dataclass(frozen=True)
class WrongDecode:
    """A decode that goes wrong, and what it is compared with."""

    models: ModelPair  # as the decoder uses them
    request: Request
    greedy: bool
    claims_tokens: bool
    decode: Callable[[], Trace]  # runs it once more

    @property
    def weights(self) -> Collection[Tensor]:
        return self.models.named_weights().values()

    @property
    def close(self) -> float:
        return max(CLOSE.get(product_dtype(each), COARSE) for each in (self.models.draft, self.models.target))

    def reference(self, network: Network, tokens_BL: Tensor | None, scales: int) -> Trace:
        """Return the reference's trace of the first scales along tokens, or along its own."""
        noise = self.models.noise(self.request)
        return walked(Progress(network, self.models.vae, self.request, noise, tokens_BL, self.greedy), scales)

    def is_right_elsewhere(self, wrong: Wrong, expected: Trace) -> bool:
        """Tell whether rows of a wrong value are those of another one in the reference's trace: halves, scales."""
        if wrong.is_tokens or expected.intermediates is None or (rows := rows_of(wrong.actual)) is None:
            return False
        others = filter(None, map(rows_of, expected.intermediates.named().values()))
        return bool(Known(others, self.close).has(rows).any())

    def wrong_values(self, actual: Trace, expected: Trace) -> Iterator[Wrong]:
        """List the wrong values of a trace, in the order in which they are made; `expected` is along its tokens."""
        pyramid, sides, shows = self.models.pyramid, (actual, expected), actual.intermediates is not None
        alone = {si for image in range(self.request.B) for si in unverified_scales(actual, image)}
        for si in (each for each in pyramid if each not in alone):
            draws, values = pyramid.draws.span(si), dict[str, list[Tensor]]()
            for name, words in SHOWN.items() if shows else ():
                span = pyramid.span(si) if name == "x_RLD" else draws
                values[words] = [getattr(side.shown, name)[:, span] for side in sides]
            if self.claims_tokens:
                values["the tokens"] = [side.tokens_BL[:, draws] for side in sides]
            if shows:
                values["f_hat"] = [side.shown.f_hat_SBCPP[si] for side in sides]
            elif si == pyramid.S - 1:
                values["f_hat"] = [side.f_hat_BCPP for side in sides]
            for words, pair in values.items():
                differing = [(a, b) for a, b in zip(*pair, strict=True) if not _near(a, b, self.close)]
                yield from (Wrong(words, si, a, b, *pair) for a, b in differing[:1])


def _near(one: Tensor, other: Tensor, close: float) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    far = (one.double() - other.double()).abs().nan_to_num(torch.inf, torch.inf)
    return bool((far <= close * max(1.0, float(other.abs().max()))).all())
