"""`sdvar-harness sample`: draw images into a PNG grid, and their tokens into a safetensors file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console
from safetensors.torch import save
from torch import Tensor

from harness.commands.options import DrawOptions, ModelOptions, flat_options
from harness.differential import new_noise
from harness.errors import InputError
from harness.files import check_writable, write_whole
from harness.implementations import Settings, speculative
from harness.reference import sequential


@dataclass(frozen=True)
class SampleOptions:
    """Which sampler, and where its images go."""

    out: Annotated[Path, typer.Option(help="PNG file; a row a seed and batch, a column an image.")] = Path("sample.png")
    tokens: Annotated[Path | None, typer.Option(help="Also write tokens and f_hat to this safetensors file.")] = None
    sampler: Annotated[str, typer.Option(help="sequential or speculative.")] = "speculative"
    draft_len: Annotated[str, typer.Option(help="Scales proposed per round: 5, 1/2/3/… or dynamic:1:5.")] = "5"
    policy: Annotated[str, typer.Option(help="Acceptance rule: coupled, greedy, rejection, match:0.5, …")] = "coupled"


@flat_options
def sample(model: ModelOptions, draw: DrawOptions, options: SampleOptions) -> None:
    """Draw images into a PNG grid."""
    check_writable(options.out, "out")
    check_writable(options.tokens, "tokens")
    if options.sampler not in ("sequential", "speculative"):
        raise InputError("sampler", options.sampler, "must be sequential or speculative", "pass --sampler speculative")
    models = model.load()
    models.check_finite()
    requests = draw.requests(models.target.config.classes, models.target.config.V)
    decoder = speculative(models, Settings(options.draft_len, policy=options.policy))
    rows, tensors = [], {}
    for request in requests:
        noise = new_noise(models, request)
        if options.sampler == "sequential":
            trace = sequential.sample(models.target, models.vae, request, noise)
        else:
            trace = decoder.decode(request, noise)
        with torch.inference_mode():
            rows.append(models.vae.decode(trace.f_hat_BCPP))
        name = f"seed-{request.seed}-image-{request.image_ids[0]}"
        tensors[f"{name}/tokens"] = trace.tokens_BL.cpu().contiguous()
        tensors[f"{name}/f_hat"] = trace.f_hat_BCPP.cpu().contiguous()
        tensors[f"{name}/labels"] = torch.tensor(request.labels)
    write_whole(options.out, png_grid(rows))
    if options.tokens is not None:
        write_whole(options.tokens, save(tensors))
    Console().print(f"{sum(len(row) for row in rows)} images in {options.out}", highlight=False)


def png_grid(rows: list[Tensor]) -> bytes:
    """Return a PNG of images (B,3,h,w) in [0, 1], a list item a row, shorter rows padded with black."""
    _, _, h, w = rows[0].shape
    columns = max(len(row) for row in rows)
    canvas = torch.zeros(3, len(rows) * h, columns * w)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            canvas[:, r * h : (r + 1) * h, c * w : (c + 1) * w] = image.float().cpu()
    pixels = (canvas * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
