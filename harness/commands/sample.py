"""`sdvar-harness sample`: draw images into a PNG grid, and their tokens into a safetensors file."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from harness.commands import _options as options
from harness.commands._options import DECODED, WRITTEN, Images, Networks
from harness.commands.records import Group, Option, command
from harness.errors import InputError, NonFiniteError
from harness.files import check_absent, check_folder, check_outputs

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models import ModelPair
    from harness.protocol import Request, Trace
    from harness.speculative.sampler import SpeculativeDecoder
    from harness.speculative.tools import Observer

SAMPLERS = ("sequential", "speculative")


class SampleOptions(Group, panel=WRITTEN):
    """How it is drawn, what is written, and what is watched."""

    sampler: Annotated[str, Option("sequential or speculative.", offers=SAMPLERS, panel=DECODED)] = "speculative"
    draft_len: Annotated[str, Option("Scales proposed per round: 5, 1/2/3/… or dynamic:1:5.", panel=DECODED)] = "5"
    policy: options.Policy = "coupled"
    graphs: options.Graphs = False
    compile: options.Compile = False
    out: Annotated[Path, Option("PNG file, label and seed under every image; a row a seed and batch.")] = Path(
        "sample.png"
    )
    tokens: Annotated[Path | None, Option("Also write tokens and f_hat to this safetensors file.")] = None
    trace: Annotated[int, Option("Print every round (1), step and shape (2), summary value (3).", rare=True)] = 0
    save_intermediates: Annotated[
        Path | None, Option("Folder for every named tensor: a safetensors file a round.", rare=True)
    ] = None
    profile: Annotated[bool, Option("Show calls, time and memory per component.", rare=True)] = False
    force: Annotated[bool, Option("Replace files that are there already.")] = False


@command
def sample(networks: Networks, images: Images, drawing: SampleOptions) -> None:
    """Draw images into a PNG grid, with what made them as text in the file; --force replaces one that is there."""
    import torch
    from safetensors.torch import save

    from harness.commands._inputs import load_models, requests_for
    from harness.protocol import Settings
    from harness.report import LongWork, plain_console, write_asked
    from harness.report.samples import Sample, png_grid, samples_of, show_component_cost
    from harness.speculative.sampler import build_decoder, build_sequential

    paths = check_outputs({"out": drawing.out, "tokens": drawing.tokens}, options.files_of(networks))
    folder = drawing.save_intermediates
    tensor_files = sorted(folder.glob("seed-*-round-*.safetensors")) if folder else []
    check_absent(paths | ({"save-intermediates": tensor_files[0]} if tensor_files else {}), drawing.force)
    if drawing.sampler not in SAMPLERS:
        raise InputError("sampler", drawing.sampler, "must be sequential or speculative", "pass --sampler speculative")
    observer = observer_for(drawing)
    pair = load_models(networks, networks.mode)
    pair.check_finite()
    requests = requests_for(pair, images)
    settings = Settings(drawing.draft_len, policy=drawing.policy, graphs=drawing.graphs, compiled=drawing.compile)
    decoder = build_decoder(pair, settings, observer) if drawing.sampler == "speculative" else None
    recorded = None
    if decoder is None and (drawing.graphs or drawing.compile):
        recorded = build_sequential(pair, pair.compiled(drawing.compile).target, drawing.graphs)
    rows: list[list[Sample]] = []
    tensors: dict[str, Tensor] = {}
    count = sum(request.B for request in requests)
    with LongWork("images", count, quiet=drawing.trace > 0) as work:  # rounds are printed then
        for request in requests:
            name = f"seed-{request.seed}-image-{request.image_ids[0]}"
            if observer is not None:
                observer.begin(name)
            trace = draw(pair, decoder or recorded, request)
            with torch.inference_mode():
                rows.append(samples_of(request, pair.vae.decode(trace.f_hat_BCPP)))
            tensors[f"{name}/tokens"] = trace.tokens_BL.cpu().contiguous()
            tensors[f"{name}/f_hat"] = trace.f_hat_BCPP.cpu().contiguous()
            tensors[f"{name}/labels"] = torch.tensor(request.labels)
            work.advance(request.B)
    check_absent(paths, drawing.force)  # it may have come meanwhile
    write_asked(paths, out=lambda: png_grid(rows, about_run(pair, requests, decoder)), tokens=lambda: save(tensors))
    if observer is not None and drawing.profile:
        show_component_cost(observer, plain_console())


def about_run(pair: ModelPair, requests: Sequence[Request], decoder: SpeculativeDecoder | None) -> dict[str, str]:
    """Return what made the images, as text: enough to make them again."""
    from harness.models import mode_name
    from harness.provenance import versions
    from harness.rounding import precision
    from harness.runs import weights_of

    first, sampler = requests[0], {"sampler": "sequential", "contract": "none: the reference itself"}
    if decoder is not None:
        sampler = {
            "sampler": "speculative", "contract": str(decoder.contract), "policy": decoder.options.policy.name,
            "draft_len": str(decoder.options.draft_len),
        }  # fmt: skip
    sides = (("draft", pair.draft), ("target", pair.target))
    about: dict[str, object] = {
        "Software": f"sdvar-harness {versions()['harness']}",
        "command": shlex.join(["sdvar-harness", *sys.argv[1:]]),
        "seeds": sorted({request.seed for request in requests}),
        "labels": sorted({label for request in requests for label in request.labels or ()}),
        **sampler,
        **{name: getattr(first, name) for name in ("cfg", "top_k", "top_p", "order")},
        "models": pair.title,
        "weights": weights_of(pair),
        "device": str(pair.device),
        "dtypes": {side: mode_name(network) for side, network in sides},
        "precision": precision(),
        "versions": versions(),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


def observer_for(drawing: SampleOptions) -> Observer | None:
    """Return what watches the decoder; None when everything is off. Raises `InputError` for what cannot be watched."""
    from harness.speculative.tools import ROUNDS, VALUES, Observer

    trace, folder = drawing.trace, drawing.save_intermediates
    if not ROUNDS - 1 <= trace <= VALUES:
        raise InputError("trace", trace, f"must lie in 0..{VALUES}", "pass --trace 2")
    if folder is not None:
        check_folder(folder, "save-intermediates")
    if not (trace or folder or drawing.profile):
        return None
    if drawing.sampler != "speculative":
        rule = "has no rounds: --trace, --save-intermediates and --profile watch the speculative sampler"
        raise InputError("sampler", drawing.sampler, rule, "pass --sampler speculative")
    return Observer(trace, folder.absolute() if folder else None)


def draw(models: ModelPair, decoder: SpeculativeDecoder | None, request: Request) -> Trace:
    """Draw one batch, sequentially where there is no decoder. Raises `NonFiniteError`."""
    import torch

    from harness.judge import unverified_scales
    from harness.reference.sequential import sample_sequential

    noise = models.noise(request)
    if decoder is None:
        trace = sample_sequential(models.target, models.vae, request, noise)
    else:
        trace = decoder.decode(request, noise)
    if not bool(torch.isfinite(trace.f_hat_BCPP).all()):
        raise NonFiniteError("f_hat", f"seed {request.seed}")
    if trace.intermediates is not None:
        for image, guided_LV in enumerate(trace.intermediates.guided_BLV):
            judged = set(models.pyramid) - unverified_scales(trace, image)  # the others have no target tensors
            if not all(bool(torch.isfinite(guided_LV[models.pyramid.span(si)]).all()) for si in judged):
                raise NonFiniteError("target.logits", f"seed {request.seed}")
    return trace
