"""What `sample` shows: its images as one picture, and what each component cost."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from torch import Tensor

from harness.protocol import Request
from harness.report._tables import Column, name_column, print_table
from harness.speculative.tools import Observer

LEAST_SIDE = 128  # pixels of a shown image
MOST_COLUMNS = 16
GAP, LINE = 8, 13  # pixels between images, and of a line of text
PAPER, INK = (250, 250, 250), (20, 20, 20)
COST = (name_column("component"), Column("calls"), Column("time (ms)"), Column("largest result (KiB)"))


def show_component_cost(observer: Observer, console: Console) -> None:
    """Print calls, time and memory of every component; times exclude the components that one calls."""
    rows = [
        [component, str(cost.calls), f"{cost.seconds * 1e3:.1f}", f"{cost.bytes / 1024:.0f}"]
        for component, cost in observer.table()
    ]
    print_table(console, "cost per component", COST, rows)


@dataclass(frozen=True)
class Sample:
    """One image and what is written under it."""

    image_3hw: Tensor  # in [0, 1], float
    label: int  # its class
    seed: int  # of its numbers
    address: int = -1  # of its numbers, where a label stands twice under one seed; else -1

    @property
    def caption(self) -> list[str]:
        """The lines under it."""
        return [f"label {self.label}", f"seed {self.seed}", *([f"image {self.address}"] * (self.address >= 0))]


def samples_of(request: Request, images_B3hw: Tensor) -> list[Sample]:
    """Return the images of a batch with what they are."""
    assert request.labels is not None and request.seed is not None
    addresses = request.image_ids if len(set(request.labels)) < request.B else (-1,) * request.B
    images = images_B3hw.detach().float().cpu()
    return [Sample(*each) for each in zip(images, request.labels, (request.seed,) * request.B, addresses, strict=True)]


def png_grid(rows: Sequence[Sequence[Sample]], about: Mapping[str, str]) -> bytes:
    """Return a PNG of captioned images, a list item a row, rows of more than `MOST_COLUMNS` broken.

    Small images are enlarged, every pixel into a square of equal ones. `about` and the pictures' captions, in order,
    are kept as the PNG's text (iTXt).
    """
    rows = [row[k : k + MOST_COLUMNS] for row in rows for k in range(0, len(row), MOST_COLUMNS)]
    _, h, w = rows[0][0].image_3hw.shape
    factor, font = max(1, math.ceil(LEAST_SIDE / min(h, w))), ImageFont.load_default()
    lines = max(len(picture.caption) for row in rows for picture in row)
    widest = max(font.getlength(line) for row in rows for picture in row for line in picture.caption)
    wide, high = max(w * factor, math.ceil(widest)) + GAP, h * factor + lines * LINE + GAP
    canvas = Image.new("RGB", (max(map(len, rows)) * wide + GAP, len(rows) * high + GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            x, y = GAP + c * wide, GAP + r * high
            pixels_hw3 = (picture.image_3hw.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
            image = Image.fromarray(pixels_hw3.contiguous().numpy())
            canvas.paste(image.resize((w * factor, h * factor), Image.Resampling.NEAREST), (x, y))
            for k, line in enumerate(picture.caption):
                pen.text((x, y + h * factor + 1 + k * LINE), line, INK, font)
    text = PngInfo()
    named = [", ".join(picture.caption) for row in rows for picture in row]
    for key, value in {**about, "pictures": "; ".join(named)}.items():
        text.add_itxt(key, value)
    stream = io.BytesIO()
    canvas.save(stream, "PNG", pnginfo=text)
    return stream.getvalue()
