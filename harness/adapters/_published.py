"""A checkout's networks with the weights of a pair: what an adapter of published code is made of.

Promise: `published(checkout, models)` and one call of the code's own sampler are all that a user writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.adapters._checkout import Checkout, build_network, build_vae, crash_of, defaults_of, named, on_device
from harness.adapters._parallel import ParallelLoop
from harness.adapters._recorder import Recorder, SharedNumbers, check_numbers, check_one_filter
from harness.adapters._traces import check_image, trace_of
from harness.errors import InputError
from harness.models import ModelPair, autocast_of, autocasting, mode_name
from harness.protocol import Contract, Noise, Request, Trace
from harness.wording import count_of

OF_CODE = "published code: "  # what a remark on what the code is, and not on what it left behind, begins with


class Published:
    """A checkout's own modules, with the weights of a pair of float32 and two scales or more.

    `options` are those of a factory: ``init.NAME`` is an argument of VAR's constructor, ``stub.NAME`` a file in a
    module's place. `remarks` says which arguments nobody gave, where they may matter.

    Raises `InputError`: see `Checkout`, `build_network`; or the pair is of another dtype.
    """

    def __init__(self, checkout: str | Path, models: ModelPair, options: Mapping[str, str] | None = None) -> None:
        for name, network in (("dtype", models.target), ("draft_dtype", models.draft)):
            if network.dtype != torch.float32:
                rule = "published code casts its logits to float32, and is judged in float32 alone"
                raise InputError(name, mode_name(network), rule, f"pass --{name.replace('_', '-')} float32")
        if autocast_of(models.draft) != autocast_of(models.target):
            rule, remedy = "published code computes both networks in one torch.autocast", mode_name(models.target)
            raise InputError("draft_dtype", mode_name(models.draft), rule, f"pass --draft-dtype {remedy}")
        if models.pyramid.S < 2:
            rule = "published code divides by the number of scales less one"
            raise InputError("patch_nums", models.pyramid.patch_nums, rule, "pass two scales or more")
        stubs, init = (named(options or {}, word) for word in ("stub", "init"))
        self.models, self.checkout = models, Checkout(checkout, stubs)
        self.vae = build_vae(self.checkout, models.vqvae, models.pyramid.patch_nums, models.device)
        self.draft: Any = build_network(self.checkout, models.draft, self.vae, init)
        self.target: Any = build_network(self.checkout, models.target, self.vae, init)
        defaults = ", ".join(f"{name}={value!r}" for name, value in defaults_of(self.checkout, init).items())
        said = f"{OF_CODE}VAR is built with {defaults}, as its constructor has it (--option init.NAME=VALUE)"
        self.remarks = [said] if defaults else []

    def sampler(self, call: Callable[..., Any], contract: str = Contract.TOKENS, numbers: str = "shared") -> Sampler:
        """Return a decoder that can be judged.

        `call` runs the code's own sampler and returns its image; it gets B, label_B, g_seed, cfg, top_k, top_p and
        more_smooth by name. The code is held to `contract`. With "shared" `numbers` every draw reads the harness's;
        "own" generators must then give the same tokens in the published order (`Request.order` "batch").
        """
        return Sampler(self, call, contract, numbers)

    def arguments(self, request: Request, noise: Noise, numbers: str = "shared") -> dict[str, Any]:
        """Return what every published sampler is called with.

        Without labels they are the noise's; code that keeps its own numbers draws them itself. Raises `InputError` for
        a label or top_k that is not, and for filters by scale.
        """
        request.check_against(self.models.target.config.classes, self.models.target.config.V)
        check_one_filter(request)
        label_B = None
        if request.labels is not None:
            label_B = torch.tensor(request.labels, device=self.models.device)
        elif numbers != "own":
            label_B = noise.labels(self.models.target.config.classes)
        settings = {name: getattr(request, name) for name in ("cfg", "top_k", "top_p", "more_smooth")}
        return {"B": request.B, "label_B": label_B, "g_seed": request.seed, **settings}

    @contextlib.contextmanager
    def running(
        self, recorder: Recorder, request: Request, noise: Noise, numbers: str = "shared"
    ) -> Iterator[SharedNumbers | None]:
        """Let the code decode: its modules found, its draws answered, its tensors recorded; yield what answers."""
        check_numbers(numbers, request)
        shared = None
        if numbers == "shared":
            shared = SharedNumbers(noise, request, self.models.pyramid, lambda: recorder.side)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.checkout.active())
            stack.enter_context(on_device(self.models.device))
            stack.enter_context(self.autocasting())
            stack.enter_context(recorder.watching(self.draft, self.target, self.vae, self.checkout.module))
            if shared is not None:
                stack.enter_context(shared)
            try:
                yield shared
            except Exception as error:
                if (where := self.card_asked(error)) is None:
                    raise
                rule = f"the code asks for a GPU by itself ({where})"
                raise InputError("device", "cpu", rule, "pass --device cuda, on a machine that has one") from None

    def autocasting(self) -> AbstractContextManager[Any]:
        """Return what the code is called in: torch.autocast, where that is the networks' mode."""
        return autocasting(self.models.device, autocast_of(self.models.target))

    def card_asked(self, error: Exception) -> str | None:
        """Tell where code that runs on a CPU asked for CUDA and got none; None where an error is another one."""
        words = ("Torch not compiled with CUDA", "No CUDA GPUs", "NVIDIA driver", "least two devices, cuda")
        if self.models.device.type != "cpu" or not any(each in str(error) for each in words):
            return None
        return crash_of(error, self.checkout.folder)


