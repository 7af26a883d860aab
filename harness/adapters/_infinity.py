"""A checkout of Infinity under test: its own network with the target's weights, driven and watched as its page says.

Promise: as of published VAR code. Modules that it wants and nobody has are stood for by empty ones, in `sys.modules`
for as long as the checkout is in use; `flash_attn` always is, by the arithmetic that recordings were made with.

Source: the Infinity page, §8.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.adapters._checkout import Checkout, build_module, building, named
from harness.adapters._published import Published, Sampler
from harness.adapters._recorder import Recorder, SeenDraw, SeenWrite, check_one_filter, in_order, replaced
from harness.errors import ImageError, InputError
from harness.models import ModelPair, mode_name
from harness.models.infinity.autoencoder import InfinityAutoencoder
from harness.models.infinity.transformer import InfinityConfig, infinity_config
from harness.protocol import Noise, Request, Rows

MODULE = "infinity.models.infinity"
DRAWS = "sample_with_top_k_top_p_also_inplace_modifying_logits_"
ASKED = (
    "vae", "scale_schedule", "label_B_or_BLT", "B", "negative_label_B_or_BLT", "g_seed", "cfg_list", "tau_list",
    "top_k", "top_p", "returns_vemb", "cfg_insertion_layer", "vae_type", "ret_img", "inference_mode",
)  # fmt: skip
UNUSED = ("timm", "timm.models", "timm.models.layers", "timm.loss", "pytz", "tqdm", "PIL", "imageio", "torchvision")
MOST_STEPS = 1  # of a pixel's byte: truncated where the same number may be an ulp less


class _Unused:
    """Whatever an imported name is that nothing calls in a decode: a class, a decorator, a module's attribute."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused()


class _StandIn(_Unused, ModuleType):
    """A module that has every name."""


def stand_ins() -> dict[str, ModuleType]:
    """Return the modules that stand for those that are not installed, and for `flash_attn`."""
    missing = [name for name in UNUSED if importlib.util.find_spec(name.partition(".")[0]) is None]
    flash, functions = ModuleType("flash_attn"), (flash_attn_func, flash_attn_varlen_kvpacked_func)
    vars(flash).update({function.__name__: function for function in functions})
    return {"flash_attn": flash, **{name: _StandIn(name) for name in missing}}


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None
) -> Tensor:
    """Attend without a mask, (R,n,H,c) each, in float32."""
    heads = [x.float().transpose(1, 2) for x in (q, k, v)]
    out = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], scale=softmax_scale)
    return out.transpose(1, 2).to(q.dtype)


def flash_attn_varlen_kvpacked_func(  # noqa: PLR0913  # as it is called
    q: Tensor, kv: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Let every row's positions, of q (Σq,H,c), attend to its own of kv (Σk,2,H,c), in float32."""
    spans = zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True)
    rows = [
        flash_attn_func(q[None, a:b], kv[None, c:d, 0], kv[None, c:d, 1], softmax_scale=softmax_scale)[0]
        for (a, b), (c, d) in spans
    ]
    return torch.cat(rows)


class BitCodes(nn.Module):
    """What the sampler sees of an autoencoder: the checkout's quantiser, and images by the harness's own decoder."""

    def __init__(self, quantizer: nn.Module, vae: InfinityAutoencoder) -> None:
        super().__init__()
        self.quantizer: Any = quantizer
        self.embed_dim, self.vocab_size = vae.config.C, 2**vae.config.C
        self._vae = vae

    def decode(self, f_hat_BChw: Tensor) -> Tensor:
        """Return images in [-1, 1], a tensor of their own."""
        return self._vae.latent_to_raw_image(f_hat_BChw).clamp(-1, 1)


