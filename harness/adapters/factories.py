"""Ready factories of published samplers: ``published:NAME``, with ``--checkout DIR`` and ``--option NAME=VALUE``.

Promise: an option that the sampler does not have, or a checkout without the class, method or parameter, is one line of
bad input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from harness.adapters.parallel import METHODS, Parallel
from harness.adapters.published import Published, Sampler
from harness.adapters.weights import building
from harness.errors import InputError
from harness.models.pair import ModelPair
from harness.protocol.contract import Contract
from harness.protocol.decoder import Implementation, Settings

PREFIX = "published"
COMMON = ("checkout", "contract", "numbers")
SAMPLING = ("B", "label_B", "g_seed", "cfg", "top_k", "top_p", "more_smooth")
TEST3 = "sdvar_autoregressive_infer_cfg_sd_test3"
PARALLEL = "sdvar_autoregressive_infer_cfg_parallel_v1"


def var(models: ModelPair, settings: Settings) -> Implementation:
    """Build VAR's `autoregressive_infer_cfg` on the target. Options: contract, numbers."""
    code, options = _open(models, settings, ())
    code.checkout.method(code.target, "autoregressive_infer_cfg", SAMPLING)
    call: Callable[..., Any] = code.target.autoregressive_infer_cfg
    return Sampler(code, call, _contract(options, Contract.TOKENS), options.get("numbers", "shared"))


def code(models: ModelPair, settings: Settings) -> Implementation:
    """Build CoDe's draft and refine. Options: exit_num, entry_num, refiner, temp; contract, numbers."""
    made, options = _open(models, settings, ("exit_num", "entry_num", "refiner", "temp"))
    refiner = options.get("refiner", "target")
    if refiner not in ("target", "draft"):
        raise InputError("refiner", refiner, "must be target or draft", "pass --option refiner=target")
    drafts, refines = (made.draft, made.target) if refiner == "target" else (made.target, made.draft)
    names = (*SAMPLING, "temp")
    made.checkout.method(drafts, "autoregressive_infer_cfg_draft", (*names, "exit_num"))
    made.checkout.method(refines, "autoregressive_infer_cfg_refine", (*names, "entry_num", "draft", "f_hat"))
    S = models.pyramid.S
    last = whole(options, "exit_num", min(7, S - 1), 1, S - 1)
    entry = whole(options, "entry_num", last, 1, S - 1)
    temp = [number(options, "temp", 1.0)] * S

    def call(**how: Any) -> Any:
        how["top_k"] = [how["top_k"]] * S
        how["temp"] = [1 if each == 1 else each for each in temp]
        f_hat, hub = drafts.autoregressive_infer_cfg_draft(**how, exit_num=last)
        return refines.autoregressive_infer_cfg_refine(**how, draft=hub, f_hat=f_hat, entry_num=entry)

    return Sampler(made, call, _contract(options, Contract.QUALITY), options.get("numbers", "shared"))


def sdvar_test3(models: ModelPair, settings: Settings) -> Implementation:
    """Build SDVAR's hand-off. Options: entry_num, sd_mask; contract, numbers."""
    made, options = _open(models, settings, ("entry_num", "sd_mask"))
    sdvar = build_sdvar(made, options)
    made.checkout.method(sdvar, TEST3, (*SAMPLING, "entry_num", "sd_mask"))
    entry = whole(options, "entry_num", min(5, models.pyramid.S - 1), 0, models.pyramid.S)
    mask = whole(options, "sd_mask", 3, 0, 5)

    def call(**how: Any) -> Any:
        return getattr(sdvar, TEST3)(**how, entry_num=entry, sd_mask=mask)

    sampler = Sampler(made, call, _contract(options, Contract.QUALITY), options.get("numbers", "shared"))
    sampler.sdvar = sdvar
    return sampler


