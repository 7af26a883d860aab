"""What published code does while it decodes: seen through hooks on the modules that the harness built of it, and its
draws answered with the harness's numbers.

Promise: the code runs as it would without; every tensor is copied before the code can write into it; `watching` leaves
no hook behind. While `SharedNumbers` is on, a draw by `torch.multinomial` or `exponential_`, by whatever name it is
called, reads the numbers of the scale that its rows belong to; nothing is patched, and the code's own generators are
neither read nor moved.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.errors import InputError, NoiseError
from harness.protocol.noise import SMOOTH, TOKEN, Noise
from harness.protocol.pyramid import ScalePyramid
from harness.protocol.request import Request

SAMPLER = "sample_with_top_k_top_p_"


@dataclass
class SeenPass:
    """One forward pass: who, its inputs, and its logits when they are known."""

    side: str
    x_RnD: Tensor
    rows_RnV: Tensor | None = None
    cached: int = 0  # positions that its first block held before it

    @property
    def n(self) -> int:
        """Positions computed."""
        return self.x_RnD.shape[1]


@dataclass(frozen=True)
class SeenDraw:
    """One draw of a scale: guided logits before the filter, the tokens, and the pass before it."""

    side: str
    scale: int
    guided_BlV: Tensor
    idx_Bl: Tensor
    made_by: SeenPass | None


@dataclass(frozen=True)
class SeenWrite:
    """One accumulation: the scale, its tokens as far as they are known, f_hat after it and where that lies."""

    scale: int
    idx_Bl: Tensor | None
    f_hat_BCPP: Tensor
    place: int
    draw: SeenDraw | None


@dataclass
class Recorder:
    """The events of one decode, in order.

    Args:
        pyramid: scales.
        note: told in a clause how far the decode is.
    """

    pyramid: ScalePyramid
    note: Callable[[str], None] = lambda text: None
    passes: list[SeenPass] = field(default_factory=list)
    draws: list[SeenDraw] = field(default_factory=list)
    writes: list[SeenWrite] = field(default_factory=list)
    pictured: list[Tensor] = field(default_factory=list)
    side: str = "target"
    _looked_up: dict[int, Tensor] = field(default_factory=dict)

    def reader(self) -> str:
        """Return who computed last."""
        return self.side

    def calls(self, side: str) -> list[int]:
        """Return the positions of every pass of one side."""
        return [each.n for each in self.passes if each.side == side]

    def image_f_hat(self, B: int) -> Tensor | None:
        """Return what was last made an image of: in one go, or image by image."""
        for count in range(1, min(B, len(self.pictured)) + 1):
            if sum(len(each) for each in self.pictured[-count:]) == B:
                return torch.cat(self.pictured[-count:])
        return self.pictured[-1] if self.pictured else None

    @contextlib.contextmanager
    def watching(self, sides: dict[str, Any], vae: Any, namespace: Any) -> Iterator[None]:
        """Watch the networks of both sides, their VQ-VAE, and the sampling function of a module."""
        with contextlib.ExitStack() as stack:
            for side, network in sides.items():
                hook = network.blocks[0].register_forward_pre_hook(self._before_pass(side), with_kwargs=True)
                stack.callback(hook.remove)
                stack.enter_context(replaced(network, "get_logits", self._get_logits(side)))
            quantize = vae.quantize
            stack.callback(quantize.embedding.register_forward_pre_hook(self._look_up, with_kwargs=True).remove)
            stack.enter_context(replaced(quantize, "get_next_autoregressive_input", self._accumulate))
            stack.enter_context(replaced(vae, "fhat_to_img", self._picture))
            if hasattr(namespace, SAMPLER):
                stack.enter_context(replaced(namespace, SAMPLER, self._sample))
            yield

    def _before_pass(self, side: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            x_RnD = kwargs["x"] if "x" in kwargs else args[0]
            self.side = side
            held = getattr(getattr(module, "attn", None), "cached_k", None)
            cached = held.shape[2] if isinstance(held, Tensor) else 0
            self.passes.append(SeenPass(side, x_RnD.detach().clone(), cached=cached))
            self.note(f"{side} pass over {x_RnD.shape[1]} positions")

        return hook

    def _get_logits(self, side: str) -> Callable[..., Callable[..., Any]]:
        def watch(real: Callable[..., Any]) -> Callable[..., Any]:
            def get_logits(*args: Any, **kwargs: Any) -> Any:
                rows_RnV = real(*args, **kwargs)
                mine = [each for each in self.passes if each.side == side]
                if mine:
                    mine[-1].rows_RnV = rows_RnV.detach().clone()
                return rows_RnV

            return get_logits

        return watch

    def _look_up(self, module: Any, args: Any, kwargs: Any) -> None:
        idx = in_order(module.forward, args, kwargs)[0].detach()
        if idx.dim() == 2:
            self._looked_up[idx.shape[1]] = idx.clone()

    def _accumulate(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def get_next_autoregressive_input(*args: Any, **kwargs: Any) -> Any:
            si, _, _, h_BCpp = in_order(real, args, kwargs)[:4]  # si, SN, f_hat, h
            made = real(*args, **kwargs)
            draw = next((each for each in reversed(self.draws) if each.scale == si), None)
            idx_Bl = self._looked_up.get(h_BCpp.shape[-1] ** 2)
            if idx_Bl is None and draw is not None:  # a soft mixture has no tokens: those that were drawn
                idx_Bl = draw.idx_Bl
            self.writes.append(SeenWrite(si, idx_Bl, made[0].detach().clone(), made[0].data_ptr(), draw))
            self.note(f"f_hat of scale {si}")
            return made

        return get_next_autoregressive_input

    def _picture(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def fhat_to_img(*args: Any, **kwargs: Any) -> Any:
            f_hat_BCPP = in_order(real, args, kwargs)[0]
            self.pictured.append(f_hat_BCPP.detach().clone())
            return real(*args, **kwargs)

        return fhat_to_img

    def _sample(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def sample(*args: Any, **kwargs: Any) -> Any:
            logits_BlV = in_order(real, args, kwargs)[0]
            guided_BlV = logits_BlV.detach().clone()  # the filter writes into it
            idx_Bl1 = real(*args, **kwargs)
            sides = {self.pyramid.tokens(si): si for si in self.pyramid}
            si = sides.get(logits_BlV.shape[1], -1)
            last = self.passes[-1] if self.passes else None
            self.draws.append(SeenDraw(self.side, si, guided_BlV, idx_Bl1[..., 0].detach().clone(), last))
            self.note(f"{self.side} draw of scale {si}")
            return idx_Bl1

        return sample


def in_order(real: Callable[..., Any], args: Any, kwargs: Any) -> list[Any]:
    """Return a call's arguments in the order of the function's signature, however they were given."""
    call = inspect.signature(real).bind(*args, **kwargs)
    return [*call.args, *call.kwargs.values()]


@contextlib.contextmanager
def replaced(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Let an attribute of one object be a wrapped one; an object's own method is found again afterwards."""
    real, own = getattr(owner, name), name in vars(owner)
    setattr(owner, name, wrap(real))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, real)
        else:
            delattr(owner, name)


def rows_of(made_by: SeenPass, pyramid: ScalePyramid, si: int) -> slice | None:
    """Return which rows of a pass are those of a scale: all, its span of a prefix, or the last; None where too few."""
    l = pyramid.tokens(si)
    if made_by.n == l:
        return slice(0, l)
    if made_by.cached == 0 and any(made_by.n == pyramid.end(last) for last in range(si, pyramid.S)):
        return pyramid.span(si)
    return slice(made_by.n - l, made_by.n) if made_by.n > l else None


def empty(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return NaN: what was never written must not look like a number."""
    return torch.full(shape, torch.nan, device=device)


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
