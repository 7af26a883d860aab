"""Recordings of Infinity: what their metadata says, the networks that it names, and the judgement on one case.

Promise: as for VAR's; what is allowed is a stated number. A recorded bit that is not drawn here is a tie only if it is
what the recorded logits draw, and float64, which rounds where the law does, cannot tell it from the other one.

Source: the Infinity page, §10, and the page beside the recordings.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor

from harness.errors import InputError
from harness.golden._cases import CaseResult, Ground, RecordedCase, TensorShapes
from harness.golden._metadata import MOST_NUMBERS, REMEDY, SIZES, GoldenCase, check_values, check_weights, naming
from harness.models import ModelPair
from harness.models.infinity import autoencoder, transformer
from harness.models.infinity.autoencoder import InfinityAutoencoder, from_map
from harness.models.infinity.transformer import InfinityConfig
from harness.models.var.sizes import count_scalars, filled_weights
from harness.protocol import TOKEN, Request, Rows, ScaleGuidance, ScalePyramid
from harness.reference import draw, family_of, filter_logits, sample_sequential, teacher_forced

FORMAT = "infinity-recorded-1"
SAMPLERS = ("sequential", "teacher")
# How far two right float32 implementations may be apart: the Infinity page, §10, and that of the recordings.
LIMITS = {
    False: 2e-5,  # logits of a network whose cross-attention does not round
    True: 2e-2,  # of one where it does: a difference of an ulp before it is a step after it
    "map": 2e-6,  # f_hat, inputs, residuals whose sign is a bit: recorded under other instruction sets, 1.1e-6 apart
    "image": 1e-5,
    "noise": 1e-5,  # of a number itself: the logarithm that makes it may differ by an ulp
}
COUNTS = [range(1, 2**13)]
NETWORK: dict[str, Any] = {
    **{key: SIZES[key] for key in ("D", "H", "depth")}, "patchify": (0, 1),
    "block_chunks": range(1, 129), "d": range(1, 2**12), "dv": range(1, 2**14), "text_channels": range(1, 2**14),
    "text_maxlen": range(1, 2**12), "head_depth": (1, 2), "mlp_ratio": float, "scale_mul_offset": float,
    "cross_attn_layer_scale": float, "shared_aln": bool, "nm0": bool, "cos_attn": bool, "fused_norm": bool,
    "add_lvl_only_first_chunk": (0, 1), "rope_normalized": (0, 1, 2), "head_aln": (True,), "rms_norm": (False,),
    "swiglu": (False,), "vae_ch": range(32, 4097, 32), "vae_mult": [range(1, 65)], "vae_res_blocks": range(1, 17),
}  # fmt: skip
CASE: dict[str, Any] = {
    "sampler": SAMPLERS, "schedule": [[range(1, 129)]], "full_sides": [range(1, 129)], "text_lens": COUNTS,
    "cfg": [float], "tau": [float], "cfg_insertion_layer": [range(-128, 2)], "top_p": float, "top_k": range(2**16),
    "gt_leak": range(16), "bf16_cross_attention": bool, "image": bool,
}  # fmt: skip


@dataclass(frozen=True)
class InfinityStated:
    """What one case of a file asks for, as it is written, and the network that it names."""

    id: str
    values: Mapping[str, Any]
    network: Mapping[str, Any]

    @classmethod
    def from_values(cls, values: Mapping[str, Any], networks: str) -> Self:
        """Read one case. Raises `InputError`, which names it, where `networks`, JSON, does not describe its own."""
        with naming(str(values["id"])):
            try:
                return cls(str(values["id"]), values, {**json.loads(networks)[values["network"]]})
            except (ValueError, TypeError, RecursionError):
                raise InputError("networks", networks, "must be JSON that describes each network", REMEDY) from None

    def as_values(self) -> dict[str, object]:
        return dict(self.values)


@dataclass(frozen=True)
class InfinityCase:
    """A case that fits its networks; its texts are tensors of the file."""

    id: str
    sampler: str  # one of `SAMPLERS`
    request: Request  # without texts
    models: ModelPair
    text_lens: tuple[int, ...]
    negative_lens: tuple[int, ...]
    forced: int  # scales whose bits are given
    image: bool  # whether images are recorded

    @property
    def config(self) -> InfinityConfig:
        return transformer.infinity_config(self.models.target)

    @property
    def codec(self) -> InfinityAutoencoder:
        assert isinstance(self.models.vae, InfinityAutoencoder)
        return self.models.vae

    def shapes(self) -> TensorShapes:
        config, B, real = self.config, len(self.text_lens), torch.float32
        pyramid, patch, (C, H, W) = config.pyramid, config.patch, config.latent
        L, N, S, up = pyramid.L, pyramid.channels, pyramid.S, self.codec.config.downsampling
        shapes: TensorShapes = {
            "text": (real, (sum(self.text_lens), config.A)),
            "bits": (torch.uint8, (B, L, N)),
            "logits": (real, (B, L, N, 2)),
        }
        if self.sampler == "teacher":
            return shapes | {"raw": (real, (B, C, H, W)), "inputs": (real, (B, L - 1, N))}
        shapes |= {"f_hat": (real, (B, C, H, W)), "noise_ends": (real, (S, 2))}
        shapes |= {f"f_hat/{si}": (real, (B, C, H, W)) for si in range(S - 1)}
        for si, (h, w) in enumerate(pyramid.sides[: self.forced]):
            shapes[f"forced/{si}"] = (torch.uint8, (B, patch * h, patch * w, C))
        if self.negative_lens:
            shapes["text_negative"] = (real, (sum(self.negative_lens), config.A))
        if self.image:
            shapes["decoded_unclamped"] = (real, (B, 3, up * H, up * W))
            shapes["image_bgr_u8"] = (torch.uint8, (B, up * H, up * W, 3))
        return shapes

    def with_texts(self, recorded: Mapping[str, Tensor]) -> Self:
        texts, negative = (
            tuple(Rows(rows.cpu().contiguous()) for rows in recorded[name].split(list(lens))) if lens else ()
            for name, lens in (("text", self.text_lens), ("text_negative", self.negative_lens))
        )
        return replace(self, request=replace(self.request, texts=texts, negative_texts=negative))

    def forced_bits(self, recorded: Mapping[str, Tensor]) -> Tensor:
        """Return the bits (B,L) that scales go on with: the recorded ones, or those that were forced."""
        bits_BL, draws = recorded["bits"].flatten(1).long(), self.config.pyramid.draws
        for si in range(self.forced):
            map_BChw = recorded[f"forced/{si}"].permute(0, 3, 1, 2)
            bits_BL[:, draws.span(si)] = from_map(map_BChw, self.config.patch).long()
        return bits_BL


def parse_infinity(stated: InfinityStated, device: torch.device) -> InfinityCase:
    """Fit one case to its networks. Raises `InputError`, which names the case, where something is missing or unfit."""
    with naming(stated.id):
        values, network = stated.values, stated.network
        check_values(network, NETWORK)
        check_values(values, CASE)
        teacher, config = values["sampler"] == "teacher", _config_of(values, network)
        more = {} if teacher else {"seed": range(2**63 - 1)}
        check_values(values, more | ({"negative_lens": COUNTS} if values["negative_lens"] else {}))
        S, lens, negative = config.pyramid.S, tuple(values["text_lens"]), tuple(values["negative_lens"] or ())
        if values["B"] != len(lens) or max((*lens, *negative)) > config.X or values["gt_leak"] > S:
            shown = {key: values[key] for key in ("B", "text_lens", "negative_lens", "gt_leak")}
            rule = f"must be one text an image, of at most {config.X} rows, and forced scales that there are"
            raise InputError("texts", shown, rule, REMEDY)
        # lists may be longer than the schedule; the trainer's pass has neither guidance nor temperature
        w, tau = ((1.0,) * S, ()) if teacher else (tuple(values[key][:S]) for key in ("cfg", "tau"))
        request = Request(
            tuple(range(len(lens))), 0 if teacher else values["seed"], order="batch", top_p=values["top_p"],
            top_k=values["top_k"] if values["top_k"] < 2 else 0,  # of two values 2 is all
            scale_guidance=ScaleGuidance(w, tau, (0,) if teacher else tuple(values["cfg_insertion_layer"])),
        )  # fmt: skip
        blank = Rows(torch.zeros(1, config.A))
        tried = replace(request, texts=(blank,) * len(lens), negative_texts=(blank,) * len(negative))
        tried.check_for(config)
        config.check_request(tried)
        if request.R * config.pyramid.L * max(2 * config.raw, config.H * config.pyramid.L) > MOST_NUMBERS:
            raise InputError("schedule", config.pyramid.sides, f"makes tensors of more than {MOST_NUMBERS}", REMEDY)
        models = _networks(config, network, device)
        forced, image = values["gt_leak"], values["image"] and not teacher
        return InfinityCase(stated.id, values["sampler"], request, models, lens, negative, forced, image)


def _config_of(values: Mapping[str, Any], network: Mapping[str, Any]) -> InfinityConfig:
    D, A, ratio, sides = network["D"], network["text_channels"], network["mlp_ratio"], values["schedule"]
    if any(len(pair) != 2 for pair in (*sides, values["full_sides"])):
        raise InputError("schedule", sides, "must list pairs (h, w)", REMEDY)
    return InfinityConfig(
        ScalePyramid(sides=tuple((h, w) for h, w in sides), channels=network["dv"]), network["depth"], D, network["H"],
        network["d"], A, network["text_maxlen"], ffn=256 * max(round(ratio * D / 256), 1), pool_heads=max(A // 128, 1),
        chunks=network["block_chunks"], full=tuple(values["full_sides"]), rule=network["rope_normalized"],
        shared_adaln=network["shared_aln"], l2_norm=network["cos_attn"],
        ca_gamma=network["cross_attn_layer_scale"] >= 0, norm0_ve=network["nm0"],
        two_layer_head=network["head_depth"] == 2, levels_once=network["add_lvl_only_first_chunk"] == 1,
        # the trainer's pass rotates rightly in both (§9)
        fused=network["fused_norm"] or values["sampler"] == "teacher", rounds=values["bf16_cross_attention"],
    )  # fmt: skip


def _networks(config: InfinityConfig, network: Mapping[str, Any], device: torch.device) -> ModelPair:
    sizes = autoencoder.binary_config(
        config.C, network["vae_ch"], tuple(network["vae_mult"]), network["vae_res_blocks"]
    )
    counted = {
        "parameters": transformer.infinity_shapes(config),
        "vae_parameters": autoencoder.infinity_autoencoder_shapes(sizes),
    }
    for key, shapes in counted.items():
        check_weights(count := count_scalars(shapes))
        if network[key] != count:
            raise InputError(key, network[key], f"must be the {count} of these sizes", REMEDY)
    # weights hang on sizes alone: cases of one network share them
    plain = ScalePyramid(sides=((1, 1),), channels=config.pyramid.channels)
    same = replace(config, pyramid=plain, full=(1, 1), rule=2, fused=True, rounds=True)
    target = transformer.InfinityTransformer(config, _filled(same, float(network["scale_mul_offset"])))
    vae = InfinityAutoencoder(sizes, filled_weights(counted["vae_parameters"]))
    return ModelPair(target, target, vae, "filled").to(device)


@lru_cache(maxsize=8)
def _filled(config: InfinityConfig, offset: float) -> dict[str, Tensor]:
    weights = filled_weights(transformer.infinity_shapes(config))
    return weights | {name: w + offset for name, w in weights.items() if name.endswith("scale_mul_1H11")}


def judge_infinity(case: InfinityCase, recorded: Mapping[str, Tensor], result: CaseResult) -> None:
    """Judge a case of right form, scale by scale from the recorded bits. Effects: on `result`."""
    case = case.with_texts(recorded)
    result.request = case.request
    (_judge_teacher if case.sampler == "teacher" else _judge_sequential)(case, recorded, result)


def _judge_sequential(case: InfinityCase, recorded: Mapping[str, Tensor], result: CaseResult) -> None:
    pyramid, noise = case.config.pyramid, case.models.noise(case.request)
    ends_S2, E = _noise_ends(case), [noise.exponential(si, TOKEN, "judge") for si in pyramid]
    result.compare("noise", ends_S2, recorded["noise_ends"], LIMITS["noise"] * ends_S2, -1)
    forced_BL, bits_BL = case.forced_bits(recorded), recorded["bits"].flatten(1).long()
    request, models = case.request, case.models
    result.run = run = sample_sequential(models.target, models.vae, request, noise, forced_BL)
    result.draws, result.identical = bits_BL.numel(), int((run.tokens_BL == bits_BL).sum())
    result.free_run = torch.equal(run.tokens_BL, bits_BL)  # then a free run is this one
    logits_BLV = recorded["logits"].flatten(1, 2)
    for si in pyramid:
        span = pyramid.draws.span(si)
        drawn_Bl = draw(filter_logits(logits_BLV[:, span], *case.request.filter(si)), E[si])
        if not torch.equal(drawn_Bl, bits_BL[:, span]):
            result.defect("token", "the recorded bits are not what the recorded logits draw", si)
    if not result.free_run:
        exact = models.wide()
        wide = sample_sequential(exact.target, exact.vae, request, models.noise(request), forced_BL)
        moved_BL = torch.full(bits_BL.shape, LIMITS[case.config.rounds], device=bits_BL.device)
        ground = Ground(wide, moved_BL, moved_BL, torch.ones_like(bits_BL, dtype=torch.bool))
        drawn = RecordedCase(case.id, case.sampler, case.request, case.models)
        ground.judge_tokens(drawn, bits_BL, run, result)
    spans, allowed = list(map(pyramid.draws.span, pyramid)), LIMITS[case.config.rounds]
    made = [(run.shown.guided_BLV[:, span], logits_BLV[:, span], allowed, si) for si, span in enumerate(spans)]
    result.delta_logits = max(result.compare("logits", *each) for each in made)
    maps = {f"f_hat/{si}": run.shown.f_hat_SBCPP[si] for si in range(pyramid.S - 1)} | {"f_hat": run.f_hat_BCPP}
    named = [(name, each, recorded[name], LIMITS["map"], si) for si, (name, each) in enumerate(maps.items())]
    result.delta_f_hat = max(result.compare(*each) for each in named)
    if case.image:
        raw_B3hw, theirs_B3hw = case.codec.latent_to_raw_image(run.f_hat_BCPP), recorded["decoded_unclamped"]
        result.delta_image = result.compare("image", raw_B3hw, theirs_B3hw, LIMITS["image"], -1)
        if not torch.equal(_bytes(theirs_B3hw), recorded["image_bgr_u8"]):
            result.defect("image", "image_bgr_u8 is not decoded_unclamped, clamped, truncated, blue first")


def _noise_ends(case: InfinityCase) -> Tensor:
    """First and last number (S,2) of every scale."""
    noise = case.models.noise(case.request)
    return torch.stack([noise.exponential(si, TOKEN, "ends").flatten()[[0, -1]] for si in case.config.pyramid])


def _bytes(raw_B3hw: Tensor) -> Tensor:
    return (((raw_B3hw.clamp(-1, 1) + 1) / 2) * 255).to(torch.uint8).flip(1).permute(0, 2, 3, 1)


def _judge_teacher(case: InfinityCase, recorded: Mapping[str, Tensor], result: CaseResult) -> None:
    """Judge the trainer's path: the encoding of a latent map, and one pass over all scales."""
    pyramid, models, family = case.config.pyramid, case.models, family_of(case.models.target)
    bits_BL = recorded["bits"].flatten(1).long()
    found_BL, residual_BL = case.codec.quantizer.encode(recorded["raw"], pyramid, bits_BL)
    result.draws, result.identical = bits_BL.numel(), int((found_BL == bits_BL).sum())
    wrong_BL = (found_BL != bits_BL) & (residual_BL.abs() > LIMITS["map"])
    if bool(wrong_BL.any()):
        si = pyramid.draws.level_of(int(wrong_BL.any(0).nonzero()[0]))
        result.defect("token", f"{int(wrong_BL.sum())} recorded bits are not the signs of the residual", si)
    labels_B = torch.arange(case.request.B, device=models.device)
    rows_BLV, _, f_hats = teacher_forced(models.target, models.vae, case.request, labels_B, bits_BL, pyramid.S)
    for si in range(1, pyramid.S):
        raw_BlN = family.next_input(f_hats[si], si, pyramid)
        expected_BlN = recorded["inputs"][:, pyramid.begin(si) - 1 : pyramid.end(si) - 1]
        result.compare("inputs", raw_BlN, expected_BlN, LIMITS["map"], si)
    theirs_BLV = recorded["logits"].flatten(1, 2)
    result.delta_logits = result.compare("logits", rows_BLV, theirs_BLV, LIMITS[case.config.rounds], -1)


