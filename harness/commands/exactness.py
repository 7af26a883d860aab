"""`sdvar-harness exactness`: which numbers of rows change no bit on this machine, and what the others cost in ties."""

from typing import Annotated

import typer

from harness.commands import _options as options
from harness.commands._options import DECODED, DRAWN, Networks
from harness.commands.records import Group, Option, command
from harness.files import check_outputs


class Widths(Group, panel=DECODED):
    """Which passes are measured, and what must hold of them."""

    batches: Annotated[str, Option("Images per batch: 1,4; some or all of them may share a pass.", panel=DRAWN)] = "1"
    draft_len: Annotated[str, Option("Scales proposed per round, of which ties are expected: 2,5,10.")] = "5"
    compile: options.Compile = False
    require_exact: Annotated[bool, Option("Exit with 1 unless every bit agrees at these draft lengths.")] = False
    json: options.Json = None
    quiet: options.Quiet = False


@command
def exactness(networks: Networks, widths: Widths) -> None:
    """Measure which operations of the target agree to the bit at every number of rows, and how many ties that costs.

    Every window of scales in one pass is set beside one pass a scale. Exit status: 0 measured, 1 a required draft
    length is not exact, 2 bad input.
    """
    from harness.bench import Exactness, expected_ties, measure
    from harness.commands._inputs import classes_of, integers, load_models, timed_requests
    from harness.report import LongWork, plain_console, say, show_exactness, write_asked
    from harness.speculative import DraftLength

    files = check_outputs({"json": widths.json}, options.files_of(networks))
    lengths = integers("draft_len", widths.draft_len, "2,5")
    timed_requests(widths.batches, "0", 1)  # refused before the networks are loaded
    pair = load_models(networks, networks.mode, widths.quiet)
    S = pair.pyramid.S
    for length in lengths:
        DraftLength.parse(length).check(S)
    pair.check_finite()
    mode = "TF32" if networks.mode.tf32 else networks.mode.dtype
    found = Exactness(pair.title, mode, S, pair.pyramid.draws.L, widths.compile, [], {})
    requests = [pair.conditioned(request) for (request,) in timed_requests(widths.batches, "0", classes_of(pair))]
    kinds = sum(2 * request.B + (pair.device.type == "cuda") for request in requests)  # of passes, a window
    with LongWork("passes", kinds * S * (S + 1) // 2, widths.quiet) as work:
        for request in requests:
            for rows in measure(pair, request, widths.compile):
                found.rows.extend(rows)
                work.advance()
    for length in lengths:
        ties = [expected_ties(pair, request, length, widths.compile) for request in requests]
        found.expected_ties[length] = sum(ties) / len(ties)
    if not widths.quiet:
        show_exactness(found, str(pair.device), plain_console())
    write_asked(files, widths.quiet, json=found.document)
    for length in lengths if widths.require_exact else ():
        count = len(found.inexact(length))
        said = f"{count} of its operations' widths differ from one pass a scale" if count else "every bit agrees"
        word, style = ("INEXACT", "bold red") if count else ("EXACT", "green")
        say(plain_console(), f"draft length {length}: {said}", word, style)
    raise typer.Exit(widths.require_exact and not set(lengths) <= set(found.exact_lengths))
