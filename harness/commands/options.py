"""Options that several commands share: how each is spelled and explained, and the records that they become.

Promise: a record turns into checked objects or one `InputError`; a shared option is spelled, explained and parsed here
only. A command gathers its options into records at once, since typer wants a parameter an option.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from harness.adapters.factories import PREFIX, default_settings
from harness.commands.listed import integers
from harness.decoders.factory import DEFAULT, named_options
from harness.errors import InputError
from harness.models.pair import CLOSE, ModelPair, close_pair, load_digits, load_pair, random_pair
from harness.protocol.decoder import Settings
from harness.protocol.request import NoiseOrder, Request
from harness.rounding.precision import set_precision
from harness.runs.batches import BatchSize, cut, default_batch
from harness.speculative.policies import HELP

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

# Which networks.
Models = Annotated[
    str, typer.Option(help="digits, digits-close, or sizes with random weights: d16-d30.", show_default=True)
]
DraftNoise = Annotated[
    float | None,
    typer.Option(help=f"Draft with the target, its weights moved by so much of their size; digits-close is {CLOSE:g}."),
]
Draft = Annotated[Path | None, typer.Option(help="Draft checkpoint (.pth or .safetensors).")]
Target = Annotated[Path | None, typer.Option(help="Target checkpoint.")]
Vae = Annotated[Path | None, typer.Option(help="VQ-VAE checkpoint.")]
PatchNums = Annotated[str, typer.Option(help="Sides of the scales, where the checkpoint does not tell.")]
# Where they run, and in which precision.
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Tf32 = Annotated[bool, typer.Option("--tf32", help="Allow TF32 on CUDA; off, float32 is float32.")]
Dtype = Annotated[str, typer.Option(help="float32, float64 or bfloat16.")]
DraftDtype = Annotated[
    str, typer.Option(help="The draft's own, where speed counts: a draft may round as it likes. [default: dtype]")
]
# What is drawn, and how it is filtered.
Seeds = Annotated[str, typer.Option(help="Seeds: 0,3 or the range 0:4.")]
Labels = Annotated[str, typer.Option(help="Classes: 0,1 or a range 0:4 or all.")]
Batch = Annotated[int, typer.Option(help="Images per batch; 0 = all labels of a seed together.")]
Addresses = Annotated[
    str, typer.Option(help="Address of every label's image, which its numbers depend on: 0,5 or 0:4.")
]
Cfg = Annotated[float, typer.Option(help="Guidance value; 0 = off.")]
TopK = Annotated[int, typer.Option(help="Keep the k most likely tokens; 0 = off.")]
TopP = Annotated[float, typer.Option(help="Keep this much probability; 0 = off.")]
Noise = Annotated[str, typer.Option(help="image: a stream per image; batch: the published order.")]
# How the decoder speculates.
Policy = Annotated[str, typer.Option(help=HELP)]
Graphs = Annotated[bool, typer.Option("--graphs", help="Record and replay device work as CUDA graphs.")]
Compile = Annotated[bool, typer.Option("--compile", help="Run the networks' blocks through PyTorch's compiler.")]
# The decoder under test.
ImplementationName = Annotated[
    str, typer.Option("--implementation", help="Decoder under test: package.module:factory, or published:var, code, …")
]
Checkout = Annotated[Path | None, typer.Option(help="Folder of published code: holds the packages models and dist.")]
Own = Annotated[list[str] | None, typer.Option("--option", help="NAME=VALUE for the decoder's factory; several times.")]
# Who does it.
Workers = Annotated[int, typer.Option(help="Processes; 0 = one a GPU of --device cuda, else one.")]
Cluster = Annotated[str, typer.Option(help="Address of a Dask scheduler whose workers do it (docs/runs.md).")]
# How much is said, and where.
Json = Annotated[Path | None, typer.Option(help="Write the result to this file.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show a row for everything that passed, too.")]
Html = Annotated[
    Path | None, typer.Option(help="Write a page for people to this file: one HTML file, complete in itself.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the verdict only, and nothing that a decoder prints.")]


@dataclass(frozen=True)
class Networks:
    """Which networks: by name, or three checkpoint files; with another draft where `draft_noise` is given."""

    models: str
    draft: Path | None
    target: Path | None
    vae: Path | None
    patch_nums: str
    draft_noise: float | None = None

    def files(self) -> dict[str, Path | None]:
        """Return the files that are read, by option."""
        return {"draft": self.draft, "target": self.target, "vae": self.vae}


@dataclass(frozen=True)
class Mode:
    """Where the networks run, and in which precision."""

    device: str
    tf32: bool
    dtype: str
    draft_dtype: str


def load_models(networks: Networks, mode: Mode) -> ModelPair:
    """Load the networks onto the device, and set what may make it inexact. Effects: `set_precision`.

    Raises:
        InputError: an unknown name, a file missing of the three, a device that is not there, a bad checkpoint.
    """
    where = find_device(mode.device), find_dtype("dtype", mode.dtype)
    draft_dtype = find_dtype("draft_dtype", mode.draft_dtype or mode.dtype)
    set_precision(mode.tf32)
    files = networks.files()
    given = {name: path for name, path in files.items() if path is not None}
    if given and networks.models != "digits":
        rule = "is one choice of networks, three checkpoint files are another"
        raise InputError("models", networks.models, rule, "drop one of them")
    if not given:
        if networks.patch_nums:
            rule = "says what a checkpoint file does not tell"
            remedy = "drop it, or pass --draft, --target and --vae"
            raise InputError("patch_nums", networks.patch_nums, rule, remedy)
        digits = networks.models in ("digits", "digits-close")
        pair = load_digits() if digits else random_pair(networks.models, where[0])
        noise = CLOSE if networks.models == "digits-close" else None
        return _with_draft(pair, networks.draft_noise, noise).to(*where, draft_dtype)
    for name in files.keys() - given.keys():
        raise InputError(name, None, "own checkpoints come as three files", f"pass --{name} FILE")
    sides = integers("patch_nums", networks.patch_nums, "1,2,3,4") if networks.patch_nums else None
    pair = load_pair(given["draft"], given["target"], given["vae"], "custom", sides)
    return _with_draft(pair, networks.draft_noise, None).to(*where, draft_dtype)


def _with_draft(pair: ModelPair, asked: float | None, default: float | None) -> ModelPair:
    """Return the pair with the close draft that is asked for, or its own. Raises `InputError` as `close_pair`."""
    noise = default if asked is None else asked
    return pair if noise is None else close_pair(pair, noise)


def find_device(text: str) -> torch.device:
    """Return the device. Raises `InputError` for one that is not there."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise InputError("device", text, "is not a device", "pass --device cpu") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError("device", text, "must be cpu or cuda", "pass --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InputError("device", text, f"is not there ({found} CUDA devices found)", "pass --device cpu")
    return device


