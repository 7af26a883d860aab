"""The options that several commands share: how each is spelled, explained and completed, in records of one kind each.

Promise: a shared option stands here only; `harness.commands._inputs` turns a record into checked objects. Nothing heavy
is imported: what other rooms hold as well (names of policies, usual numbers) is compared with them by
tests/unit/commands/test_options.py.
"""

from pathlib import Path
from typing import Annotated

from harness.commands.records import Group, Option
from harness.files import local_file

# Titles of the panels, by what options are for.
NETWORKS, DRAWN, DECODED = "Networks", "What is drawn", "How it is decoded"
TESTED, JUDGED, PLACE, WRITTEN = "The decoder under test", "How it is judged", "Where it runs", "What is written"

# What stands in other rooms, too.
OWN = "harness:build_decoder"  # the harness's own decoder
DECODER_PROCESS = "harness.decoders._child:serve"  # what a decoder's process calls
DTYPES = ("float32", "float64", "bfloat16", "float16", "autocast-bfloat16", "autocast-float16")
POLICIES = ("coupled", "greedy", "rejection", "match:RATE", "coupled-match:RATE", "topk-match:K:RATE", "kl:BOUND",
            "handoff:ENTRY", "collaborative:ENTRY", "code:ENTRY", "middle:ENTRY:EXIT")  # fmt: skip
PUBLISHED = ("var", "infinity", "code", "sdvar-parallel", "sdvar-test3")
SHIPPED = ("digits", "digits-close", "digits-code", "digits-bits")
SIZES = (
    *(f"d{draft}-d{target}" for target in (16, 20, 24, 30) for draft in (16, 20, 24, 30) if draft <= target),
    "d36-d36",
)
CLOSE = 0.002  # of the weights' size, how far the draft of digits-close is from its target
TIMEOUT_S = 600.0
QUALITY_IMAGES, BLOCKS = 10_000, 40
STUDIED = ("coupled", "rejection", "coupled-match:0.5", "match:0.5", "match:0.5+partial", "topk-match:5:0.5", "kl:0.1",
           "kl:0.5", *(f"collaborative:{n}" for n in (2, 3, 5, 7)), *(f"code:{n}" for n in range(4, 10)),
           *(f"handoff:{n}" for n in (1, 3, 5, 7, 9)))  # fmt: skip  # policies whose quality is measured
PACKAGE = Path(__file__).parents[1]
BUDGETS, GOLDENS = PACKAGE / "rounding" / "budgets.json", PACKAGE / "golden" / "data"

# Help that is too long to stand within its option.
NAMED = f"{', '.join(SHIPPED)} (Infinity's), or sizes with random weights: d16-d30."
MOVED = f"Draft with the target, its weights moved by so much of their size; digits-close is {CLOSE:g}."
ROUNDS = "The draft's own, where speed counts: a draft may round as it likes."
PAGE = "Write the result as a page to this file: one HTML file, complete in itself."
SILENT = "Print the verdict only, and nothing that a decoder prints."
SCHEDULER = "Address of a Dask scheduler whose workers do it (docs/runs.md)."
DEMAND = "Demand A, B or C; a weaker claim is refused. Empty: what the decoder claims."
BUILT = "Decoder under test: package.module:factory, or published:var, code, …"
QUICK = "where that takes less than a minute"
MEASURES = "File of `calibrate`; modes that it lacks are measured."

SCHEDULE = "Infinity's scales, 1.0/1M or 1x1,2x2,3x4: its files are loaded, without --draft the target drafts."
ENCODED = "Infinity's encoded texts, which --labels number: .safetensors of (T, A) each; negative/NAME beside NAME."
PLACES = "Where Infinity is guided: 0 the logits, -k after the k-th block from the last; --cfg 1 is off."
HEADS = "Attention heads, where the checkpoint does not tell: 16, or the draft's and the target's: 16,30."
FILES = ("draft", "target", "vae")