def sdvar_parallel(models: ModelPair, settings: Settings) -> Implementation:
    """Build SDVAR's parallel decode. Options: gamma, similarity_threshold, similarity_thresh, max_retries, verbose."""
    known = ("gamma", "similarity_threshold", "similarity_thresh", "max_retries", "verbose")
    made, options = _open(models, settings, known)
    sdvar = build_sdvar(made, options)
    for name in METHODS:
        made.checkout.method(sdvar, name)
    more = {
        "similarity_threshold": number(options, "similarity_threshold", 0.0),
        "max_retries": whole(options, "max_retries", 3, 0, 10**6),
        "verbose": options.get("verbose", "") in ("1", "true", "True"),
    }
    more = {name: value for name, value in more.items() if name in options}
    made.checkout.method(sdvar, PARALLEL, (*SAMPLING, "gamma", *more))
    length = settings.draft_len if isinstance(settings.draft_len, int) else 2
    gamma = whole(options, "gamma", length, 1, 10**6)

    def call(**how: Any) -> Any:
        return getattr(sdvar, PARALLEL)(**how, gamma=gamma, **more)

    numbers = options.get("numbers", "shared")
    decoder = Parallel(made, call, sdvar, _contract(options, Contract.QUALITY), numbers)
    if "similarity_thresh" in options:
        decoder.threshold = number(options, "similarity_thresh", 0.8)
    return decoder


FACTORIES: Mapping[str, Callable[[ModelPair, Settings], Implementation]] = {
    "var": var,
    "code": code,
    "sdvar-test3": sdvar_test3,
    "sdvar-parallel": sdvar_parallel,
}


def build_sdvar(made: Published, options: Mapping[str, str]) -> Any:
    """Return the checkout's ``SDVAR`` of both networks. Raises `InputError` where there is none, or of another size."""
    kind = made.checkout.get("SDVAR")
    more = {}
    if "similarity_thresh" in options:
        more["similarity_thresh"] = number(options, "similarity_thresh", 0.8)
    with building(made.checkout, made.models.device):
        try:
            sdvar = kind(made.draft, made.target, **more)
            sdvar = sdvar.to(made.models.device).eval() if isinstance(sdvar, torch.nn.Module) else sdvar
        except Exception as error:
            raise made.checkout.lacks(f"builds no SDVAR ({type(error).__name__}: {error})") from None
    mask, L = getattr(sdvar, "attn_bias_for_sdmasking", None), made.models.pyramid.L
    if mask is not None and mask.shape[-1] != L:
        rule = f"SDVAR in models/var.py has its scales built in: masks of {mask.shape[-1]} positions, not {L}"
        raise InputError("patch_nums", made.models.pyramid.patch_nums, rule, "pass 1,2,3,4,5,6,8,10,13,16")
    return sdvar


def default_settings(name: str, options: tuple[tuple[str, str], ...]) -> list[Settings]:
    """Return the settings of a published sampler where no draft_len is asked for: both roles of CoDe's two models."""
    given = dict(options)
    roles = [("refiner", "target")], [("refiner", "draft")]
    ways = roles if name == "code" and "refiner" not in given else ([],)
    return [Settings("", False, "", (*options, *way)) for way in ways]


def _open(models: ModelPair, settings: Settings, known: tuple[str, ...]) -> tuple[Published, dict[str, str]]:
    options = dict(settings.options)
    wrong = [name for name in options if name not in (*COMMON, *known)]
    if wrong:
        remedy = f"pass one of {', '.join((*known, *COMMON[1:]))}"
        raise InputError("option", f"{wrong[0]}={options[wrong[0]]}", "is not an option of this sampler", remedy)
    if not options.get("checkout"):
        rule = "published code is a folder with models and dist"
        raise InputError("checkout", None, rule, "pass --checkout DIR")
    return Published(options["checkout"], models), options


def _contract(options: Mapping[str, str], default: Contract) -> Contract:
    return Contract.of(options["contract"]) if "contract" in options else default


def whole(options: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """Return an option that is a whole number in low..high. Raises `InputError`."""
    text = options.get(name)
    try:
        value = default if text is None else int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        shown = value if text is None else text
        raise InputError(name, shown, f"must be a whole number in {low}..{high}", f"pass --option {name}={default}")
    return value


def number(options: Mapping[str, str], name: str, default: float) -> float:
    """Return an option that is a finite number. Raises `InputError`."""
    text = options.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise InputError(name, text, "must be a number", f"pass --option {name}=0.5")
    return value
