"""What published code does while it decodes: seen by hooks on modules that the harness built of it, its draws answered.

Promise: the code runs as it would without; every tensor is copied before the code can write into it; `watching` leaves
no hook behind. While `SharedNumbers` is on, a draw by `torch.multinomial` or `exponential_`, by whatever name it is
called, reads the numbers of the scale that its rows belong to; nothing is patched, and the code's own generators are
neither read nor moved.
"""

import contextlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.errors import InputError
from harness.protocol import SMOOTH, TOKEN, Noise, Request, ScalePyramid
from harness.wording import count_of

SAMPLER = "sample_with_top_k_top_p_"
NUMBERS = ("shared", "own")
PACKAGE, TORCH = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)


@dataclass
class SeenPass:
    """One forward pass: who, its inputs, and its logits when they are known."""

    side: str
    x_RnD: Tensor
    rows_RnV: Tensor | None = None
    cached: int = 0  # positions that its first block held before it
    mask: Tensor | None = None  # what its first block was given to add to attention scores
    held: tuple[Tensor, Tensor] | None = None  # keys and values that its last block held before it
    hidden_RnD: Tensor | None = None  # what its last block made
    head_RnD: Tensor | None = None  # what the head was given

    @property
    def n(self) -> int:
        """Positions computed."""
        return self.x_RnD.shape[1]

    def rows_of_scale(self, pyramid: ScalePyramid, si: int) -> slice | None:
        """Return which rows are those of a scale: all, its span of a prefix, or the last; None where too few."""
        l = pyramid.tokens(si)
        if self.n == l:
            return slice(0, l)
        if self.cached == 0 and any(self.n == pyramid.end(last) for last in range(si, pyramid.S)):
            return pyramid.span(si)
        return slice(self.n - l, self.n) if self.n > l else None


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
    """The events of one decode, in order."""

    pyramid: ScalePyramid
    note: Callable[[str], None] = lambda text: None  # takes a clause: how far the decode is
    passes: list[SeenPass] = field(default_factory=list)
    draws: list[SeenDraw] = field(default_factory=list)
    writes: list[SeenWrite] = field(default_factory=list)
    pictured: list[Tensor] = field(default_factory=list)
    side: str = "target"  # who computed last
    _looked_up: dict[int, Tensor] = field(default_factory=dict)

    def calls(self, side: str) -> list[int]:
        return [each.n for each in self.passes if each.side == side]

    def image_f_hat(self, B: int) -> Tensor | None:
        """Return what was last made an image of: in one go, or image by image."""
        for count in range(1, min(B, len(self.pictured)) + 1):
            if sum(len(each) for each in self.pictured[-count:]) == B:
                return torch.cat(self.pictured[-count:])
        return self.pictured[-1] if self.pictured else None

    @contextlib.contextmanager
    def watching(self, draft: Any, target: Any, vae: Any, namespace: Any) -> Iterator[None]:
        """Watch the networks of both sides (None: not that one), their VQ-VAE, and a module's sampling function."""
        with contextlib.ExitStack() as stack:
            for side, network in (("draft", draft), ("target", target)):
                if network is None:
                    continue
                hook = partial(self._before_pass, side)
                stack.callback(network.blocks[0].register_forward_pre_hook(hook, with_kwargs=True).remove)
                last = network.blocks[-1]
                stack.callback(last.register_forward_pre_hook(self._before_last, with_kwargs=True).remove)
                stack.callback(last.register_forward_hook(self._after_last).remove)
                stack.enter_context(replaced(network, "get_logits", partial(self._get_logits, side)))
            quantize = vae.quantize
            stack.callback(quantize.embedding.register_forward_pre_hook(self._look_up, with_kwargs=True).remove)
            stack.enter_context(replaced(quantize, "get_next_autoregressive_input", self._accumulate))
            stack.enter_context(replaced(vae, "fhat_to_img", self._picture))
            if hasattr(namespace, SAMPLER):
                stack.enter_context(replaced(namespace, SAMPLER, self._sample))
            yield

    def _before_pass(self, side: str, module: Any, args: Any, kwargs: Any) -> None:
        x_RnD = kwargs["x"] if "x" in kwargs else args[0]
        self.side = side
        held = getattr(getattr(module, "attn", None), "cached_k", None)
        cached = held.shape[2] if isinstance(held, Tensor) else 0
        mask = kwargs.get("attn_bias")
        mask = mask.detach() if isinstance(mask, Tensor) else None
        self.passes.append(SeenPass(side, x_RnD.detach().clone(), cached=cached, mask=mask))
        self.note(f"{side} pass over {x_RnD.shape[1]} positions")

    def _before_last(self, module: Any, args: Any, kwargs: Any) -> None:
        attention = getattr(module, "attn", None)
        keys, values = (getattr(attention, name, None) for name in ("cached_k", "cached_v"))
        if self.passes and isinstance(keys, Tensor) and isinstance(values, Tensor):
            self.passes[-1].held = (keys.detach(), values.detach())

    def _after_last(self, module: Any, args: Any, made: Any) -> None:
        if self.passes and isinstance(made, Tensor):
            self.passes[-1].hidden_RnD = made.detach().clone()

    def _get_logits(self, side: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        rows_RnV = real(*args, **kwargs)
        last = next((each for each in reversed(self.passes) if each.side == side), None)
        if last is not None:
            last.rows_RnV = rows_RnV.detach().clone()
            last.head_RnD = in_order(real, args, kwargs)[0].detach().clone()
        return rows_RnV

    def _look_up(self, module: Any, args: Any, kwargs: Any) -> None:
        idx = in_order(module.forward, args, kwargs)[0].detach()
        if idx.dim() == 2:
            self._looked_up[idx.shape[1]] = idx.clone()

    def _accumulate(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        si, _, _, h_BCpp = in_order(real, args, kwargs)[:4]  # si, SN, f_hat, h
        result = real(*args, **kwargs)
        draw = next((each for each in reversed(self.draws) if each.scale == si), None)
        idx_Bl = self._looked_up.get(h_BCpp.shape[-1] ** 2)
        if idx_Bl is None and draw is not None:  # a soft mixture has no tokens: those that were drawn
            idx_Bl = draw.idx_Bl
        self.writes.append(SeenWrite(si, idx_Bl, result[0].detach().clone(), result[0].data_ptr(), draw))
        self.note(f"f_hat of scale {si}")
        return result

    def _picture(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.pictured.append(in_order(real, args, kwargs)[0].detach().clone())
        return real(*args, **kwargs)

    def _sample(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        guided_BlV = in_order(real, args, kwargs)[0].detach().clone()  # the filter writes into it
        idx_Bl1 = real(*args, **kwargs)
        si = next((si for si in self.pyramid if self.pyramid.draws.counts[si] == guided_BlV.shape[1]), -1)
        last = self.passes[-1] if self.passes else None
        self.draws.append(SeenDraw(self.side, si, guided_BlV, idx_Bl1[..., 0].detach().clone(), last))
        self.note(f"{self.side} draw of scale {si}")
        return idx_Bl1


def in_order(real: Callable[..., Any], args: Any, kwargs: Any) -> list[Any]:
    """Return a call's arguments in the order of the function's signature, however they were given."""
    call = inspect.signature(real).bind(*args, **kwargs)
    return [*call.args, *call.kwargs.values()]


def replaced(owner: Any, name: str, around: Callable[..., Any]) -> AbstractContextManager[object]:
    """Let `around`, which gets the real one first, stand for a method of one object, which has its own afterwards."""
    return mock.patch.object(owner, name, partial(around, getattr(owner, name)))


def check_numbers(numbers: str, request: Request) -> None:
    if numbers not in NUMBERS:
        raise InputError("numbers", numbers, f"must be one of {', '.join(NUMBERS)}", "pass --option numbers=shared")
    if numbers == "own" and request.order != "batch":
        rule = "published code draws from one generator for the whole batch"
        raise InputError("noise", request.order, rule, "pass --noise batch, or --option numbers=shared")


def check_one_filter(request: Request) -> None:
    if request.filters:
        rule = "are by scale, and published code has one filter for all"
        raise InputError("filters", request.filters, rule, "pass top_k and top_p")


# Draws of the code's own: calls whose numbers have no address.
OWN_DRAWS = (
    torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.randint_like,
    torch.bernoulli, torch.normal, torch.poisson, Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.bernoulli_,
    Tensor.bernoulli, Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_,
)  # fmt: skip


class SharedNumbers(TorchFunctionMode):
    """Answers draws with numbers by address; a `TorchFunctionMode` sees every call into PyTorch.

    The number of rows of a draw tells which scale it belongs to: of several that have it, the first one that nobody has
    drawn; `reader` says who draws. A draw that belongs to none is a limit of this adapter, and no defect of the code:
    `InputError`, with file and line.
    """

    def __init__(self, noise: Noise, request: Request, pyramid: ScalePyramid, reader: Callable[[], str]) -> None:
        super().__init__()
        self.noise, self.request, self.reader = noise, request, reader
        # by the number of rows: one, or several of a family whose sides may repeat
        self.scales: dict[int, list[int]] = {}
        for si in pyramid:
            self.scales.setdefault(request.B * pyramid.draws.counts[si], []).append(si)
        self.answered: set[int] = set()  # scales that some draw read the numbers of
        self.own: list[str] = []  # draws of the code's own: what is called, and where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.multinomial, Tensor.multinomial):
            return self._multinomial(*args, **(kwargs or {}))
        if func is Tensor.exponential_:
            return self._exponential(*args, **(kwargs or {}))
        if func in OWN_DRAWS:
            self.own.append(f"{_calling()} draws by {func.__name__}")
        return func(*args, **(kwargs or {}))

    def check_answered(self, scales: Iterable[int]) -> None:
        """Raise `InputError` where numbers without an address decide tokens of `scales`, those of the code's own."""
        alone = [si for si in scales if si not in self.answered]
        if alone and self.own:
            rule = f"{self.own[0]}: what decides the tokens of scale {alone[0]} has no address"
            raise InputError("numbers", "shared", rule, "pass --option contract=C, which claims no tokens")

    def _scale_of(self, rows: int, call: str) -> int:
        """Return the scale that so many rows of a draw belong to. Raises `InputError`."""
        if rows in self.scales:
            like = self.scales[rows]
            si = next((each for each in like if each not in self.answered), like[-1])
            self.answered.add(si)
            return si
        rule = f"{_calling()} draws by {call}, which belongs to no scale of {count_of(self.request.B, 'image')}"
        remedy = "shared numbers know one draw a token, B·l rows: pass --option numbers=own --noise batch"
        raise InputError("numbers", "shared", rule, remedy)

    def _multinomial(
        self, input: Tensor, num_samples: int, replacement: bool = False, *, generator: Any = None, out: Any = None
    ) -> Tensor:
        """Return argmax(probs / E), (rows, 1): what `torch.multinomial` makes of E (spec §7)."""
        rows = input.shape[0] if input.dim() == 2 and num_samples == 1 else 0
        si = self._scale_of(rows, f"multinomial of {tuple(input.shape)}, num_samples={num_samples}")
        E_NV = self.noise.exponential(si, TOKEN, self.reader()).reshape(rows, -1)
        return torch.where(input > 0, input / E_NV, -1.0).argmax(-1, keepdim=True)

    def _exponential(self, input: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
        """Fill with E of the scale, (B,l,V) or (B·l,V): once its tokens are drawn, with E' of `more_smooth`."""
        rows, drawn = input[..., 0].numel() if input.dim() > 1 else 0, set(self.answered)
        si = self._scale_of(rows, f"exponential_ of {tuple(input.shape)}")
        stream = SMOOTH if self.request.more_smooth and si in drawn else TOKEN
        E_BlV = self.noise.exponential(si, stream, self.reader())
        return input.copy_(E_BlV.reshape(input.shape) / lambd)


def _calling() -> str:
    """Return file and line of the code that calls PyTorch: the last frame that is neither PyTorch's nor ours."""
    frames = [each for each in traceback.extract_stack() if not each.filename.startswith((PACKAGE, TORCH))]
    last = frames[-1]
    return f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno}"
