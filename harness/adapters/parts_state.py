"""The state of an SDVAR object at a scale, made right, and what the laws of its methods share.

Promise: nothing here judges.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from harness.adapters.parts_network import fill
from harness.adapters.probe import Probe
from harness.adapters.recorder import Recorder
from harness.reference.steps import accumulate

SOME = ("verbose", "similarity_threshold")  # parameters that only some checkouts have


def state_at(probe: Probe, sdvar: Any, first: int, count: int) -> Any:
    """Return the object's own state, made right at scale `first`; a plain one where it builds none."""
    request, S = probe.request, probe.pyramid.S
    label_B = torch.tensor(request.labels, device=probe.code.models.device)
    try:
        state = sdvar._initialize_inference_state(request.B, label_B, request.seed, request.cfg, count)
    except Exception:  # that method has laws of its own
        state = SimpleNamespace()
    values: dict[str, Any] = {
        "current_stage": first,
        "gamma": count,
        "total_stages": S,
        "patch_nums": probe.pyramid.patch_nums,
        "accept_count": 0,
        "reject_count": 0,
        "target_calls": 0,
        "cfg": request.cfg,
        "top_k": 0,
        "top_p": 0.0,
        "more_smooth": False,
        "accepted_tokens": probe.drafted(0, first),
        "current_tokens_length": probe.pyramid.begin(first),
    }
    generator = torch.Generator(device=probe.code.models.device).manual_seed(request.seed)
    values["rng"] = getattr(state, "rng", None) or generator
    for name, side in (("draft", probe.draft), ("target", probe.target)):
        lvl = torch.tensor(probe.pyramid.levels(), device=probe.code.models.device)
        values |= {
            f"{name}_f_hat": probe.f_hat(first),
            f"{name}_next_token_map": side.run.x_RLD[:, probe.pyramid.span(first)].clone(),
            f"{name}_cond_BD": side.cond_RD.clone(),
            f"{name}_lvl_pos": (side.network.lvl_SD[lvl] + side.network.pos_LD)[None].clone(),
        }
        fill(probe, side, first)
    for name, value in values.items():
        setattr(state, name, value)
    return state


def flexible(method: Any, **given: Any) -> Any:
    """Call a method by the names that it knows; one that takes any, by those of every checkout."""
    parameters = inspect.signature(method).parameters
    known = set(parameters)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):  # a wrapper, say
        known |= {name for name in given if name not in SOME}
    return method(**{name: value for name, value in given.items() if name in known})


def unread(probe: Probe, sdvar: Any, field: str) -> bool:
    """Tell whether drafting, checking and updating at scale 1 come out the same with NaN in a field of the state."""
    if probe.pyramid.S < 2:
        return False
    try:
        right, spoilt = (_round(probe, sdvar, field, spoil) for spoil in (False, True))
    except Exception:  # those methods have laws of their own
        return False
    return len(right) == len(spoilt) and all(map(torch.equal, right, spoilt))


def _round(probe: Probe, sdvar: Any, field: str, spoil: bool) -> list[Tensor]:
    """Return the tokens, guided logits and f_hat of one round at scale 1, of which the first scale is accepted."""
    B, state = probe.request.B, state_at(probe, sdvar, 1, min(2, probe.pyramid.S - 1))
    if spoil:
        setattr(state, field, torch.full_like(getattr(state, field), torch.nan))
    with probe.code.running(Recorder(probe.pyramid), probe.request, probe.code.models.noise(probe.request)):
        tokens = list(flexible(sdvar.draft_generate_batch, state=state, B=B, verbose=False))
        made = sdvar.target_verify_batch(tokens, state, B)
        sdvar.update_state_with_accepted_tokens(tokens, 1, state, B)
    guided = made[0] if isinstance(made, tuple) else made
    return [*tokens, *guided, state.target_f_hat]


def window(first: int, count: int) -> str:
    """Return how a window is called in messages."""
    return f"scales {first}..{first + count - 1}"


def labels_of(probe: Probe) -> Tensor:
    """Return labels_R: the request's, then the unconditional ones."""
    classes = probe.target.network.config.classes
    label_B = torch.tensor(probe.request.labels, device=probe.code.models.device)
    return torch.cat((label_B, torch.full_like(label_B, classes)))


def f_hats_along(probe: Probe, first: int, tokens: list[Tensor]) -> list[Tensor]:
    """Return f_hat before and after every scale of a window."""
    models, made = probe.code.models, [probe.f_hat(first)]
    for k, idx in enumerate(tokens):
        codes = models.vae.quantizer.codes(idx, probe.pyramid.patch_nums[first + k])
        made.append(accumulate(made[-1], codes, first + k, models.vae.quantizer, probe.pyramid))
    return made
