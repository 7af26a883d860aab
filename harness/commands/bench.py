"""`sdvar-harness bench`: time speculative against sequential decoding."""

from dataclasses import dataclass
from typing import Annotated

from harness.commands import _options as options
from harness.commands._options import DECODED, DRAWN, Networks
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs


@dataclass(frozen=True)
class TimedDecodes(Group):
    """What is decoded, how, and what is written."""

    panel = DECODED
    batches: Annotated[str, Option("Images per batch: 1,8.", panel=DRAWN)] = "1"
    seeds: Annotated[str, Option("Seeds: 0,3 or the range 0:4; times are means over them.", panel=DRAWN)] = "0"
    draft_len: Annotated[str, Option("Scales proposed per round: 2,5,10.")] = "2,5,10"
    policies: Annotated[
        str, Option("By commas; imposed:RATE accepts drafted scales at that rate, whatever they are.")
    ] = "imposed:1"
    bonus: Annotated[bool, Option("Let the target finish the scale after the drafted ones too.", rare=True)] = False
    graphs: options.Graphs = False
    compile: options.Compile = False
    repeats: Annotated[int, Option("Timed decodes per figure; the median is shown.")] = 5
    json: options.Json = None
    html: options.Html = None
    quiet: options.Quiet = False


@command
def bench(networks: Networks, timed: TimedDecodes) -> None:
    """Time sequential and speculative decoding in one mode, and compare with what passes and machine allow."""
    import torch

    from harness.bench import Bench, Machine, Speed, SpeedRow
    from harness.commands._inputs import load_models, timed_requests
    from harness.models import mode_name, product_dtype
    from harness.report import LongWork, plain_console, show_speed, write_asked
    from harness.report.html import check_page, timings_page

    files = check_outputs({"json": timed.json, "html": timed.html}, options.files_of(networks))
    check_page(timed.html)
    settings = settings_for(timed.policies, timed.draft_len, timed.repeats)
    timed_requests(timed.batches, timed.seeds, 1)  # refused before the networks are loaded
    pair = load_models(networks, networks.mode, timed.quiet)
    pair.check_finite()
    requests = timed_requests(timed.batches, timed.seeds, pair.target.config.classes)
    machine = Machine.measure(pair.device, product_dtype(pair.target))
    if pair.device.type == "cuda":
        torch.cuda.empty_cache()
    timer = Bench(pair, timed.graphs, timed.repeats, machine, timed.bonus, timed.compile)
    rows: list[SpeedRow] = []
    with LongWork("timings", len(requests) * len(settings), timed.quiet) as work:
        for same_size in requests:
            for row in timer.rows(same_size, settings):
                rows.append(row)
                work.advance()
    mode = "TF32" if networks.mode.tf32 else networks.mode.dtype
    speed = Speed(pair.title, mode, mode_name(pair.draft), timed.graphs, timed.bonus, machine, rows, timed.compile)
    show_speed(speed, str(pair.device), plain_console())
    write_asked(files, timed.quiet, json=speed.document, html=lambda: timings_page(speed, str(pair.device)))


def settings_for(policies: str, draft_len: str, repeats: int) -> list[tuple[str, int]]:
    """Return (policy, draft_len) pairs; of a policy that no draft length touches one. Raises `InputError`."""
    from harness.commands._inputs import integers
    from harness.speculative import parse_policy

    if repeats < 1:
        raise InputError("repeats", repeats, "must be at least 1", "pass --repeats 5")
    named = [parse_policy(text, bench=True) for text in policies.split(",")]
    lengths = integers("draft_len", draft_len, "2,5")
    return [(policy.name, n) for n in lengths for policy in named if policy.speculates or n == lengths[0]]