class PublishedInfinity(Published):
    """A checkout's own network with a target's weights in float32; nothing drafts. Raises `InputError` as its base."""

    def __init__(self, checkout: str | Path, models: ModelPair, options: Mapping[str, str] | None = None) -> None:
        config = infinity_config(models.target)
        if models.target.dtype != torch.float32:
            rule = "published code is judged in float32 alone"
            raise InputError("dtype", mode_name(models.target), rule, "pass --dtype float32")
        if config.chunks < 2:
            rule = "the published sampler decodes networks of several chunks of blocks alone"
            raise InputError("chunks", config.chunks, rule, "pass a network whose block_chunks are two or more")
        stubs, init = (named(options or {}, word) for word in ("stub", "init"))
        self.models, self.draft, self.remarks = models, None, []
        self.checkout = Checkout(checkout, stubs, MODULE, "Infinity", stand_ins())
        assert isinstance(models.vae, InfinityAutoencoder)
        self.checkout.get(DRAWS)
        self.vae: Any = self._codes(models.vae)
        fixed = {
            "text_channels": config.A, "text_maxlen": config.X, "embed_dim": config.D, "depth": config.depth,
            "num_heads": config.H, "mlp_ratio": config.ffn / config.D, "shared_aln": config.shared_adaln,
            "cross_attn_layer_scale": 1.0 if config.ca_gamma else -1.0, "nm0": config.norm0_ve,
            "cos_attn": config.l2_norm, "head_depth": 2 if config.two_layer_head else 1, "block_chunks": config.chunks,
            "add_lvl_embeding_only_first_block": int(config.levels_once), "use_bit_label": 1, "rope2d_each_sa_layer": 1,
            "rope2d_normalized_by_hw": config.rule, "apply_spatial_patchify": int(config.patch == 2),
            "pad_to_multiplier": 128, "inference_mode": True,
        }  # fmt: skip
        self.target: Any = build_module(
            self.checkout, "Infinity", models.target, (self.vae, fixed), {"fused_norm": "true", **init}
        )
        self._register(config)

    @property
    def schedule(self) -> list[tuple[int, int, int]]:
        """Scales as the code writes them: time, height, width."""
        return [(1, h, w) for h, w in self.models.pyramid.sides]

    def _codes(self, vae: InfinityAutoencoder) -> BitCodes:
        """Return the checkout's quantiser beside the harness's decoder. Raises `InputError` where there is none."""
        C, name = vae.config.C, "infinity.models.bsq_vae.multiscale_bsq"
        with building(self.checkout, self.models.device, "MultiScaleBSQ"):
            try:
                quantizer = importlib.import_module(name).MultiScaleBSQ(dim=C, codebook_size=2**C, new_quant=True)
            except ModuleNotFoundError as error:
                raise self.checkout.missing(str(error.name), f"{name.replace('.', '/')}.py") from None
        return BitCodes(quantizer.to(self.models.device).eval(), vae)

    def _register(self, config: InfinityConfig) -> None:
        """Give the code the angles of a schedule that its table lacks, by its own function."""
        key, table = str(tuple(self.schedule)), self.target.rope2d_freqs_grid
        if key in table:
            return
        make = self.checkout.get("precompute_rope2d_freqs_grid")
        whole = [*self.schedule, (1, *config.full)]  # the last one says what sides coordinates are of
        with building(self.checkout, self.models.device, "rope2d_freqs_grid"):
            made = make(
                dim=config.D // config.H, dynamic_resolution_h_w={"own": {"1M": {"scales": whole}}},
                rope2d_normalized_by_hw=config.rule, pad_to_multiplier=128,
            )  # fmt: skip
        table[key] = made[str(tuple(whole))]

    def arguments(self, request: Request, noise: Noise, numbers: str = "shared") -> dict[str, Any]:
        """Return what the sampler is called with. Raises `InputError` for a request that it cannot be asked."""
        request.check_for(self.models.target.config)
        infinity_config(self.models.target).check_request(request)
        guidance, S = request.scale_guidance, self.models.pyramid.S
        assert guidance is not None
        check_one_filter(request)
        labels, device = noise.labels(0).tolist(), self.models.device
        return {
            "vae": self.vae, "scale_schedule": self.schedule, "B": request.B, "g_seed": request.seed,
            "label_B_or_BLT": _packed([request.texts[k] for k in labels], device),
            "negative_label_B_or_BLT": _packed([request.negative_texts[k] for k in labels], device)
            if request.negative_texts else None,
            "cfg_list": list(guidance.weights), "tau_list": list(guidance.temperatures or (1.0,) * S),
            "cfg_insertion_layer": list(guidance.places), "top_k": request.top_k, "top_p": request.top_p,
            "returns_vemb": 1, "vae_type": self.vae.embed_dim, "ret_img": True, "inference_mode": True,
        }  # fmt: skip

    def autocasting(self) -> AbstractContextManager[Any]:
        """Run what is compiled as it is written."""
        eagerly: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return eagerly


def _packed(texts: Sequence[Rows], device: torch.device) -> tuple[Tensor, list[int], Tensor, int]:
    """Return texts as the code takes them: all rows, lengths, where each begins and ends, the longest."""
    lengths = [len(rows.numbers_TA) for rows in texts]
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return torch.cat([rows.numbers_TA for rows in texts]).to(device), lengths, ends, max(lengths)


