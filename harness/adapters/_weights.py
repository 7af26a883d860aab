"""A checkout's own modules, with the weights of a `ModelPair`.

Promise: every parameter has the value of the pair's, or one error lists what does not fit; PyTorch's global generators
stand where they stood; nothing of the pair is shared with the modules.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.adapters._checkout import Checkout
from harness.errors import InputError, text_of
from harness.models import autocast_of, mode_name, var_config
from harness.models.network import Network
from harness.models.var.autoencoder import Autoencoder

# Arguments of VAR's constructor that the networks fix, and those of the published one whose defaults change no decode.
FIXED = ("vae_local", "vae", "num_classes", "depth", "embed_dim", "num_heads", "shared_aln", "attn_l2_norm",
         "patch_nums")  # fmt: skip
USUAL = ("mlp_ratio", "drop_rate", "attn_drop_rate", "drop_path_rate", "norm_eps", "cond_drop_rate",
         "flash_if_available", "fused_if_available")  # fmt: skip
WORDS = {"true": True, "false": False, "none": None}
SHARES = {"one": 1, "per-scale": 0}  # share_quant_resi of a layout of φ; of "shared" the number of φ
QUANTIZER = "quantize."


class CodesOnly(nn.Module):
    """What samplers see of a VQ-VAE: its quantiser, and our pixels (the published decoder is of one size)."""

    def __init__(self, quantize: nn.Module, vae: Autoencoder) -> None:
        super().__init__()
        self.quantize: Any = quantize
        self.Cvae, self.vocab_size = vae.config.C, vae.config.V
        self._decode = vae.decode

    def fhat_to_img(self, f_hat_BCPP: Tensor) -> Tensor:
        """Return images in [-1, 1], a tensor of their own: samplers write into it."""
        with torch.autocast(f_hat_BCPP.device.type, enabled=False):  # pixels are the harness's
            return self._decode(f_hat_BCPP) * 2 - 1


def check_dtype(models: Any) -> None:
    """Refuse what published code does not compute in. Raises `InputError`."""
    for name, network in (("dtype", models.target), ("draft_dtype", models.draft)):
        if network.dtype != torch.float32:
            rule = "published code casts its logits to float32, and is judged in float32 alone"
            raise InputError(name, mode_name(network), rule, f"pass --{name.replace('_', '-')} float32")
    if autocast_of(models.draft) != autocast_of(models.target):
        rule = "published code computes both networks in one torch.autocast"
        raise InputError("draft_dtype", mode_name(models.draft), rule, f"pass --draft-dtype {mode_name(models.target)}")
    if models.pyramid.S < 2:
        rule = "published code divides by the number of scales less one"
        raise InputError("patch_nums", models.pyramid.patch_nums, rule, "pass two scales or more")


def build_vae(checkout: Checkout, vae: Autoencoder, patch_nums: tuple[int, ...], device: torch.device) -> CodesOnly:
    """Return the VQ-VAE that samplers meet. Raises `InputError` where the checkout's quantiser is another."""
    config = vae.config
    share = SHARES.get(config.phi_layout, config.phi)
    with building(checkout, device, "VectorQuantizer2"):
        try:
            kind: Any = importlib.import_module("models.quant").VectorQuantizer2
        except (ImportError, AttributeError) as error:
            rule = f"models/quant.py has no VectorQuantizer2 ({text_of(error)})"
            raise InputError("checkout", str(checkout.folder), rule, "see docs/own-decoder.md") from None
        quantize = kind(
            vocab_size=config.V, Cvae=config.C, using_znorm=False, v_patch_nums=patch_nums, share_quant_resi=share
        )
    weights = {n.removeprefix(QUANTIZER): w for n, w in vae.weights.items() if n.startswith(QUANTIZER)}
    _load(checkout, quantize, weights, "VectorQuantizer2")
    return CodesOnly(quantize.to(device).eval(), vae)


def named(options: Mapping[str, str], word: str) -> dict[str, str]:
    """Return the options ``word.NAME`` by their names."""
    return {name.partition(".")[2]: text for name, text in options.items() if name.partition(".")[0] == word != name}


