"""`sdvar-harness doctor`: what this machine has for a verification, and what to do about what it lacks."""

from __future__ import annotations

import importlib.util
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.commands._options import Mode, Pair
from harness.commands.records import command
from harness.errors import InputError
from harness.wording import count_of

if TYPE_CHECKING:
    from harness.models import ModelPair

# extra, a package that it brings, what it is for
EXTRAS = (
    ("report", "jinja2", "pages (--html, report)"),
    ("pytest", "pytest", "the pytest plugin"),
    ("quality", "torchmetrics", "quality"),
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


def findings(mode: Mode) -> list[Finding]:
    """Return what is to be said of this machine in one device, dtype and mode. Raises `InputError` for another one."""
    from harness.commands._inputs import load_models

    models = load_models(Pair(), mode)
    extras = [_extra(*row) for row in EXTRAS]
    return [_processor(), _cards(), _compiler(models), *extras, _boundary(), _budgets(models), _default_run(models)]


def _processor() -> Finding:
    import torch

    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    advice = f"OMP_NUM_THREADS={cores}: more threads than cores wait for each other" if threads > cores else ""
    return Finding("CPU", f"{count_of(cores, 'core')}, {count_of(threads, 'thread')}", advice)


def _cards() -> Finding:
    import torch

    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    advice = "" if names else "digits need none; without one, networks of published sizes take minutes an image"
    return Finding("GPU", ", ".join(names) or "none", advice)


def _compiler(models: ModelPair) -> Finding:
    try:
        models.compiled(True)
    except InputError as error:
        return Finding("compiler", "none", f"{error.remedy.split(',')[0]}, for --compile and decoders that compile")
    return Finding("compiler", "there, for --compile")


def _extra(extra: str, package: str, purpose: str) -> Finding:
    if importlib.util.find_spec(package) is not None:
        return Finding(purpose, "installed")
    return Finding(purpose, "not installed", f'pip install "sdvar-harness[{extra}]"')


def _boundary() -> Finding:
    from harness.processes import domain_version

    if version := domain_version():
        return Finding("boundary", f"Landlock {version}: a decoder writes to its own folder alone")
    advice = "judge decoders that you trust, or use Linux 6.12 or newer (docs/boundary.md)"
    return Finding("boundary", "no Landlock of version 6: against accidents only", advice)


def _budgets(models: ModelPair) -> Finding:
    from harness.rounding import budget_for

    source = budget_for(models).source
    measures = "`sdvar-harness calibrate --into FILE` measures it once, --budgets FILE reads it"
    return Finding("error budget of digits", source, "" if "stored" in source else measures)


def _default_run(models: ModelPair) -> Finding:
    from harness.protocol import Request
    from harness.reference.sequential import sample_sequential

    request, seconds = Request((0, 1, 2, 3)), []
    for _ in range(3):
        start = time.perf_counter()
        sample_sequential(models.target, models.vae, request, models.noise(request))
        seconds.append(time.perf_counter() - start)
    minutes = max(0.5, DEFAULT_RUN * min(seconds) / 60)
    return Finding("`verify` without options", f"about {minutes:.1f} minutes for this project's own decoder")
