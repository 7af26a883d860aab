"""The debug tools: what every step of a decode made, how long it took and how much memory it filled.

Promise: an observer stands around the parts and the networks, not in them. A decoder without one runs the very
functions of `PARTS` on the very networks, so that what is switched off costs nothing; one with an observer computes
the same numbers.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import torch
from safetensors.torch import save
from torch import Tensor

from harness.files import write_whole
from harness.models import Around, Cache, Condition, ModelPair, Network
from harness.speculative import DecodeState, KVCache
from harness.speculative.parts import Parts

NAMES = {
    "new_cache": "kv", "build_combined_query": "x_RnD", "attention_mask": "mask_11nK", "hidden": "h_RnD",
    "logits": "rows_RnV", "guide": "guided_BnV", "split_logits_by_scale": "probs_BlV", "filter_logits": "filtered_BnV",
    "draw": "tokens_Bn", "keep_drafted": "kept_Bn", "residual": "residual_BnV", "accumulate": "f_hat_BCPP",
    "next_input": "raw_BlC", "update_state_with_accepted_tokens": "tokens_BL",
}  # fmt: skip
P = ParamSpec("P")
T = TypeVar("T")
ROUNDS, SHAPES, VALUES = 1, 2, 3  # levels of detail


@dataclass
class Cost:
    """What one component cost: calls, seconds without the components that it called, and the most bytes of a result."""

    calls: int = 0
    seconds: float = 0.0
    bytes: int = 0


@dataclass
class Observer:
    """Watch one decoder. Effects: with a CUDA device every step waits for it, so that times belong to their step."""

    level: int = 0  # 0 = silent, 1 = a line a round, 2 = also a line a step with shapes, 3 = also with summary values
    folder: Path | None = None  # where every named tensor is written, a safetensors file a round; None = nowhere
    say: Callable[[str], None] = print  # takes the lines
    costs: dict[str, Cost] = field(default_factory=dict)  # of every component so far
    side: str = ""  # the network at work
    _decode: str = "decode"
    _round: int = 0
    _step: int = 0
    _inner: list[float] = field(default_factory=list)  # seconds spent in called components, by depth
    _made: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, name: str) -> None:
        """Start another decode; `name` becomes the stem of its files."""
        self._decode, self._round, self._step = name, 0, 0

    def watch(self, models: ModelPair, parts: Parts) -> tuple[ModelPair, Parts]:
        """Return the same networks and parts, observed."""
        sides = (("draft", models.draft), ("target", models.target))
        draft, target = (cast(Network, _Watched(network, side, self)) for side, network in sides)
        watched = Parts(**{f.name: partial(self.call, f.name, getattr(parts, f.name)) for f in fields(parts)})
        return replace(models, draft=draft, target=target), watched

    def table(self) -> list[tuple[str, Cost]]:
        """Return the cost of every component, the dearest first."""
        return sorted(self.costs.items(), key=lambda item: -item[1].seconds)

    def call(self, name: str, function: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Call the function, timed and recorded under its name and the network at work."""
        of = given[0]
        if isinstance(of, _Watched):
            self.side = of.side
        self._inner.append(0.0)
        start = time.perf_counter()
        try:
            result = function(*given, **named)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        finally:
            spent = time.perf_counter() - start
            own = spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent
        self._note(name, [of.tokens_BL.clone()] if isinstance(of, DecodeState) else _tensors(result), own)
        if isinstance(of, DecodeState):  # the update: no other part is given the state
            self._end_round(given)
        return result

    def _note(self, name: str, tensors: list[Tensor], seconds: float) -> None:
        component = f"{self.side}.{name}" if self.side else name
        cost = self.costs.setdefault(component, Cost())
        cost.calls += 1
        cost.seconds += seconds
        cost.bytes = max(cost.bytes, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        self._step += 1
        for k, tensor in enumerate(tensors):
            label = f"{component}/{NAMES.get(name, 'value')}" + (f".{k}" if len(tensors) > 1 else "")
            if self.level >= SHAPES:
                values = f"  {summary(tensor)}" if self.level >= VALUES else ""
                self.say(f"  step {self._step:03d} {label} {tuple(tensor.shape)} {tensor.dtype}{values}"[:200])
            if self.folder is not None:
                self._made[f"step-{self._step:03d}.{label}"] = tensor.detach().cpu().clone().contiguous()

    def _end_round(self, given: tuple[Any, ...]) -> None:
        _, _, images, first, _, finished = given
        if self.level >= ROUNDS:
            done = ", ".join(f"image {b} {first}..{first + n - 1}" for b, n in zip(images, finished, strict=True))
            self.say(f"{self._decode} round {self._round:03d}: final scales of {done}")
        if self.folder is not None:
            write_whole(self.folder / f"{self._decode}-round-{self._round:03d}.safetensors", save(self._made))
            self._made = {}
        self._round += 1


@dataclass(frozen=True, eq=False)
class _Watched(Around):
    """A network whose passes are observed; all else is the network's own."""

    side: str
    observer: Observer

    @property
    def _at_work(self) -> Network:
        self.observer.side = self.side
        return self.network

    @property
    def device(self) -> torch.device:
        return self._at_work.device  # a mask that is made for it next knows no network

    def condition(self, labels_R: Any) -> Condition:
        return self.observer.call("condition", self._at_work.condition, labels_R)

    def hidden(
        self, x_RnD: Tensor, condition: Condition, cache: Cache, mask_11nK: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return self.observer.call("hidden", self._at_work.hidden, x_RnD, condition, cache, mask_11nK, positions)

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        return self.observer.call("logits", self._at_work.logits, h_RnD, condition)


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, KVCache):
        return [result.kv]
    return [item for item in result if isinstance(item, Tensor)] if isinstance(result, list | tuple) else []


def summary(tensor: Tensor) -> str:
    """Return smallest, mean and largest finite value, and how many values are not finite."""
    values = tensor.detach().double()
    finite = values[torch.isfinite(values)]
    if finite.numel() == 0:
        return f"no finite value of {values.numel()}"
    text = f"min {float(finite.min()):.4g} mean {float(finite.mean()):.4g} max {float(finite.max()):.4g}"
    missing = values.numel() - finite.numel()
    return text + (f", {missing} of {values.numel()} not finite" if missing else "")