class Sampler:
    """A decoder made of somebody's sampling function; `loop` sees the rounds of SDVAR's parallel decode."""

    sdvar: Any = None  # the SDVAR object that the function belongs to, where there is one
    declines: tuple[str, ...] = ()  # what the function does not do, of `DECLINES`
    threshold: float | None = None  # `similarity_thresh` that it was built with, where that was given
    watches: type[Recorder] = Recorder  # sees what the code does
    checks_image: Callable[[object, Tensor, ModelPair], None] = staticmethod(check_image)

    def __init__(
        self, code: Published, call: Callable[..., Any], contract: str, numbers: str, loop: ParallelLoop | None = None
    ) -> None:
        self.code, self.call, self.contract, self.numbers, self.loop = code, call, str(contract), numbers, loop
        self.recorder = self.watches(code.models.pyramid)  # what was seen of the last decode
        self._B = self._R = 0

    def decode(self, request: Request, noise: Noise) -> Trace:
        """Run the code under the numbers given. Raises `InputError` for the request, `ImageError` for its image."""
        arguments = self.code.arguments(request, noise, self.numbers)
        self.recorder = self.watches(self.code.models.pyramid, getattr(noise, "note", lambda text: None))
        self._B, self._R = request.B, request.R
        with contextlib.ExitStack() as stack:
            shared = stack.enter_context(self.code.running(self.recorder, request, noise, self.numbers))
            if self.loop is not None:
                stack.enter_context(self.loop.watching(self.recorder))
            stack.enter_context(torch.no_grad())
            image = self.call(**arguments)
        if shared is not None and self.contract != Contract.QUALITY:
            shared.check_answered(self.code.models.pyramid)
        trace = self.so_far()
        self.checks_image(image, trace.f_hat_BCPP, self.code.models)
        return trace

    @property
    def takes_draft_len(self) -> bool:
        """Whether `Settings.draft_len` means anything to it: a loop in rounds alone has such a length."""
        return self.loop is not None

    @property
    def remarks(self) -> list[str]:
        """What is to be known of the code beside its last trace, a clause each."""
        kept = self.loop.kept if self.loop is not None else 0
        said = f"{OF_CODE}{count_of(kept, 'scale')} that its rule rejected stayed as drafted"
        return [*self.code.remarks, *([said] if kept else [])]

    def so_far(self) -> Trace:
        """Return the trace of the last decode, whole or not."""
        if self.loop is not None:
            return self.loop.trace(self._B)
        return trace_of(self.recorder, self.code.models, self._B, self._R)


def published(checkout: str | Path, models: ModelPair, options: Mapping[str, str] | None = None) -> Published:
    """Put a published-style checkout under test without touching it; see `Published`."""
    return Published(checkout, models, options)
