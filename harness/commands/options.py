"""The options that several commands share: how each is spelled, explained and completed, in records of one kind each.

Promise: a shared option stands here only; `harness.commands.inputs` turns a record into checked objects. Nothing heavy
is imported: what other rooms hold as well (names of policies, usual numbers) is compared with them by
tests/unit/commands/test_options.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from harness.commands.records import RARE, Group, offer

# Titles of the panels, by what options are for.
NETWORKS, DRAWN, DECODED = "Networks", "What is drawn", "How it is decoded"
TESTED, JUDGED, PLACE, WRITTEN = "The decoder under test", "How it is judged", "Where it runs", "What is written"

# What stands in other rooms, too.
OWN = "harness:build_decoder"  # the harness's own decoder
DTYPES = ("float32", "float64", "bfloat16")
POLICIES = ("coupled", "greedy", "rejection", "match:RATE", "coupled-match:RATE", "topk-match:K:RATE", "kl:BOUND",
            "handoff:ENTRY", "collaborative:ENTRY", "code:ENTRY")  # fmt: skip
PUBLISHED = ("var", "code", "sdvar-parallel", "sdvar-test3", "sdvar-window")
SIZES = (
    *(f"d{draft}-d{target}" for target in (16, 20, 24, 30) for draft in (16, 20, 24, 30) if draft <= target),
    "d36-d36",
)
CLOSE = 0.002  # of the weights' size, how far the draft of digits-close is from its target
TIMEOUT_S = 600.0
QUALITY_IMAGES, BLOCKS = 10_000, 40
EVERY_LENGTH = ("coupled", "greedy", "rejection", "coupled-match:0.5", "match:0.5", "match:0.5+partial",
                "topk-match:5:0.5", "kl:0.1", "kl:0.5")  # fmt: skip  # policies that a study asks at every draft length
ONE_LENGTH = (*(f"collaborative:{n}" for n in (2, 3, 5, 7)), *(f"code:{n}" for n in range(4, 10)),
              *(f"handoff:{n}" for n in (1, 3, 5, 7, 9)))  # fmt: skip
PACKAGE = Path(__file__).parents[1]
BUDGETS, GOLDENS = PACKAGE / "rounding" / "budgets.json", PACKAGE / "golden" / "data"

# Options of several records.
Draft = Annotated[Path | None, typer.Option(help="Draft checkpoint (.pth or .safetensors).", rich_help_panel=NETWORKS)]
Target = Annotated[Path | None, typer.Option(help="Target checkpoint.", rich_help_panel=NETWORKS)]
Vae = Annotated[Path | None, typer.Option(help="VQ-VAE checkpoint.", rich_help_panel=NETWORKS)]
Device = Annotated[
    str, typer.Option(help="cpu, cuda or cuda:N.", autocompletion=offer("cpu", "cuda"), rich_help_panel=PLACE)
]
Dtype = Annotated[
    str, RARE, typer.Option(help=f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}.", autocompletion=offer(*DTYPES))
]
Labels = Annotated[str, typer.Option(help="Classes: 0,1 or a range 0:4 or all.", autocompletion=offer("all"))]
Batch = Annotated[int, RARE, typer.Option(help="Images per batch; 0 = all labels of a seed together.")]
Cfg = Annotated[float, RARE, typer.Option(help="Guidance value; 0 = off.")]
TopK = Annotated[int, RARE, typer.Option(help="Keep the k most likely tokens; 0 = off.")]
TopP = Annotated[float, RARE, typer.Option(help="Keep this much probability; 0 = off.")]
Policy = Annotated[str, typer.Option(help=f"Acceptance rule: {', '.join(POLICIES)}.", autocompletion=offer(*POLICIES))]
Bonus = Annotated[bool, RARE, typer.Option("--bonus", help="Also submit the scale after the drafted ones.")]
Graphs = Annotated[bool, RARE, typer.Option("--graphs", help="Record and replay device work as CUDA graphs.")]
Compile = Annotated[bool, RARE, typer.Option("--compile", help="Run the networks' blocks through PyTorch's compiler.")]
Implementation = Annotated[
    str,
    typer.Option(
        "--implementation",
        help="Decoder under test: package.module:factory, or published:var, code, …",
        autocompletion=offer(OWN, *(f"published:{name}" for name in PUBLISHED)),
    ),
]
Checkout = Annotated[
    Path | None, RARE, typer.Option(help="Folder of published code: holds the packages models and dist.")
]
FactoryOptions = Annotated[
    list[str] | None, RARE, typer.Option("--option", help="NAME=VALUE for the decoder's factory; several times.")
]
Contract = Annotated[
    str,
    typer.Option(
        help="Demand A, B or C; a weaker claim is refused. Empty: what the decoder claims.",
        autocompletion=offer("A", "B", "C"),
    ),
]
Budgets = Annotated[
    Path,
    RARE,
    typer.Option(
        help="File of `calibrate`; modes that it lacks are measured.",
        show_default="those that ship",
        rich_help_panel=JUDGED,
    ),
]
MaxLoss = Annotated[
    float | None, RARE, typer.Option(help="Judge the loss of quality: KEPT, LOST or INCONCLUSIVE, at this.")
]
Features = Annotated[
    Path | None, RARE, typer.Option(help="Inception's weights file (torch-fidelity's), for other images.")
]
Real = Annotated[Path | None, RARE, typer.Option(help="Real data's mu and sigma, .npz as of the ADM evaluation.")]
Workers = Annotated[
    int, RARE, typer.Option(help="Processes; 0 = one a GPU of --device cuda, else one.", rich_help_panel=PLACE)
]
Cluster = Annotated[
    str,
    RARE,
    typer.Option(help="Address of a Dask scheduler whose workers do it (docs/runs.md).", rich_help_panel=PLACE),
]
Json = Annotated[Path | None, typer.Option(help="Write the result to this file.")]
Html = Annotated[
    Path | None, typer.Option(help="Write a page for people to this file: one HTML file, complete in itself.")
]
Resume = Annotated[bool, RARE, typer.Option("--resume", help="Go on where the run in that file stopped.")]
Into = Annotated[Path | None, typer.Option(help="Markdown file: replace its table between the markers.")]
Verbose = Annotated[bool, RARE, typer.Option("--verbose", help="Show a row for everything that passed, too.")]
Quiet = Annotated[
    bool, RARE, typer.Option("--quiet", help="Print the verdict only, and nothing that a decoder prints.")
]


@dataclass(frozen=True)
class Pair(Group):
    """Which networks: by name, or three checkpoint files."""

    panel = NETWORKS
    models: Annotated[
        str,
        typer.Option(
            help="digits, digits-close, or sizes with random weights: d16-d30.",
            autocompletion=offer("digits", "digits-close", *SIZES),
        ),
    ] = "digits"
    draft: Draft = None
    target: Target = None
    vae: Vae = None
    patch_nums: Annotated[str, RARE, typer.Option(help="Sides of the scales, where the checkpoint does not tell.")] = ""

    def files(self) -> dict[str, Path | None]:
        """Return the files that are read, by option."""
        return {"draft": self.draft, "target": self.target, "vae": self.vae}


@dataclass(frozen=True)
class Mode(Group):
    """Where the networks run, and in which precision."""

    panel = PLACE
    device: Device = "cpu"
    tf32: Annotated[bool, RARE, typer.Option("--tf32", help="Allow TF32 on CUDA; off, float32 is float32.")] = False
    dtype: Dtype = "float32"
    draft_dtype: Annotated[
        str,
        RARE,
        typer.Option(
            help="The draft's own, where speed counts: a draft may round as it likes.",
            show_default="that of --dtype",
            autocompletion=offer(*DTYPES),
        ),
    ] = ""


@dataclass(frozen=True)
class Networks(Pair):
    """Which networks, with another draft where `draft_noise` is given, and their mode."""

    draft_noise: Annotated[
        float | None,
        RARE,
        typer.Option(
            help=f"Draft with the target, its weights moved by so much of their size; digits-close is {CLOSE:g}."
        ),
    ] = None
    mode: Mode = Mode()


@dataclass(frozen=True)
class Images(Group):
    """What is drawn, and how: every seed with every label, in batches."""

    panel = DRAWN
    seeds: Annotated[str, typer.Option(help="Seeds: 0,3 or the range 0:4.")] = "0:4"
    labels: Labels = "all"
    batch: Batch = 0
    cfg: Cfg = 1.5
    top_k: TopK = 0
    top_p: TopP = 0.0
    noise: Annotated[
        str,
        RARE,
        typer.Option(
            help="image: a stream per image; batch: the published order.", autocompletion=offer("image", "batch")
        ),
    ] = "image"
    addresses: str = ""  # an option of `verify` alone


@dataclass(frozen=True)
class UnderTest(Group):
    """The decoder under test."""

    panel = TESTED
    implementation: Implementation = OWN
    checkout: Checkout = None
    option: FactoryOptions = None