class _Resizes(TorchFunctionMode):
    def __init__(self, show: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.show = show

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.interpolate:
            self.show(args[0] if args else (kwargs or {})["input"])
        return func(*args, **(kwargs or {}))


class BitRecorder(Recorder):
    """Sees inputs at block 0, rows at the head, bits where they are drawn, and f_hat where it is resized or decoded."""

    _codes: Tensor | None = None  # of the scale in hand
    _open: SeenDraw | None = None  # whose f_hat was not seen yet
    _cond_RD: Tensor | None = None

    @contextlib.contextmanager
    def watching(self, draft: Any, target: Any, vae: Any, namespace: Any) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            blocks = target.unregistered_blocks
            hook = partial(self._before_pass, "target")
            stack.callback(blocks[0].register_forward_pre_hook(hook, with_kwargs=True).remove)
            stack.callback(blocks[-1].register_forward_hook(self._after_last).remove)
            stack.callback(target.text_proj_for_sos.register_forward_hook(self._after_pool).remove)
            stack.enter_context(replaced(target, "get_logits", partial(self._get_logits, "target")))
            stack.enter_context(replaced(vae.quantizer.lfq, "indices_to_codes", self._look_up_bits))
            stack.enter_context(replaced(vae, "decode", self._picture))
            stack.enter_context(replaced(namespace, DRAWS, self._sample))
            stack.enter_context(_Resizes(self._resized))
            yield

    def _after_pool(self, module: Any, args: Any, made: Tensor) -> None:
        self._cond_RD = made.detach().clone()

    def _get_logits(self, side: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Keep the rows of both halves: the head is asked for those, too, that no guidance reads."""
        logits_bnX, (h_bnD, _) = real(*args, **kwargs), in_order(real, args, kwargs)[:2]
        last, rows = self.passes[-1], [logits_bnX.detach().clone()]
        made_RnD, b = last.hidden_RnD, len(h_bnD)
        if made_RnD is not None and self._cond_RD is not None and b < len(made_RnD):
            guided = not torch.equal(h_bnD, made_RnD[:b])  # after the last block, which both halves then go on from
            rows.append(real(h_bnD if guided else made_RnD[b:], self._cond_RD[b:]).detach())
        last.rows_RnV = torch.cat(rows).unflatten(-1, (-1, 2)).flatten(1, 2)
        return logits_bnX

    def _sample(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._close(None)
        logits = in_order(real, args, kwargs)[0].detach().clone()  # the filter writes into it
        bits, made_by = real(*args, **kwargs), self.passes[-1] if self.passes else None
        self._open = SeenDraw("target", len(self.draws), logits, bits[..., 0].detach().clone(), made_by)
        self.draws.append(self._open)
        self.note(f"draw of scale {self._open.scale}")
        return bits

    def _look_up_bits(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._codes = real(*args, **kwargs)
        return self._codes

    def _resized(self, map_BC1hw: Tensor) -> None:
        if self._open is not None and self._codes is not None and map_BC1hw is not self._codes:
            self._close(map_BC1hw.squeeze(2))

    def _picture(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._close(in_order(real, args, kwargs)[0])
        return super()._picture(real, *args, **kwargs)

    def _close(self, f_hat_BChw: Tensor | None) -> None:
        """Keep f_hat after the scale that was drawn last; none where it was not seen."""
        draw, self._open, self._codes = self._open, None, None
        if draw is not None:
            f_hat = torch.full((1,), torch.nan) if f_hat_BChw is None else f_hat_BChw.detach().clone()
            self.writes.append(SeenWrite(draw.scale, draw.idx_Bl, f_hat, f_hat.data_ptr(), draw))


def check_bytes(image: object, f_hat_BChw: Tensor, models: ModelPair) -> None:
    """Raise `ImageError` unless a sampler returned the bytes of its last f_hat, blue first."""
    image = image[2] if isinstance(image, tuple) and len(image) == 3 else image
    if f_hat_BChw.shape[1:] != models.target.config.latent or not bool(torch.isfinite(f_hat_BChw).all()):
        return
    with torch.no_grad():
        expected_Bhw3 = (models.vae.decode(f_hat_BChw) * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(3)
    if not isinstance(image, Tensor) or image.shape != expected_Bhw3.shape or image.dtype != torch.uint8:
        what = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise ImageError(f"the image is {what}, not uint8 {tuple(expected_Bhw3.shape)}")
    far = int((image.int() - expected_Bhw3.int()).abs().amax())
    if far > MOST_STEPS:
        is_turned = (image.int() - expected_Bhw3.flip(3).int()).abs().amax() <= MOST_STEPS
        raise ImageError(f"the image is not that of its f_hat, by up to {far} of 255{': red first' * bool(is_turned)}")


class BitSampler(Sampler):
    watches = BitRecorder
    checks_image = staticmethod(check_bytes)
