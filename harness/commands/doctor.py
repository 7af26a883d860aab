"""`sdvar-harness doctor`: what this machine has for a verification, and what to do about what it lacks."""

import importlib.util
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from harness.commands._options import Mode, Pair
from harness.commands.records import command
from harness.errors import InputError
from harness.wording import count_of

# extra, a package that it brings, what it is for
EXTRAS = (
    ("report", "jinja2", "pages (--html, report)"),
    ("pytest", "pytest", "the pytest plugin"),
    ("quality", "torchmetrics", "quality"),
    ("certificate", "rfc8785", "certificates (--certificate, check)"),
    ("hub", "huggingface_hub", "checkpoints of a hub"),
    ("cluster", "distributed", "runs on several machines (--cluster)"),
)
# The default run takes so many times what sequential decoding of four digits takes: 133 with one thread, 147 with two.
DEFAULT_RUN = 140


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: str  # as it is
    advice: str = ""  # what to do; empty where all is well


@command
def doctor(mode: Mode) -> None:
    """Say what this machine has for a verification, a line each, and what to do about what it lacks."""
    from harness.provenance import versions
    from harness.report import plain_console, say

    console = plain_console()
    say(console, ", ".join(f"{name} {version}" for name, version in versions().items()))
    for finding in findings(mode):
        text = f"{finding.what}: {finding.state}{f'; {finding.advice}' if finding.advice else ''}"
        say(console, text, "note" if finding.advice else "ok", "yellow" if finding.advice else "green")


def findings(mode: Mode) -> Iterator[Finding]:
    """Yield what is to be said of this machine in one device, dtype and mode. Raises `InputError` for another one."""
    import torch

    from harness.commands._inputs import load_models
    from harness.processes import domain_version
    from harness.protocol import Request
    from harness.reference.sequential import sample_sequential
    from harness.rounding import budget_for

    models = load_models(Pair(), mode)
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    advice = f"OMP_NUM_THREADS={cores}: more threads than cores wait for each other" if threads > cores else ""
    yield Finding("CPU", f"{count_of(cores, 'core')}, {count_of(threads, 'thread')}", advice)
    cards = ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    advice = "" if cards else "digits need none; without one, networks of published sizes take minutes an image"
    yield Finding("GPU", cards or "none", advice)
    try:
        models.compiled(True)
        yield Finding("compiler", "there, for --compile")
    except InputError as error:
        yield Finding("compiler", "none", f"{error.remedy.split(',')[0]}, for --compile and decoders that compile")
    for extra, package, purpose in EXTRAS:
        lacks = importlib.util.find_spec(package) is None
        advice = f'pip install ".[{extra}]" in the clone' if lacks else ""
        yield Finding(purpose, "not installed" if lacks else "installed", advice)
    version, source = domain_version(), budget_for(models).source
    kept = f"Landlock {version}: a decoder writes to its own folder alone"
    advice = "judge decoders that you trust, or use Linux 6.12 or newer (docs/boundary.md)"
    none = Finding("boundary", "no Landlock of version 6: against accidents only", advice)
    yield Finding("boundary", kept) if version else none
    measures = "`sdvar-harness calibrate --into FILE` measures it once, --budgets FILE reads it"
    yield Finding("error budget of digits", source, "" if "stored" in source else measures)
    request, seconds = Request((0, 1, 2, 3)), []
    for _ in range(3):
        start = time.perf_counter()
        sample_sequential(models.target, models.vae, request, models.noise(request))
        seconds.append(time.perf_counter() - start)
    minutes = max(0.5, DEFAULT_RUN * min(seconds) / 60)
    expected = f"about {minutes:.1f} minutes for this project's own decoder, if the machine stays as busy"
    yield Finding("`verify` without options", expected)