# Options of several records.
Draft = Annotated[str | None, Option("Draft: FILE, FOLDER, FILE::ENTRY or hf://OWNER/NAME/FILE.", panel=NETWORKS)]
Target = Annotated[str | None, Option("Target checkpoint, likewise.", panel=NETWORKS)]
Vae = Annotated[str | None, Option("VQ-VAE checkpoint, likewise.", panel=NETWORKS)]
Device = Annotated[str, Option("cpu, cuda or cuda:N.", offers=("cpu", "cuda"), panel=PLACE)]
Dtype = Annotated[str, Option(f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}.", rare=True, offers=DTYPES)]
CLASSES = "Classes, an image each: 0,1 or 0:4, without 4, or all; the one after the last is unconditional."
Labels = Annotated[str, Option(CLASSES, offers=("all",), panel=DRAWN)]
Batch = Annotated[int, Option("Images per batch; 0 = all labels of a seed together.", rare=True, panel=DRAWN)]
Cfg = Annotated[float, Option("Guidance value; 0 = off.", panel=DRAWN)]
TopK = Annotated[int, Option("Keep the k most likely tokens; 0 = off.", panel=DRAWN)]
TopP = Annotated[float, Option("Keep this share of probability, 0.9; 0 = off.", panel=DRAWN)]
Policy = Annotated[str, Option(f"Acceptance rule: {', '.join(POLICIES)}.", offers=POLICIES, panel=DECODED)]
Bonus = Annotated[bool, Option("Also submit the scale after the drafted ones.", rare=True, panel=DECODED)]
Graphs = Annotated[bool, Option("Record and replay device work as CUDA graphs.", rare=True, panel=DECODED)]
Compile = Annotated[bool, Option("Run the networks' blocks through PyTorch's compiler.", rare=True, panel=DECODED)]
Implementation = Annotated[str, Option(BUILT, offers=(OWN, *(f"published:{name}" for name in PUBLISHED)))]
Checkout = Annotated[Path | None, Option("Folder of published code: holds models and dist, or infinity.")]
FactoryOptions = Annotated[
    list[str] | None, Option("NAME=VALUE for the decoder's factory; several times.", name="--option", rare=True)
]
Stubs = Annotated[
    list[str] | None, Option("NAME=FILE: a file in place of a module that a checkout wants.", name="--stub", rare=True)
]
Contract = Annotated[str, Option(DEMAND, offers=("A", "B", "C"))]
Budgets = Annotated[Path, Option(MEASURES, rare=True, shown="those that ship", panel=JUDGED)]
MaxLoss = Annotated[float | None, Option("Judge the loss of quality: KEPT, LOST or INCONCLUSIVE, at this.", rare=True)]
MaxNats = Annotated[float | None, Option("Judge the loss in nats an image: log q/p, likewise.", rare=True)]
Features = Annotated[Path | None, Option("Inception's weights file (torch-fidelity's), for other images.", rare=True)]
Real = Annotated[Path | None, Option("Real data's mu and sigma, .npz as of the ADM evaluation.", rare=True)]
AllowWrite = Annotated[
    list[str] | None, Option("Folder that its process may write to, besides its own; several times.", rare=True)
]
Timeout = Annotated[
    float, Option("Seconds of a decode or law, or of all parts, in the decoder's own process.", rare=True)
]
Locate = Annotated[bool, Option("Name the line of its code that makes the first defect.", rare=True, panel=JUDGED)]
LocateIfQuick = Annotated[
    bool | None, Option("Name the line of code that makes the first defect.", shown=QUICK, panel=JUDGED)
]
InProcess = Annotated[bool, Option("Run the decoder in this process: for a debugger, and less safe.", rare=True)]
Workers = Annotated[int, Option("Processes; 0 = one a GPU of --device cuda, else one.", rare=True, panel=PLACE)]
Cluster = Annotated[str, Option(SCHEDULER, rare=True, panel=PLACE)]
Json = Annotated[Path | None, Option("Write the result to this file.", panel=WRITTEN)]
Html = Annotated[Path | None, Option(PAGE, panel=WRITTEN)]
Resume = Annotated[bool, Option("Go on where the run in that file stopped.", rare=True, panel=WRITTEN)]
Verbose = Annotated[bool, Option("Show a row for everything that passed, too.", rare=True, panel=WRITTEN)]
Quiet = Annotated[bool, Option(SILENT, rare=True, panel=WRITTEN)]


def files_of(named: object) -> dict[str, Path | None]:
    """Return the checkpoint files on this machine that a record's fields name, by option."""
    return {name: local_file(getattr(named, name)) for name in FILES}


class Pair(Group, panel=NETWORKS):
    """Which networks: by name, or three checkpoint files."""

    models: Annotated[str, Option(NAMED, offers=(*SHIPPED, *SIZES))] = "digits"
    draft: Draft = None
    target: Target = None
    vae: Vae = None
    patch_nums: Annotated[str, Option("Sides of the scales, where the checkpoint does not tell.", rare=True)] = ""
    heads: Annotated[str, Option(HEADS, rare=True)] = ""
    schedule: Annotated[str, Option(SCHEDULE, rare=True)] = ""

    def given_files(self) -> dict[str, str]:
        """Return the checkpoints that are named, by option, as they were typed."""
        return {name: text for name in FILES if (text := getattr(self, name)) is not None}


class Mode(Group, panel=PLACE):
    """Where the networks run, and in which precision."""

    device: Device = "cpu"
    tf32: Annotated[bool, Option("Allow TF32 on CUDA; off, float32 is float32.", rare=True)] = False
    dtype: Dtype = "float32"
    draft_dtype: Annotated[str, Option(ROUNDS, rare=True, offers=DTYPES, shown="that of --dtype")] = ""


class Networks(Pair):
    """Which networks, with another draft where `draft_noise` is given, and their mode."""

    draft_noise: Annotated[float | None, Option(MOVED, rare=True)] = None
    mode: Mode = Mode()


class Images(Group, panel=DRAWN):
    """What is drawn, and how: every seed with every label, in batches."""

    seeds: Annotated[str, Option("Seeds, each with every label: 0,3 or the range 0:4, without 4.")] = "0:4"
    labels: Labels = "all"
    batch: Batch = 0
    cfg: Cfg = 1.5
    top_k: TopK = 0
    top_p: TopP = 0.0
    noise: Annotated[
        str, Option("image: a stream per image; batch: the published order.", rare=True, offers=("image", "batch"))
    ] = "image"
    texts: Annotated[Path | None, Option(ENCODED, rare=True)] = None
    places: Annotated[str, Option(PLACES, rare=True)] = "0"
    tau: Annotated[float, Option("Infinity's temperature.", rare=True)] = 1.0
    addresses: str = ""  # an option of `verify` alone


class UnderTest(Group, panel=TESTED):
    """The decoder under test."""

    implementation: Implementation = OWN
    checkout: Checkout = None
    option: FactoryOptions = None
    stub: Stubs = None