def find_dtype(name: str, text: str, known: Mapping[str, torch.dtype] = DTYPES) -> torch.dtype:
    """Return the dtype that an option names. Raises `InputError` for one that is not `known`."""
    if text not in known:
        remedy = f"pass --{name.replace('_', '-')} float32"
        raise InputError(name, text, f"must be one of {', '.join(known)}", remedy)
    return known[text]


@dataclass(frozen=True)
class Decoder:
    """The decoder under test as it is asked for.

    Args:
        name: of its factory.
        options: (name, value) for the factory, the checkout among them.
        contract: demanded of the harness's own decoder, whose policy must keep it; else empty.
    """

    name: str
    options: tuple[tuple[str, str], ...]
    contract: str = ""

    @property
    def published(self) -> bool:
        """Tell whether it is published code."""
        return self.name.startswith(f"{PREFIX}:")

    def settings(self) -> list[Settings]:
        """Return the settings where no draft_len is asked for: both roles of CoDe's two models."""
        return default_settings(self.name.partition(":")[2], self.options)


def decoder(name: str, checkout: Path | None, given: list[str] | None, contract: str = "") -> Decoder:
    """Return the decoder that the options name. Raises `InputError` for an option of another form."""
    found = named_options(checkout, given or ())
    if name == DEFAULT and found:
        rule = "the harness's own decoder takes --policy, --draft-len and --bonus"
        raise InputError("option", found[0][0], rule, "drop it, or pass --implementation package.module:factory")
    return Decoder(name, found, contract if name == DEFAULT else "")


