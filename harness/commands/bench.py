"""`sdvar-harness bench`: time speculative against sequential decoding, the harness's own or anybody's."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import _options as options
from harness.commands._options import DECODED, DRAWN, Networks
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs

if TYPE_CHECKING:
    from harness.bench import Contest
    from harness.models import ModelPair
    from harness.protocol import Request


DRAFT_LEN = 5  # of anybody's decoder, where none is asked for


class TimedDecodes(Group, panel=DECODED):
    """What is decoded, how, and what is written."""

    batches: Annotated[str, Option("Images per batch: 1,8.", panel=DRAWN)] = "1"
    seeds: Annotated[str, Option("Seeds: 0,3 or the range 0:4; times are means over them.", panel=DRAWN)] = "0"
    draft_len: Annotated[str, Option("Scales proposed per round: 2,5,10.")] = "2,5,10"
    policies: Annotated[
        str, Option("Acceptance rules, by commas; imposed:RATE accepts that share of drafts, right or wrong.")
    ] = "imposed:1"
    bonus: Annotated[bool, Option("Let the target finish the scale after the drafted ones too.", rare=True)] = False
    graphs: options.Graphs = False
    compile: options.Compile = False
    repeats: Annotated[int, Option("Timed decodes per figure; the median is shown.")] = 5
    json: options.Json = None
    html: options.Html = None
    quiet: options.Quiet = False


@command
def bench(networks: Networks, tested: options.UnderTest, timed: TimedDecodes) -> None:
    """Time sequential and speculative decoding, and compare with the least time that their network passes would take.

    With --implementation: another decoder beside the best sequential decoding. It is judged first, and the times of a
    wrong one are not shown. Exit status: 0 timed, 1 a defect, 2 bad input, 3 inconclusive.
    """
    import torch

    from harness.bench import Bench, Machine, Speed, SpeedRow
    from harness.commands._inputs import classes_of, load_models, options_tested, timed_requests
    from harness.models import mode_name, product_dtype
    from harness.report import LongWork, plain_console, show_contest, show_speed, write_asked
    from harness.report.html import check_page, contest_page, timings_page

    files = check_outputs({"json": timed.json, "html": timed.html}, options.files_of(networks))
    check_page(timed.html)
    settings = settings_for(timed.policies, timed.draft_len, timed.repeats)
    if tested.implementation != options.OWN:
        rule = f"has no effect on {tested.implementation}: it is the harness's own decoder's"
        timed.refuse(("policies", "graphs", "bonus"), rule, "drop it; --option NAME=VALUE sets what yours has")
    options_tested(tested)  # the harness's own decoder takes none
    timed_requests(timed.batches, timed.seeds, 1)  # refused before the networks are loaded
    pair = load_models(networks, networks.mode, timed.quiet)
    pair.check_finite()
    asked = timed_requests(timed.batches, timed.seeds, classes_of(pair))
    requests = [[pair.conditioned(request) for request in same_size] for same_size in asked]
    mode = "TF32" if networks.mode.tf32 else networks.mode.dtype
    if tested.implementation != options.OWN:
        found = contest(pair, tested, timed, requests, mode)
        show_contest(found, str(pair.device), plain_console())
        write_asked(files, timed.quiet, json=found.document, html=lambda: contest_page(found, str(pair.device)))
        return
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
    speed = Speed(pair.title, mode, mode_name(pair.draft), timed.graphs, timed.bonus, machine, rows, timed.compile)
    show_speed(speed, str(pair.device), plain_console())
    write_asked(files, timed.quiet, json=speed.document, html=lambda: timings_page(speed, str(pair.device)))


def contest(
    pair: ModelPair, tested: options.UnderTest, timed: TimedDecodes, requests: list[list[Request]], mode: str
) -> Contest:
    """Judge a decoder, then time it beside sequential decoding. Raises `typer.Exit` where it is wrong."""
    from harness.bench import Contest, Machine, TimedDecoderError, contest_rows, sequential_sides
    from harness.commands._inputs import integers, options_tested
    from harness.decoders import Terms, start_runner
    from harness.models import product_dtype
    from harness.protocol import Settings
    from harness.report import LongWork, plain_console, say, show_verification
    from harness.verification import Question, answer_question, is_published, takes_draft_len, usual_settings

    name, terms = tested.implementation, Terms(sequential=True)  # whether it drafts is not asked here
    usual = (min(DRAFT_LEN, pair.pyramid.S),)
    lengths = integers("draft_len", timed.draft_len, "2,5") if "draft_len" in timed.given else usual
    if len(lengths) > 1:
        raise InputError("draft_len", timed.draft_len, "must be one for a decoder of yours", "pass --draft-len 5")
    setting = Settings(lengths[0], options=options_tested(tested))
    if is_published(name):
        length = setting.draft_len if takes_draft_len(name) else ""
        setting = replace(usual_settings(name, setting, 1)[0], draft_len=length)
    asked = tuple(request for same_size in requests for request in same_size)
    judged = answer_question(pair, Question(name, (setting,), asked, terms))
    if judged.verdict.exit_status:
        show_verification(judged, plain_console(), timed.quiet, asks_more=False)
        raise typer.Exit(judged.verdict.exit_status)
    machine = Machine.measure(pair.device, product_dtype(pair.target))
    seeds, said = tuple(request.seed for request in requests[0]), tuple(judged.remarks)
    found = Contest(pair.title, mode, name, setting, seeds, judged.verdict.value, said, machine, timed.repeats, [])
    with LongWork("timings", len(requests) * (1 + len(sequential_sides(pair, timed.compile))), timed.quiet) as work:
        for same_size in requests:
            with closing(start_runner(pair, name, [setting], same_size[0].B, terms)) as runner:
                try:
                    for row in contest_rows(pair, runner, same_size, machine, timed.repeats, timed.compile):
                        found.rows.append(row)
                        work.advance()
                except TimedDecoderError as error:
                    say(plain_console(), str(error), "DEFECT")
                    raise typer.Exit(1) from None
    return found


def settings_for(policies: str, draft_len: str, repeats: int) -> list[tuple[str, int]]:
    """Return (policy, draft_len) pairs; of a policy that no draft length touches one. Raises `InputError`."""
    from harness.commands._inputs import integers
    from harness.speculative import parse_policy

    if repeats < 1:
        raise InputError("repeats", repeats, "must be at least 1", "pass --repeats 5")
    named = [parse_policy(text, bench=True) for text in policies.split(",")]
    lengths = integers("draft_len", draft_len, "2,5")
    return [(policy.name, n) for n in lengths for policy in named if policy.speculates or n == lengths[0]]
