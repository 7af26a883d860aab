"""Ready factories of published samplers: ``published:NAME``, with ``--checkout DIR`` and ``--option NAME=VALUE``.

Promise: an option that the sampler does not have, or a checkout without the class, method or parameter, is one line of
bad input.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch

from harness.adapters._checkout import building
from harness.adapters._infinity import ASKED, BitSampler, PublishedInfinity
from harness.adapters._parallel import METHODS, ParallelLoop
from harness.adapters._published import Published, Sampler
from harness.errors import InputError
from harness.models import ModelPair
from harness.numerals import real, whole
from harness.protocol import Contract, Implementation, Settings

PUBLISHED_PREFIX = "published"
COMMON = ("checkout", "contract", "numbers")
SAMPLING = ("B", "label_B", "g_seed", "cfg", "top_k", "top_p", "more_smooth")
TEST3 = "sdvar_autoregressive_infer_cfg_sd_test3"
PARALLEL = "sdvar_autoregressive_infer_cfg_parallel_v1"


@dataclass(frozen=True)
class _Order:
    """A checkout, and the options of the sampler that somebody wants of it. Every method raises `InputError`."""

    code: Published
    options: Mapping[str, str]

    @classmethod
    def of(cls, models: ModelPair, settings: Settings, *known: str, kind: type[Published] = Published) -> Self:
        """Open the checkout of some settings; `known` are the options that this sampler has beside the common ones."""
        options = dict(settings.options)
        wrong = [name for name in options if name not in (*COMMON, *known) and "." not in name]
        if wrong:
            remedy = f"pass one of {', '.join((*known, *COMMON[1:]))}"
            raise InputError("option", f"{wrong[0]}={options[wrong[0]]}", "is not an option of this sampler", remedy)
        if not options.get("checkout"):
            raise InputError("checkout", None, "published code is a folder", "pass --checkout DIR")
        return cls(kind(options["checkout"], models, options), options)

    def require(self, owner: Any, method: str, *parameters: str) -> None:
        self.code.checkout.check_method(owner, method, parameters)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """Return an option that is a whole number in low..high."""
        text = self.options.get(name)
        try:
            value = default if text is None else whole(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            shown, rule = value if text is None else text, f"must be a whole number in {low}..{high}"
            raise InputError(name, shown, rule, f"pass --option {name}={default}")
        return value

    def number(self, name: str, default: float) -> float:
        text = self.options.get(name)
        try:
            return default if text is None else real(text)
        except ValueError:
            raise InputError(name, text, "must be a number", f"pass --option {name}=0.5") from None

    def sdvar(self) -> Any:
        """Return the checkout's ``SDVAR`` of both networks; there may be none, or one of another size."""
        code, pyramid = self.code, self.code.models.pyramid
        kind, more = code.checkout.get("SDVAR"), {}
        if "similarity_thresh" in self.options:
            more["similarity_thresh"] = self.number("similarity_thresh", 0.8)
        with building(code.checkout, code.models.device, "SDVAR"):
            sdvar = kind(code.draft, code.target, **more)
            sdvar = sdvar.to(code.models.device).eval() if isinstance(sdvar, torch.nn.Module) else sdvar
        mask = getattr(sdvar, "attn_bias_for_sdmasking", None)
        if mask is not None and mask.shape[-1] != pyramid.L:
            sizes = f"masks of {mask.shape[-1]} positions, not {pyramid.L}"
            rule = f"SDVAR in models/var.py has its scales built in: {sizes}"
            raise InputError("patch_nums", pyramid.patch_nums, rule, "pass 1,2,3,4,5,6,8,10,13,16")
        return sdvar

    def sampler(
        self, call: Callable[..., Any], contract: Contract, loop: ParallelLoop | None = None,
        kind: type[Sampler] = Sampler,
    ) -> Sampler:  # fmt: skip
        """Return the decoder, held to a contract unless the options name another."""
        contract = Contract.of(self.options["contract"]) if "contract" in self.options else contract
        return kind(self.code, call, contract, self.options.get("numbers", "shared"), loop)


def var(models: ModelPair, settings: Settings) -> Implementation:
    """Build VAR's `autoregressive_infer_cfg` on the target. Options: contract, numbers."""
    order = _Order.of(models, settings)
    order.require(order.code.target, "autoregressive_infer_cfg", *SAMPLING)
    return order.sampler(order.code.target.autoregressive_infer_cfg, Contract.TOKENS)


def infinity(models: ModelPair, settings: Settings) -> Implementation:
    """Build Infinity's `autoregressive_infer_cfg` on the target. Options: contract, numbers."""
    order = _Order.of(models, settings, kind=PublishedInfinity)
    order.require(order.code.target, "autoregressive_infer_cfg", *ASKED)
    order.require(order.code.target, "get_logits")
    return order.sampler(order.code.target.autoregressive_infer_cfg, Contract.TOKENS, kind=BitSampler)


