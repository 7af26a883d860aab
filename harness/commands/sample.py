"""`sdvar-harness sample`: draw images into a PNG grid, and their tokens into a safetensors file."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save
from torch import Tensor

from harness.commands import options
from harness.errors import InputError, NonFiniteError
from harness.files import check_absent, check_folder, check_outputs, write_whole
from harness.judge.decode import unverified
from harness.models.pair import ModelPair
from harness.protocol.decoder import Settings
from harness.protocol.request import Request
from harness.protocol.trace import Trace
from harness.provenance import versions
from harness.reference import sequential
from harness.report.progress import LongWork
from harness.report.samples import Sample, png_grid, samples_of, show_component_cost
from harness.report.terminal import plain_console, say
from harness.rounding.precision import precision
from harness.runs.identity import weights_of
from harness.speculative.sampler import SpeculativeDecoder, build_decoder, build_sequential
from harness.speculative.tools.observer import ROUNDS, VALUES, Observer
from harness.wording import count_of


def sample(
    models: options.Models = "digits",
    draft: options.Draft = None,
    target: options.Target = None,
    vae: options.Vae = None,
    patch_nums: options.PatchNums = "",
    draft_noise: options.DraftNoise = None,
    device: options.Device = "cpu",
    tf32: options.Tf32 = False,
    dtype: options.Dtype = "float32",
    draft_dtype: options.DraftDtype = "",
    seeds: options.Seeds = "0:4",
    labels: options.Labels = "all",
    batch: options.Batch = 0,
    cfg: options.Cfg = 1.5,
    top_k: options.TopK = 0,
    top_p: options.TopP = 0.0,
    noise: options.Noise = "image",
    out: Annotated[
        Path, typer.Option(help="PNG file, label and seed under every image; a row a seed and batch.")
    ] = Path("sample.png"),
    tokens: Annotated[Path | None, typer.Option(help="Also write tokens and f_hat to this safetensors file.")] = None,
    sampler: Annotated[str, typer.Option(help="sequential or speculative.")] = "speculative",
    draft_len: Annotated[str, typer.Option(help="Scales proposed per round: 5, 1/2/3/… or dynamic:1:5.")] = "5",
    policy: options.Policy = "coupled",
    graphs: options.Graphs = False,
    compile: options.Compile = False,
    trace: Annotated[int, typer.Option(help="Print every round (1), step and shape (2), summary value (3).")] = 0,
    save_intermediates: Annotated[
        Path | None, typer.Option(help="Folder for every named tensor: a safetensors file a round.")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show calls, time and memory per component.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
) -> None:
    """Draw images into a PNG grid, whose text says what made them; a file that is there is kept."""
    networks = options.Networks(models, draft, target, vae, patch_nums, draft_noise)
    mode = options.Mode(device, tf32, dtype, draft_dtype)
    outputs = check_outputs({"out": out, "tokens": tokens}, networks.files())
    kept = sorted(save_intermediates.glob("seed-*-round-*.safetensors")) if save_intermediates else []
    check_absent(outputs | ({"save-intermediates": kept[0]} if kept else {}), force)
    if sampler not in ("sequential", "speculative"):
        raise InputError("sampler", sampler, "must be sequential or speculative", "pass --sampler speculative")
    observer = observer_for(sampler, trace, save_intermediates, profile)
    pair = options.load_models(networks, mode)
    pair.check_finite()
    requests = options.requests_for(
        pair, options.Images(seeds, labels, batch), options.Sampling(cfg, top_k, top_p, noise)
    )
    settings = Settings(draft_len, policy=policy, graphs=graphs, compiled=compile)
    decoder = build_decoder(pair, settings, observer) if sampler == "speculative" else None
    recorded = None
    if decoder is None and (graphs or compile):
        recorded = build_sequential(pair, pair.compiled(compile).target, graphs)
    rows: list[list[Sample]] = []
    tensors: dict[str, Tensor] = {}
    with LongWork("images", sum(request.B for request in requests), quiet=trace > 0) as work:  # rounds are printed then
        for request in requests:
            name = f"seed-{request.seed}-image-{request.image_ids[0]}"
            if observer is not None:
                observer.begin(name)
            drawn = draw(pair, decoder or recorded, request)
            with torch.inference_mode():
                rows.append(samples_of(request, pair.vae.decode(drawn.f_hat_BCPP)))
            tensors[f"{name}/tokens"] = drawn.tokens_BL.cpu().contiguous()
            tensors[f"{name}/f_hat"] = drawn.f_hat_BCPP.cpu().contiguous()
            tensors[f"{name}/labels"] = torch.tensor(request.labels)
            work.advance(request.B)
    check_absent(outputs, force)  # it may have come meanwhile
    about = about_run(pair, requests, decoder)
    write_whole(outputs["out"], png_grid(rows, about))
    if "tokens" in outputs:
        write_whole(outputs["tokens"], save(tensors))
    console = plain_console()
    if observer is not None and profile:
        show_component_cost(observer, console)
    say(console, f"{count_of(sum(len(row) for row in rows), 'image')} in {out}")


def about_run(pair: ModelPair, requests: Sequence[Request], decoder: SpeculativeDecoder | None) -> dict[str, str]:
    """Return what made the images, as text: enough to make them again."""
    first = requests[0]
    drawn = {name: getattr(first, name) for name in ("cfg", "top_k", "top_p", "order")}
    dtypes = {
        side: str(network.dtype).removeprefix("torch.")
        for side, network in (("draft", pair.draft), ("target", pair.target))
    }
    sampler: dict[str, object] = {"sampler": "sequential", "contract": "none: the reference itself"}
    if decoder is not None:
        options = decoder.options
        sampler = {
            "sampler": "speculative", "contract": str(decoder.contract), "policy": options.policy.name,
            "draft_len": str(options.draft_len),
        }  # fmt: skip
    told = {
        "Software": f"sdvar-harness {versions()['harness']}",
        "command": shlex.join(["sdvar-harness", *sys.argv[1:]]),
        "seeds": sorted({request.seed for request in requests}),
        "labels": sorted({label for request in requests for label in request.labels or ()}),
        **sampler,
        **drawn,
        "models": pair.title,
        "weights": weights_of(pair),
        "device": str(pair.device),
        "dtypes": dtypes,
        "precision": precision(),
        "versions": versions(),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}


def observer_for(sampler: str, trace: int, folder: Path | None, profile: bool) -> Observer | None:
    """Return what watches the decoder; None when everything is off.

    Raises:
        InputError: a level or folder that cannot be, or another sampler than the speculative one.
    """
    if not ROUNDS - 1 <= trace <= VALUES:
        raise InputError("trace", trace, f"must lie in 0..{VALUES}", "pass --trace 2")
    check_folder(folder, "save-intermediates")
    if not (trace or folder or profile):
        return None
    if sampler != "speculative":
        rule = "has no rounds: --trace, --save-intermediates and --profile watch the speculative sampler"
        raise InputError("sampler", sampler, rule, "pass --sampler speculative")
    return Observer(trace, folder.absolute() if folder else None)


def draw(models: ModelPair, decoder: SpeculativeDecoder | None, request: Request) -> Trace:
    """Draw one batch, sequentially where there is no decoder. Raises `NonFiniteError`."""
    noise = models.noise(request)
    if decoder is None:
        trace = sequential.sample(models.target, models.vae, request, noise)
    else:
        trace = decoder.decode(request, noise)
    if not bool(torch.isfinite(trace.f_hat_BCPP).all()):
        raise NonFiniteError("f_hat", f"seed {request.seed}")
    if trace.intermediates is not None:
        for image, guided_LV in enumerate(trace.intermediates.guided_BLV):
            judged = set(models.pyramid) - unverified(trace, image)  # the others have no target tensors
            if not all(bool(torch.isfinite(guided_LV[models.pyramid.span(si)]).all()) for si in judged):
                raise NonFiniteError("target.logits", f"seed {request.seed}")
    return trace
