"""The harness's numbers for code that draws with `torch.multinomial` or `exponential_`.

Promise: while it is on, a draw reads the numbers of the scale that its rows belong to, by whatever name it is called;
nothing is patched, so nothing is left behind. The code's own generators are neither read nor moved by such a draw.

How: a `TorchFunctionMode` sees every call into PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.errors import InputError, NoiseError
from harness.protocol.noise import SMOOTH, TOKEN, Noise
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request

DRAWS = (torch.multinomial, Tensor.multinomial)
EXPONENTIALS = (Tensor.exponential_,)
NUMBERS = ("shared", "own")


def check_numbers(numbers: str, request: Request) -> None:
    """Refuse numbers that cannot be. Raises `InputError`."""
    if numbers not in NUMBERS:
        raise InputError("numbers", numbers, f"must be one of {', '.join(NUMBERS)}", "pass --option numbers=shared")
    if numbers == "own" and request.order != "batch":
        rule = "published code draws from one generator for the whole batch"
        raise InputError("noise", request.order, rule, "pass --noise batch, or --option numbers=shared")


class SharedNumbers(TorchFunctionMode):
    """Answers draws with numbers by address.

    Args:
        noise: the numbers.
        request: how many images, and whether there is a second draw a scale.
        pyramid: scales; the number of rows of a draw tells which one it belongs to, since all sides differ.
        reader: says who draws: "draft" or "target".
    """

    def __init__(self, noise: Noise, request: Request, pyramid: ScalePyramid, reader: Callable[[], str]) -> None:
        super().__init__()
        self.noise, self.request, self.reader = noise, request, reader
        self.scales = {request.B * pyramid.tokens(si): si for si in pyramid}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a draw, or let any other call through."""
        kwargs = kwargs or {}
        if func in DRAWS:
            return self._multinomial(*args, **kwargs)
        if func in EXPONENTIALS:
            return self._exponential(*args, **kwargs)
        return func(*args, **kwargs)

    def _multinomial(
        self, input: Tensor, num_samples: int, replacement: bool = False, *, generator: Any = None, out: Any = None
    ) -> Tensor:
        """Return argmax(probs / E), (rows, 1): what `torch.multinomial` makes of E (spec §7)."""
        rows = input.shape[0] if input.dim() == 2 else 0
        if num_samples != 1 or rows not in self.scales:
            raise NoiseError(
                f"multinomial of {tuple(input.shape)}, num_samples={num_samples}: belongs to no scale of "
                f"{self.request.B} images; shared numbers know one draw a token, B·l rows"
            )
        E_NV = self.noise.exponential(self.scales[rows], TOKEN, self.reader()).reshape(rows, -1)
        return torch.where(input > 0, input / E_NV, -1.0).argmax(-1, keepdim=True)

    def _exponential(self, input: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
        """Fill with E of the scale, (B,l,V) or (B·l,V): E' of `more_smooth` where the request asks for it."""
        rows = input[..., 0].numel()
        if rows not in self.scales:
            raise NoiseError(f"exponential_ of {tuple(input.shape)}: belongs to no scale of {self.request.B} images")
        stream = SMOOTH if self.request.more_smooth else TOKEN
        E_BlV = self.noise.exponential(self.scales[rows], stream, self.reader())
        return input.copy_(E_BlV.reshape(input.shape) / lambd)
