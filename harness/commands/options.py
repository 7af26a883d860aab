"""Options that several commands share, as frozen records.

Promise: a record turns into checked objects or one `InputError`; an option is spelled, explained and parsed here only.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer

from harness.errors import InputError
from harness.files import check_distinct, check_writable
from harness.models.pair import ModelPair, load_digits, load_pair, random_pair
from harness.protocol.request import Request
from harness.rounding.precision import set_precision

MOST_NUMBERS = 10**6
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def flat_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take frozen records of options where typer wants one parameter an option.

    Args:
        command: a function whose parameters are annotated with dataclasses of ``Annotated`` options.

    Returns:
        A function with the records' fields as its signature, in order.
    """
    records = {name: hint for name, hint in get_type_hints(command).items() if name != "return"}
    parameters, annotations = [], {}
    for record in records.values():
        hints = get_type_hints(record, include_extras=True)
        for field in fields(record):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name]))
            annotations[field.name] = hints[field.name]

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        command(
            **{
                name: record(**{field.name: values[field.name] for field in fields(record)})
                for name, record in records.items()
            }
        )

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = annotations
    return flat


def integers(name: str, text: str, example: str) -> tuple[int, ...]:
    """Parse ``0,3,5`` or a half-open range ``0:4``.

    Raises:
        InputError: another form, or nothing named.
    """
    try:
        if ":" in text:
            begin, _, end = text.partition(":")
            numbers = range(int(begin), int(end))
            if len(numbers) > MOST_NUMBERS:
                raise InputError(name, text, f"names more than {MOST_NUMBERS} numbers", f"pass --{name} {example}")
            found = tuple(numbers)
        else:
            found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(name, text, "must read 0,3,5 or 0:4", f"pass --{name.replace('_', '-')} {example}") from None
    if not found:
        raise InputError(name, text, "names nothing", f"pass --{name.replace('_', '-')} {example}")
    return found


@dataclass(frozen=True)
class ModelOptions:
    """Which networks, where, in which precision."""

    models: Annotated[
        str,
        typer.Option(help="digits, or sizes with random weights: d16-d30.", show_default=True),
    ] = "digits"
    draft: Annotated[Path | None, typer.Option(help="Draft checkpoint (.pth or .safetensors).")] = None
    target: Annotated[Path | None, typer.Option(help="Target checkpoint.")] = None
    vae: Annotated[Path | None, typer.Option(help="VQ-VAE checkpoint.")] = None
    patch_nums: Annotated[str, typer.Option(help="Sides of the scales, where the checkpoint does not tell.")] = ""
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu"
    tf32: Annotated[bool, typer.Option("--tf32", help="Allow TF32 on CUDA; off, float32 is float32.")] = False
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32"
    draft_dtype: Annotated[
        str, typer.Option(help="The draft's own, where speed counts: a draft may round as it likes. [default: dtype]")
    ] = ""

    def load(self) -> ModelPair:
        """Load the networks onto the device, and set what may make it inexact. Effects: `set_precision`.

        Raises:
            InputError: an unknown name, a file missing of the three, a device that is not there, a bad checkpoint.
        """
        device, dtype = self.find_device(), self._dtype("dtype", self.dtype)
        draft_dtype = self._dtype("draft_dtype", self.draft_dtype or self.dtype)
        set_precision(self.tf32)
        files = self.files()
        given = {name: path for name, path in files.items() if path is not None}
        if given and self.models != "digits":
            rule = "is one choice of networks, three checkpoint files are another"
            raise InputError("models", self.models, rule, "drop one of them")
        if not given:
            if self.patch_nums:
                rule = "says what a checkpoint file does not tell"
                raise InputError("patch_nums", self.patch_nums, rule, "drop it, or pass --draft, --target and --vae")
            pair = load_digits() if self.models == "digits" else random_pair(self.models, device)
            return pair.to(device, dtype, draft_dtype)
        for name in files.keys() - given.keys():
            raise InputError(name, None, "own checkpoints come as three files", f"pass --{name} FILE")
        sides = integers("patch_nums", self.patch_nums, "1,2,3,4") if self.patch_nums else None
        return load_pair(given["draft"], given["target"], given["vae"], "custom", sides).to(device, dtype, draft_dtype)

    @staticmethod
    def _dtype(name: str, text: str) -> torch.dtype:
        if text not in DTYPES:
            remedy = f"pass --{name.replace('_', '-')} float32"
            raise InputError(name, text, f"must be one of {', '.join(DTYPES)}", remedy)
        return DTYPES[text]

    def files(self) -> dict[str, Path | None]:
        """Return the files that are read, by option."""
        return {"draft": self.draft, "target": self.target, "vae": self.vae}

    def find_device(self) -> torch.device:
        """Return the device. Raises `InputError` for one that is not there."""
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise InputError("device", self.device, "is not a device", "pass --device cpu") from None
        if device.type not in ("cpu", "cuda"):
            raise InputError("device", self.device, "must be cpu or cuda", "pass --device cpu")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise InputError("device", self.device, f"is not there ({found} CUDA devices found)", "pass --device cpu")
        return device


@dataclass(frozen=True)
class DrawOptions:
    """What to draw."""

    seeds: Annotated[str, typer.Option(help="Seeds: 0,3 or the range 0:4.")] = "0:4"
    labels: Annotated[str, typer.Option(help="Classes: 0,1 or a range 0:4 or all.")] = "all"
    batch: Annotated[int, typer.Option(help="Images per batch; 0 = all labels of a seed together.")] = 0
    cfg: Annotated[float, typer.Option(help="Guidance value; 0 = off.")] = 1.5
    top_k: Annotated[int, typer.Option(help="Keep the k most likely tokens; 0 = off.")] = 0
    top_p: Annotated[float, typer.Option(help="Keep this much probability; 0 = off.")] = 0.0
    noise: Annotated[str, typer.Option(help="image: a stream per image; batch: the published order.")] = "image"

    def requests(self, classes: int, V: int) -> list[Request]:
        """Return the batches: every seed with every label.

        Raises:
            InputError: anything out of range, or an empty seed range.
        """
        seeds = integers("seeds", self.seeds, "0:4")
        labels = tuple(range(classes)) if self.labels == "all" else integers("labels", self.labels, "0,1")
        if self.batch < 0:
            raise InputError("batch", self.batch, "must be 0 or more", "pass --batch 0 for all labels together")
        size = self.batch or len(labels)
        requests = [
            Request(
                labels[begin : begin + size],
                seed,
                self.cfg,
                self.top_k,
                self.top_p,
                order=self.noise,  # type: ignore[arg-type]  # checked by Request
                images=tuple(range(begin, min(begin + size, len(labels)))),
            )
            for seed in seeds
            for begin in range(0, len(labels), size)
        ]
        for request in requests:
            request.check_against(classes, V)
        return requests


@dataclass(frozen=True)
class ReportOptions:
    """How much to say, and where."""

    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict only.")] = False

    def check(self, **inputs: Path | None) -> None:
        """Refuse an output path that cannot be written, or is one of the inputs. Raises `InputError`."""
        check_writable(self.json, "json")
        check_distinct({"json": self.json}, inputs)