@torch.inference_mode()
def produce_infinity(case: InfinityCase) -> dict[str, Tensor]:
    """Run one case on texts, latent maps and forced bits that its seed draws; return what is recorded, by name."""
    pyramid, models, made = case.config.pyramid, case.models, dict[str, Tensor]()
    shape, generator = case.shapes()["bits"][1], torch.Generator().manual_seed(case.request.seed)
    for name, (dtype, sizes) in case.shapes().items():
        if name.startswith(("text", "raw", "forced/")):
            drawn = torch.randn(sizes, generator=generator)
            made[name] = (drawn if dtype == torch.float32 else drawn > 0).to(models.device, dtype)
    case = case.with_texts(made)
    labels_B = torch.arange(case.request.B, device=models.device)
    if case.sampler == "teacher":
        bits_BL, _ = case.codec.quantizer.encode(made["raw"], pyramid)
        rows_BLV, _, f_hats = teacher_forced(models.target, models.vae, case.request, labels_B, bits_BL, pyramid.S)
        step = family_of(models.target).next_input
        made["inputs"] = torch.cat([step(f_hats[si], si, pyramid) for si in range(1, pyramid.S)], 1)
    else:
        noise, empty = models.noise(case.request), {"bits": torch.zeros(shape, device=models.device)}
        forced_BL = case.forced_bits(made | empty)[:, : pyramid.draws.begin(case.forced)]
        run = sample_sequential(models.target, models.vae, case.request, noise, forced_BL)
        bits_BL, rows_BLV, made["f_hat"] = run.tokens_BL, run.shown.guided_BLV, run.f_hat_BCPP
        made["noise_ends"] = _noise_ends(case)
        made |= {f"f_hat/{si}": run.shown.f_hat_SBCPP[si] for si in range(pyramid.S - 1)}
    if case.image and case.sampler != "teacher":
        made["decoded_unclamped"] = case.codec.latent_to_raw_image(made["f_hat"])
        made["image_bgr_u8"] = _bytes(made["decoded_unclamped"])
    return made | {"bits": bits_BL.view(shape).to(torch.uint8), "logits": rows_BLV.view(*shape, 2)}


AnyStated = GoldenCase | InfinityStated
