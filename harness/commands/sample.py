"""`sdvar-harness sample`: draw images into a PNG grid, and their tokens into a safetensors file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from harness.commands.options import DrawOptions, ModelOptions, flat_options
from harness.errors import InputError, NonFiniteError
from harness.files import check_distinct, check_folder, check_writable, write_whole
from harness.protocol.decoder import Settings
from harness.reference import sequential
from harness.report.terminal import plain_console
from harness.speculative.build import build_decoder
from harness.speculative.policies import HELP
from harness.speculative.tools.observer import ROUNDS, VALUES, Observer


@dataclass(frozen=True)
class SampleOptions:
    """Which sampler, and where its images go."""

    out: Annotated[Path, typer.Option(help="PNG file; a row a seed and batch, a column an image.")] = Path("sample.png")
    tokens: Annotated[Path | None, typer.Option(help="Also write tokens and f_hat to this safetensors file.")] = None
    sampler: Annotated[str, typer.Option(help="sequential or speculative.")] = "speculative"
    draft_len: Annotated[str, typer.Option(help="Scales proposed per round: 5, 1/2/3/… or dynamic:1:5.")] = "5"
    policy: Annotated[str, typer.Option(help=HELP)] = "coupled"


@dataclass(frozen=True)
class DebugOptions:
    """What to see of the speculative sampler at work."""

    trace: Annotated[int, typer.Option(help="Print every round (1), step and shape (2), summary value (3).")] = 0
    save_intermediates: Annotated[
        Path | None, typer.Option(help="Folder for every named tensor: a safetensors file a round.")
    ] = None
    profile: Annotated[bool, typer.Option("--profile", help="Show calls, time and memory per component.")] = False

    def observer(self, sampler: str) -> Observer | None:
        """Return what watches the decoder; None when everything is off.

        Raises:
            InputError: a level or folder that cannot be, or another sampler than the speculative one.
        """
        if not ROUNDS - 1 <= self.trace <= VALUES:
            raise InputError("trace", self.trace, f"must lie in 0..{VALUES}", "pass --trace 2")
        check_folder(self.save_intermediates, "save-intermediates")
        if not (self.trace or self.save_intermediates or self.profile):
            return None
        if sampler != "speculative":
            rule = "has no rounds: --trace, --save-intermediates and --profile watch the speculative sampler"
            raise InputError("sampler", sampler, rule, "pass --sampler speculative")
        return Observer(self.trace, self.save_intermediates)


@flat_options
def sample(model: ModelOptions, draw: DrawOptions, options: SampleOptions, debug: DebugOptions) -> None:
    """Draw images into a PNG grid."""
    check_writable(options.out, "out")
    check_writable(options.tokens, "tokens")
    check_distinct({"out": options.out, "tokens": options.tokens}, model.files())
    if options.sampler not in ("sequential", "speculative"):
        raise InputError("sampler", options.sampler, "must be sequential or speculative", "pass --sampler speculative")
    observer = debug.observer(options.sampler)
    models = model.load()
    models.check_finite()
    requests = draw.requests(models.target.config.classes, models.target.config.V)
    decoder = build_decoder(models, Settings(options.draft_len, policy=options.policy), observer)
    rows, tensors = [], {}
    for request in requests:
        noise = models.noise(request)
        name = f"seed-{request.seed}-image-{request.image_ids[0]}"
        if observer is not None:
            observer.begin(name)
        if options.sampler == "sequential":
            trace = sequential.sample(models.target, models.vae, request, noise)
        else:
            trace = decoder.decode(request, noise)
        if not bool(torch.isfinite(trace.f_hat_BCPP).all()):
            raise NonFiniteError("f_hat", f"seed {request.seed}")
        if trace.intermediates is not None and not bool(torch.isfinite(trace.intermediates.guided_BLV).all()):
            raise NonFiniteError("target.logits", f"seed {request.seed}")
        with torch.inference_mode():
            rows.append(models.vae.decode(trace.f_hat_BCPP))
        tensors[f"{name}/tokens"] = trace.tokens_BL.cpu().contiguous()
        tensors[f"{name}/f_hat"] = trace.f_hat_BCPP.cpu().contiguous()
        tensors[f"{name}/labels"] = torch.tensor(request.labels)
    write_whole(options.out, png_grid(rows))
    if options.tokens is not None:
        write_whole(options.tokens, save(tensors))
    if observer is not None and debug.profile:
        plain_console().print(cost_table(observer))
    Console().print(f"{sum(len(row) for row in rows)} images in {options.out}", highlight=False)


def cost_table(observer: Observer) -> Table:
    """Return calls, time and memory of every component; times exclude the components that one calls."""
    table = Table(title="cost per component", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("component", no_wrap=True)
    for header in ("calls", "ms", "largest result, KiB"):
        table.add_column(header, justify="right")
    for component, cost in observer.table():
        table.add_row(component, str(cost.calls), f"{cost.seconds * 1e3:.1f}", f"{cost.bytes / 1024:.0f}")
    return table


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