def code(models: ModelPair, settings: Settings) -> Implementation:
    """Build CoDe's draft and refine. Options: exit_num, entry_num, refiner, temp; contract, numbers."""
    order = _Order.of(models, settings, "exit_num", "entry_num", "refiner", "temp")
    refiner = order.options.get("refiner", "target")
    if refiner not in ("target", "draft"):
        raise InputError("refiner", refiner, "must be target or draft", "pass --option refiner=target")
    drafts, refines = order.code.draft, order.code.target
    if refiner == "draft":
        drafts, refines = refines, drafts
    order.require(drafts, "autoregressive_infer_cfg_draft", *SAMPLING, "temp", "exit_num")
    order.require(refines, "autoregressive_infer_cfg_refine", *SAMPLING, "temp", "entry_num", "draft", "f_hat")
    S = models.pyramid.S
    last = order.whole("exit_num", min(7, S - 1), 1, S - 1)
    entry = order.whole("entry_num", last, 1, S - 1)
    temp = order.number("temp", 1.0)

    def call(**arguments: Any) -> Any:
        arguments["top_k"] = [arguments["top_k"]] * S
        arguments["temp"] = [1 if temp == 1 else temp] * S
        f_hat, hub = drafts.autoregressive_infer_cfg_draft(**arguments, exit_num=last)
        return refines.autoregressive_infer_cfg_refine(**arguments, draft=hub, f_hat=f_hat, entry_num=entry)

    return order.sampler(call, Contract.QUALITY)


def sdvar_test3(models: ModelPair, settings: Settings) -> Implementation:
    """Build SDVAR's hand-off. Options: entry_num, sd_mask; contract, numbers."""
    order = _Order.of(models, settings, "entry_num", "sd_mask")
    sdvar = order.sdvar()
    order.require(sdvar, TEST3, *SAMPLING, "entry_num", "sd_mask")
    entry = order.whole("entry_num", min(5, models.pyramid.S - 1), 0, models.pyramid.S)
    call = partial(getattr(sdvar, TEST3), entry_num=entry, sd_mask=order.whole("sd_mask", 3, 0, 5))
    sampler = order.sampler(call, Contract.QUALITY)
    sampler.sdvar = sdvar
    return sampler


def sdvar_parallel(models: ModelPair, settings: Settings) -> Implementation:
    """Build SDVAR's parallel decode. Options: gamma, similarity_threshold, similarity_thresh, max_retries, verbose."""
    order = _Order.of(models, settings, "gamma", "similarity_threshold", "similarity_thresh", "max_retries", "verbose")
    sdvar = order.sdvar()
    for name in METHODS:
        order.require(sdvar, name)
    more: dict[str, float] = {
        "similarity_threshold": order.number("similarity_threshold", 0.0),
        "max_retries": order.whole("max_retries", 3, 0, 10**6),
        "verbose": order.options.get("verbose", "") in ("1", "true", "True"),
    }
    more = {name: value for name, value in more.items() if name in order.options}
    order.require(sdvar, PARALLEL, *SAMPLING, "gamma", *more)
    length = settings.draft_len if isinstance(settings.draft_len, int) else 2
    call = partial(getattr(sdvar, PARALLEL), gamma=order.whole("gamma", length, 1, 10**6), **more)
    sampler = order.sampler(call, Contract.QUALITY, ParallelLoop(sdvar, models))
    sampler.sdvar = sdvar
    sampler.declines = ("more_smooth",)  # drafts are judged by tokens, of which f_hat is no function then
    if "similarity_thresh" in order.options:
        sampler.threshold = order.number("similarity_thresh", 0.8)
    return sampler


PUBLISHED_FACTORIES: Mapping[str, Callable[[ModelPair, Settings], Implementation]] = {
    "var": var, "infinity": infinity, "code": code, "sdvar-test3": sdvar_test3, "sdvar-parallel": sdvar_parallel,
}  # fmt: skip


def has_rounds(name: str) -> bool:
    """Tell whether a published sampler drafts in rounds of a length that it is asked for."""
    return name == "sdvar-parallel"


def published_settings(name: str, options: tuple[tuple[str, str], ...]) -> list[Settings]:
    """Return the settings of a published sampler where no draft_len is asked for: both roles of CoDe's two models."""
    roles: tuple[tuple[tuple[str, str], ...], ...] = ((),)
    if name == "code" and "refiner" not in dict(options):
        roles = ((("refiner", "target"),), (("refiner", "draft"),))
    return [Settings("", False, "", (*options, *role)) for role in roles]
