"""Write this project's golden of Infinity, tests/regression/golden-infinity-cpu.safetensors, in the recordings' format.

    python scripts/infinity_goldens.py "why it changes"

Promise: nothing is written without a reason, in CI, or on a dirty tree; the networks are small, and filled by the
recordings' formula; every case is a free run of the plain sampler, and `golden check` judges it as it does recordings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.golden import _infinity
from harness.golden._infinity import FORMAT, InfinityCase, InfinityStated, parse_infinity
from harness.golden._record import CODE, git_says, refuse
from harness.golden._store import content_digest
from harness.models.infinity.autoencoder import binary_config, from_map, infinity_autoencoder_shapes
from harness.models.infinity.transformer import infinity_shapes
from harness.models.var.sizes import count_scalars
from harness.protocol.noise import TOKEN
from harness.provenance import versions
from harness.reference import family_of, teacher_forced
from harness.reference.sequential import sample_sequential

GOLDEN = Path(__file__).parents[1] / "tests" / "regression" / "golden-infinity-cpu.safetensors"
PLAIN: dict[str, Any] = {
    "D": 32, "H": 2, "depth": 3, "block_chunks": 3, "mlp_ratio": 4.0, "d": 4, "dv": 4, "text_channels": 128,
    "text_maxlen": 6, "shared_aln": True, "cross_attn_layer_scale": -1.0, "nm0": False, "cos_attn": True,
    "head_depth": 1, "head_aln": True, "fused_norm": True, "rms_norm": False, "swiglu": False,
    "add_lvl_only_first_chunk": 1, "rope_normalized": 2, "patchify": 0, "scale_mul_offset": 0.0, "vae_ch": 32,
    "vae_mult": [1, 2], "vae_res_blocks": 1,
}  # fmt: skip
NETWORKS = {
    "plain": PLAIN,
    "patchify": PLAIN | {"dv": 16, "patchify": 1},
    "others": PLAIN
    | {"shared_aln": False, "cross_attn_layer_scale": 0.1, "nm0": True, "cos_attn": False, "head_depth": 2,
       "add_lvl_only_first_chunk": 0, "rope_normalized": 1},
    "unfused": PLAIN | {"fused_norm": False, "rope_normalized": 0},
}  # fmt: skip
CASE: dict[str, Any] = {
    "sampler": "sequential", "network": "plain", "schedule": [[1, 1], [2, 1], [3, 4], [4, 3]], "full_sides": [8, 6],
    "B": 1, "text_lens": [3], "negative_lens": None, "seed": 1, "cfg": [2.0, 1.0, 3.0, 2.0], "tau": [1, 0.5, 1, 0.7],
    "top_k": 0, "top_p": 0.0, "cfg_insertion_layer": [0], "gt_leak": 0, "bf16_cross_attention": False, "image": False,
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"id": "plain", "image": True},
    {"id": "rounds", "bf16_cross_attention": True, "seed": 2},
    {"id": "hidden", "cfg_insertion_layer": [0, -2], "top_k": 900, "top_p": 0.9, "seed": 3},
    {"id": "negative", "B": 2, "text_lens": [2, 6], "negative_lens": [4, 1], "seed": 4},
    {"id": "forced", "network": "patchify", "gt_leak": 2, "seed": 5},
    {"id": "unguided", "network": "patchify", "cfg": [1.0] * 4, "top_k": 1, "seed": 6},
    {"id": "others", "network": "others", "cfg_insertion_layer": [-1], "seed": 7},
    {"id": "unfused", "network": "unfused", "seed": 8},
    {"id": "teacher", "sampler": "teacher", "network": "patchify", "seed": None},
]


def recording(device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of the golden, made by the code of today."""
    networks = {name: _counted(network) for name, network in NETWORKS.items()}
    stated = [InfinityStated(case["id"], CASE | case, networks[(CASE | case)["network"]]) for case in CASES]
    tensors = {}
    for each in stated:
        case = parse_infinity(each, device)
        tensors |= {f"{case.id}/{name}": t.cpu().contiguous().clone() for name, t in _made(case).items()}
    cases = json.dumps([each.as_values() for each in stated])
    return tensors, {"format": FORMAT, "device": device.type, "networks": json.dumps(networks), "cases": cases}


def _counted(network: dict[str, Any]) -> dict[str, Any]:
    """Add the numbers of parameters, which readers check."""
    config = _infinity._config_of(CASE, network)
    sizes = binary_config(config.C, network["vae_ch"], tuple(network["vae_mult"]), network["vae_res_blocks"])
    counts = count_scalars(infinity_shapes(config)), count_scalars(infinity_autoencoder_shapes(sizes))
    return network | {"parameters": counts[0], "vae_parameters": counts[1]}


@torch.inference_mode()
def _made(case: InfinityCase) -> dict[str, Tensor]:
    config, models, generator = case.config, case.models, torch.Generator().manual_seed(case.request.seed)
    pyramid, (B, L, N) = config.pyramid, case.shapes()["bits"][1]
    made = {
        name: torch.randn(shape, generator=generator)
        for name, (_, shape) in case.shapes().items()
        if name in ("text", "text_negative", "raw")
    }
    for name, (_, shape) in case.shapes().items():
        if name.startswith("forced/"):
            made[name] = torch.randint(2, shape, generator=generator, dtype=torch.uint8)
    case = case.with_texts(made)
    if case.sampler == "teacher":
        bits_BL, _ = case.codec.quantizer.encode(made["raw"], pyramid)
        rows_BLV, _, f_hats = teacher_forced(
            models.target, models.vae, case.request, torch.arange(B), bits_BL, pyramid.S
        )
        step = family_of(models.target).next_input
        inputs = [step(f_hats[si], si, pyramid) for si in range(1, pyramid.S)]
        made |= {"inputs": torch.cat(inputs, 1), "logits": rows_BLV.view(B, L, N, 2)}
        return made | {"bits": bits_BL.view(B, L, N).to(torch.uint8)}
    noise = models.noise(case.request)
    forced = [from_map(made[f"forced/{si}"].permute(0, 3, 1, 2), config.patch).long() for si in range(case.forced)]
    forced_Bn = torch.cat(forced, 1) if forced else None
    run = sample_sequential(models.target, models.vae, case.request, noise, forced_Bn)
    E = [noise.exponential(si, TOKEN, "golden").flatten() for si in pyramid]
    made |= {"noise_ends": torch.stack([each[[0, -1]] for each in E]), "f_hat": run.f_hat_BCPP}
    made |= {f"f_hat/{si}": run.shown.f_hat_SBCPP[si] for si in range(pyramid.S - 1)}
    if case.image:
        made["decoded_unclamped"] = raw = case.codec.latent_to_raw_image(run.f_hat_BCPP)
        levels = ((raw.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
        made["image_bgr_u8"] = levels[:, [2, 1, 0]].permute(0, 2, 3, 1)
    made["logits"] = run.shown.guided_BLV.view(B, L, N, 2)
    return made | {"bits": run.tokens_BL.view(B, L, N).to(torch.uint8)}


def main(reason: str) -> None:
    """Write the file. Raises `InputError` where it must not be written."""
    refuse(reason, GOLDEN.parent, CODE)
    torch.set_num_threads(1)
    tensors, metadata = recording(torch.device("cpu"))
    digest = content_digest(tensors, metadata["networks"] + metadata["cases"])
    provenance = {"reason": reason, "commit": git_says(CODE, "rev-parse", "HEAD"), "versions": json.dumps(versions())}
    save_file(tensors, GOLDEN, metadata | provenance | {"digest": digest})


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
