"""`sdvar-harness bench-policies`: what each policy saves in target passes, and at which distance."""

from dataclasses import dataclass
from typing import Annotated

from harness.commands import _options as options
from harness.commands._options import DECODED, DRAWN, EVERY_LENGTH, ONE_LENGTH, Networks
from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs
from harness.wording import count_of


@dataclass(frozen=True)
class PolicyDecodes(Group):
    """What is decoded, how, and what is written."""

    panel = DECODED
    images: Annotated[int, Option("Images per setting, labels in turn.", panel=DRAWN)] = 200
    batch: Annotated[int, Option("Images per batch.", panel=DRAWN)] = 10
    seed: Annotated[int, Option("Seed of all images.", panel=DRAWN)] = 0
    cfg: options.Cfg = 1.5
    policies: Annotated[str, Option("Policies at every draft_len, by commas.")] = ",".join(EVERY_LENGTH)
    once: Annotated[str, Option("Policies at draft_len 5 alone, by commas.")] = ",".join(ONE_LENGTH)
    draft_len: Annotated[str, Option("Draft lengths, by commas.")] = "1,2,3,5,10"
    workers: options.Workers = 0
    cluster: options.Cluster = ""
    into: options.Into = None
    picture: options.Picture = None
    json: options.Json = None


@command
def bench_policies(networks: Networks, decodes: PolicyDecodes) -> None:
    """Measure target calls, target rows and distances of the acceptance policies."""
    from harness.bench import measure_policies, policies_document, policy_markdown
    from harness.commands._inputs import check_drawing, check_most, load_models
    from harness.pool import Parallelism
    from harness.protocol import Request
    from harness.quality import portions
    from harness.report import LongWork, plain_console, replaced_parts, show_policies, write_asked

    files = {"into": decodes.into, "picture": decodes.picture, "json": decodes.json}
    paths = check_outputs(files, options.files_of(networks))
    check_drawing(decodes.picture)
    if decodes.into is not None:
        replaced_parts(decodes.into, {"table": ""})
    if min(decodes.images, decodes.batch) < 1:
        raise InputError("images", decodes.images, "and batch must be at least 1", "pass --images 200 --batch 10")
    check_most("images", decodes.images, "200")
    settings = settings_for(decodes)
    pair = load_models(networks, networks.mode)
    pair.check_finite()
    labels, request = range(pair.target.config.classes), Request((0,), decodes.seed, decodes.cfg)
    requests = portions(decodes.images, decodes.batch, labels, request)
    parallelism = Parallelism(decodes.workers, decodes.cluster, networks.mode.device)
    with LongWork("batches", len(requests)) as work:
        rows = measure_policies(pair, requests, settings, work.advance, parallelism)
    show_policies(rows, plain_console())
    subject = f"{pair.title} on {pair.device.type}, {networks.mode.dtype}"
    table = f"{count_of(decodes.images, 'image')}, cfg {decodes.cfg:g}, {subject}\n\n{policy_markdown(rows)}"
    write_asked(
        paths,
        json=lambda: policies_document(pair.title, str(pair.device), rows),
        into=lambda: replaced_parts(paths["into"], {"table": table}).encode(),
    )
    if "picture" in paths:
        from harness.bench.charts import policies_chart, svg  # matplotlib is asked for where one draws

        write_asked(paths, picture=lambda: svg(policies_chart(rows)))


def settings_for(decodes: PolicyDecodes) -> list[tuple[str, str]]:
    """Return (policy, draft_len) pairs: the product of two lists, and the policies `once`. Raises `InputError`."""
    lengths = [text for text in decodes.draft_len.split(",") if text]
    pairs = [(policy, text) for policy in decodes.policies.split(",") if policy for text in lengths]
    pairs += [(policy, "5") for policy in decodes.once.split(",") if policy]
    if not pairs:
        raise InputError("policies", decodes.policies, "names nothing", "pass --policies coupled")
    return pairs
