"""What `sample` shows: its images as one picture, and what each component cost."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from harness.report.tables import Column, named, print_table
from harness.speculative.tools.observer import Observer

COST = (named("component"), Column("calls"), Column("time (ms)"), Column("largest result (KiB)"))


def show_cost(observer: Observer, console: Console) -> None:
    """Print calls, time and memory of every component; times exclude the components that one calls."""
    rows = [
        [component, str(cost.calls), f"{cost.seconds * 1e3:.1f}", f"{cost.bytes / 1024:.0f}"]
        for component, cost in observer.table()
    ]
    print_table(console, "cost per component", COST, rows)


def png_grid(rows: Sequence[Tensor]) -> bytes:
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