def value_of(text: str) -> object:
    """Return what an option's text says: a number, a list, true, false, none, or the text itself."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _arguments(checkout: Checkout, kind: str = "VAR", fixed: Collection[str] = FIXED) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class's constructor that the networks do not fix."""
    parameters = list(inspect.signature(checkout.get(kind)).parameters.values())[1:]  # the first one is the autoencoder
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {each.name: each for each in parameters if each.name not in fixed and each.kind not in variable}


def defaults_of(checkout: Checkout, init: Mapping[str, str]) -> dict[str, object]:
    """Return the arguments of VAR's constructor that nobody gave and that the published one does not have."""
    return {
        name: each.default
        for name, each in _arguments(checkout).items()
        if name not in (*USUAL, *init) and each.default is not inspect.Parameter.empty
    }


def build_network(checkout: Checkout, network: Network, vae: CodesOnly, init: Mapping[str, str]) -> Any:
    """Return the checkout's ``VAR`` with a network's weights. Raises `InputError` where it has none that takes them."""
    config = var_config(network)
    fixed = {
        "num_classes": config.classes, "depth": config.depth, "embed_dim": config.D, "num_heads": config.H,
        "shared_aln": config.shared_adaln, "attn_l2_norm": config.l2_norm, "patch_nums": config.pyramid.patch_nums,
    }  # fmt: skip
    return build_module(checkout, "VAR", network, (vae, fixed), init)


def build_module(
    checkout: Checkout, name: str, network: Network, given: tuple[nn.Module, Mapping[str, Any]], init: Mapping[str, str]
) -> Any:
    """Return the checkout's class of a name with our weights: autoencoder and arguments `given`, more in `init`."""
    (vae, fixed), device = given, network.device
    known = _arguments(checkout, name, {*FIXED, *fixed})
    for word, text in init.items():
        if word not in known:
            remedy = f"pass one of {', '.join(f'init.{each}' for each in known) or 'none'}"
            of_networks = word in (*FIXED, *fixed)
            rule = "is fixed by the networks" if of_networks else f"is no argument of {name}'s constructor"
            raise InputError("option", f"init.{word}={text}", rule, remedy)
    with building(checkout, device, name):
        try:
            module = checkout.get(name)(vae, **fixed, **{word: value_of(text) for word, text in init.items()})
        except TypeError as error:
            raise checkout.lacks(f"has a {name} that takes other arguments ({text_of(error)})") from None
    _load(checkout, module, network.weights, name)
    module = module.to(device).eval().requires_grad_(False)
    if isinstance(getattr(module, "uniform_prob", None), Tensor):
        module.uniform_prob = module.uniform_prob.to(device)
    if isinstance(getattr(module, "rng", None), torch.Generator) and module.rng.device.type != device.type:
        module.rng = torch.Generator(device=device)
    return module


def _load(checkout: Checkout, module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Copy weights in by name; what is left over on either side must be a buffer."""
    try:
        missing, unknown = module.load_state_dict({n: w.detach() for n, w in weights.items()}, strict=False)
    except RuntimeError as error:
        raise checkout.lacks(f"has a {name} of other sizes ({text_of(error)[:300]})") from None
    parameters = {key for key, _ in module.named_parameters()}
    wrong = [f"missing {key}" for key in missing if key in parameters] + [f"unknown {key}" for key in unknown]
    if wrong:
        raise checkout.lacks(f"has a {name} of other parameters: {', '.join(wrong[:6])}")


@contextmanager
def building(checkout: Checkout, device: torch.device, name: str) -> Iterator[None]:
    """Let the checkout build what it calls `name`: its output silenced, the global generators kept, its device ours.

    `dist.get_device()` says where a module's own generator lives, and would say what the machine has. Raises
    `InputError` whatever is raised.
    """
    cards = [device] if device.type == "cuda" else []
    with checkout.active(), torch.random.fork_rng(cards), on_device(device):
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise checkout.lacks(f"builds no {name} ({type(error).__name__}: {text_of(error)})") from None


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Let `dist.get_device()` of the active checkout say where the weights are, by whatever module it is called."""
    try:
        real = getattr(importlib.import_module("dist"), "get_device", None)
    except ImportError:
        real = None
    places = [each for each in list(sys.modules.values()) if real and vars(each).get("get_device") is real]
    try:
        for place in places:
            place.get_device = lambda: device  # type: ignore[attr-defined]
        yield
    finally:
        for place in places:
            place.get_device = real  # type: ignore[attr-defined]