def with_speed(settings: list[Settings], own: Decoder, graphs: bool, compiled: bool) -> list[Settings]:
    """Return the settings with recorded and compiled work. Raises `InputError` for a decoder of somebody else's."""
    if own.name != DEFAULT and (graphs or compiled):
        rule = "is how the harness's own decoder works"
        raise InputError("graphs" if graphs else "compile", True, rule, "drop it; yours takes --option NAME=VALUE")
    return [replace(setting, graphs=graphs, compiled=compiled) for setting in settings]


@dataclass(frozen=True)
class Images:
    """What to draw: every seed with every label, in batches."""

    seeds: str
    labels: str
    batch: int
    addresses: str = ""


@dataclass(frozen=True)
class Sampling:
    """How to draw it."""

    cfg: float
    top_k: int
    top_p: float
    noise: str


def requests_for(models: ModelPair, images: Images, sampling: Sampling) -> list[Request]:
    """Return the batches of every seed: all its labels together, or `batch` at a time.

    Raises:
        InputError: anything out of range, or an empty seed range.
    """
    seeds, whole = _drawn(models, images, sampling)
    assert whole.labels is not None
    step = images.batch or whole.B
    spans = [slice(begin, begin + step) for begin in range(0, whole.B, step)]
    return [
        replace(whole, labels=whole.labels[span], images=whole.image_ids[span], seed=seed)
        for seed in seeds
        for span in spans
    ]


def batches_for(models: ModelPair, images: Images, sampling: Sampling, apart: bool) -> tuple[list[Request], str]:
    """Return the batches of all seeds, which they mix, and why they are that large.

    In the published order a batch is what its seed draws: there the batches are those of `requests_for`.

    Args:
        models: on their device.
        images: what to draw.
        sampling: how.
        apart: the decoder under test has a process of its own.

    Raises:
        InputError: anything out of range, or an empty seed range.
    """
    if sampling.noise == "batch":
        return requests_for(models, images, sampling), "the published order draws for whole batches"
    seeds, whole = _drawn(models, images, sampling)
    size = BatchSize(images.batch, "as asked for") if images.batch else default_batch(models, apart)
    return cut(whole, seeds, size.images), size.why


def _drawn(models: ModelPair, images: Images, sampling: Sampling) -> tuple[tuple[int, ...], Request]:
    """Return the seeds, and the request for every label under one of them. Raises `InputError`."""
    seeds, classes = integers("seeds", images.seeds, "0:4"), models.target.config.classes
    labels = tuple(range(classes)) if images.labels == "all" else integers("labels", images.labels, "0,1")
    ids = integers("images", images.addresses, "0,5") if images.addresses else tuple(range(len(labels)))
    if images.batch < 0:
        raise InputError("batch", images.batch, "must be 0 or more", "pass --batch 0 for the usual one")
    if min(ids) < 0:
        raise InputError("images", images.addresses, "must all be 0 or more", "drop it")
    order: NoiseOrder = sampling.noise  # type: ignore[assignment]  # checked by Request
    request = Request(labels, 0, sampling.cfg, sampling.top_k, sampling.top_p, order=order, images=ids)
    request.check_against(classes, models.target.config.V)
    for seed in (min(seeds), max(seeds)):
        replace(request, seed=seed)
    return seeds, request


def check_drawing(path: Path | None) -> None:
    """Refuse a picture where nothing draws one. Raises `InputError`."""
    if path is not None and importlib.util.find_spec("matplotlib") is None:
        rule = "is drawn by matplotlib, which is not installed"
        raise InputError("picture", str(path), rule, 'pip install "sdvar-harness[report]"')
