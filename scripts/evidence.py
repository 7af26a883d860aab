"""How soon bets find a wrong law on digits, and which planted bugs of contract B they find: tables of docs/evidence.md.

Every decoder draws whole images by a law that is wrong in one thing, at all scales or at one. What the bets win of an
image is measured once; a run is such images, drawn with replacement, until the bets are won.

    python scripts/evidence.py [--pool 40] [--keep FOLDER]      # some 20 minutes of a CPU; FOLDER keeps what was won
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from harness import load_digits
from harness.judge import TokensSeen, Wealth, bet, usual_alternatives
from harness.mutants import MUTANTS
from harness.protocol import Contract, Request, Settings
from harness.protocol.noise import ACCEPT
from harness.reference import family_of
from harness.report._tables import replaced_parts
from harness.rounding import joint_budget
from harness.speculative import Acceptance, Policy, parse_policy, race, race_alone
from harness.speculative.parts import parts_of
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder

PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"
MODELS = load_digits()
PYRAMID, V, LAST, BATCH = MODELS.pyramid, MODELS.target.config.V, MODELS.pyramid.S - 1, 8
BUDGET, STEPS, RIGHT = joint_budget(MODELS, compiled=False), family_of(MODELS.target), parts_of(MODELS.target)
RUNS, MOST, MOST_OF_BUG, FEW, CERTAIN = 20, 3000, 200, 2, 1e9
LAW_BUGS = ("shared-noise", "inverted", "lenient", "from-target", "absolute", "sharp-bonus", "small-ignored", "cooled",
            "opened", "rounded-laws", "again", "bent", "bent-accept", "shared-redraw")  # fmt: skip


@dataclass(frozen=True)
class Wrong:
    """A decoder that is wrong in one thing."""

    name: str
    wanted: int  # images to detection at all scales
    law: Callable[[TokensSeen, int], Tensor]  # probs_BlV of a scale along tokens
    parts: Callable[[], dict[str, object]] = dict  # that make a decoder of this law
    policy: Callable[[], Policy] = lambda: parse_policy(f"code:{PYRAMID.S}")  # the target alone, scale by scale
    top_p: float = 0.0  # of the request


def guided_rows(rows_RLV: Tensor, si: int, cfg: float) -> Tensor:
    """Return guided_BlV of a scale."""
    return STEPS.guide(rows_RLV[:, PYRAMID.draws.span(si)], cfg, si, PYRAMID.S)


def guided(name: str, by: float) -> Wrong:
    """Return a decoder whose guidance value is off."""
    guide = RIGHT.guide
    return Wrong(
        name, 50, lambda seen, si: guided_rows(seen.rows_RLV, si, seen.request.cfg + by).softmax(-1),
        lambda: {"guide": lambda rows, pyramid, cfg, first, last: guide(rows, pyramid, cfg + by, first, last)},
    )  # fmt: skip


def heated(name: str, wanted: int, tau: float) -> Wrong:
    """Return a decoder that draws at a temperature."""
    return Wrong(
        name, wanted, lambda seen, si: (seen.guided_BLV[:, PYRAMID.draws.span(si)] / tau).softmax(-1),
        lambda: {"draw": lambda probs, E: ((probs.log() / tau).exp() / E).argmax(-1)},
    )  # fmt: skip


def leaking_law(seen: TokensSeen, si: int) -> Tensor:
    """Return a law of which 2 % is the draft's."""
    laws = (guided_rows(rows, si, seen.request.cfg).softmax(-1) for rows in (seen.rows_RLV, seen.draft_RLV))
    return torch.lerp(*laws, 0.02)


def leaking_policy() -> Policy:
    """Return a policy of which 2 % of the tokens are the draft's draws."""

    def accept(parts, proposal, probs_bnV, window):
        is_drafts_bn = window.read_as("accept").uniform(ACCEPT) < 0.02
        tokens_bn = torch.where(is_drafts_bn, proposal.tokens_bn, race(parts, probs_bnV, window))
        accepted_bn = tokens_bn == proposal.tokens_bn
        return Acceptance(tokens_bn, accepted_bn, window.whole(accepted_bn))

    return Policy("leak", Contract.QUALITY, race_alone, accept, race)


WRONG = (
    *(guided(f"guidance {by:+g}", by) for by in (-0.2, 0.2)),
    *(heated(f"temperature {tau - 1:+.0%}", wanted, tau)
      for tau, wanted in ((0.95, 20), (1.05, 20), (0.98, 150), (1.02, 150))),
    Wrong("2 % of the tokens from the draft's law", 40, leaking_law, policy=leaking_policy),
    Wrong(
        "top-p 0.99 dropped", 20, lambda seen, si: seen.guided_BLV[:, PYRAMID.draws.span(si)].softmax(-1),
        lambda: {"filter_logits": lambda logits, k, p: logits}, top_p=0.99,
    ),
)  # fmt: skip


def request(first: int, top_p: float = 0.0, count: int = BATCH) -> Request:
    """Return a batch of images, labels in turn."""
    images = tuple(range(first, first + count))
    return Request(tuple(k % 10 for k in images), 11, top_p=top_p, images=images, count=count)


def along(decoder: SpeculativeDecoder, asked: Request) -> TokensSeen:
    """Let a decoder draw a batch; return what bets need."""
    trace = decoder.decode(asked, MODELS.noise(asked))
    return TokensSeen.along(MODELS, BUDGET, asked, trace.tokens_BL)


def won_of(seen: TokensSeen) -> Tensor:
    """Return what bets win of a batch."""
    bets = bet(seen, PYRAMID, usual_alternatives(seen.request, V))
    won_BAS = bets.won_BAS.clone()
    for row, draw in bets.forbidden:  # it ends the run at once
        won_BAS[row, 0, PYRAMID.draws.level_of(draw)] = CERTAIN
    return won_BAS


def pool_of(wrong: Wrong, images: int, file: Path | None) -> Tensor:
    """Return what bets win of so many images of a decoder that is wrong at every scale."""
    if file is not None and file.exists():
        return torch.load(file)
    decoder = SpeculativeDecoder(MODELS, DecoderOptions(1, policy=wrong.policy()))
    decoder.parts = replace(decoder.parts, **wrong.parts())
    batches = (request(first, wrong.top_p) for first in range(0, images, BATCH))
    won_NAS = torch.cat([won_of(along(decoder, asked)) for asked in batches])
    if file is not None:
        torch.save(won_NAS, file)
    return won_NAS


def last_scale_of(wrong: Wrong, right: Sequence[TokensSeen]) -> Tensor:
    """Return what bets win of images that are right but for the last scale.

    The networks see no token of it: their rows are those of right images.
    """
    won, span, generator = [], PYRAMID.draws.span(LAST), torch.Generator().manual_seed(1)
    for seen in right:
        law_BlV, tokens_BL = wrong.law(seen, LAST), seen.tokens_BL.clone()
        drawn_n = torch.multinomial(law_BlV.flatten(0, 1), 1, generator=generator)
        tokens_BL[:, span] = drawn_n.view(law_BlV.shape[:2])
        won.append(won_of(replace(seen, tokens_BL=tokens_BL)))
    return torch.cat(won)


def runs_of(won_NAS: Tensor, top_p: float) -> list[tuple[int, int]]:
    """Return of every run the images until the bets are won, and the scale that is named then."""
    alternatives, found = usual_alternatives(request(0, top_p), V), []
    won_NAT = torch.cat((won_NAS, won_NAS.sum(2, keepdim=True)), 2)
    for run in range(RUNS):
        order = torch.randint(len(won_NAS), (MOST,), generator=torch.Generator().manual_seed(run))
        wealth = Wealth(alternatives, PYRAMID.S)
        log_N = (won_NAT[order].cumsum(0) + wealth.stake_AT).flatten(1).logsumexp(1)
        crossed = torch.nonzero(log_N >= wealth.goal).flatten().tolist()
        wealth.won_AT = won_NAT[order[: crossed[0] + 1 if crossed else MOST]].sum(0)
        named = wealth.best()[1] if crossed else -2
        if wealth.won_AT.max() > CERTAIN / 2:
            named = int(wealth.won_AT[:, :-1].amax(0).argmax())
        found.append((crossed[0] + 1 if crossed else MOST, named))
    return found


def alternatives_table(images: int, folder: Path | None) -> str:
    """Return the table of wrong laws."""
    lines = [
        f"| wrong law | median images, all scales | wanted | median images, scale {LAST} alone | scale {LAST} named |",
        "|---|---:|---:|---:|---:|",
    ]
    decoder = SpeculativeDecoder(MODELS, DecoderOptions(1, policy=parse_policy(f"code:{PYRAMID.S}")))
    right = {
        top_p: [along(decoder, request(first, top_p)) for first in range(0, images, BATCH)]
        for top_p in {wrong.top_p for wrong in WRONG}
    }
    for number, wrong in enumerate(WRONG):
        alone = runs_of(last_scale_of(wrong, right[wrong.top_p]), wrong.top_p)
        everywhere = runs_of(pool_of(wrong, images, folder and folder / f"{number}.pt"), wrong.top_p)
        figures = [f"{median(n for n, _ in runs):g}" for runs in (everywhere, alone)]
        named = sum(scale == LAST for _, scale in alone)
        lines.append(f"| {wrong.name} | {figures[0]} | {wrong.wanted} | {figures[1]} | {named} of {RUNS} |")
        print(lines[-1], flush=True)
    return "\n".join([*lines, ""])


def bugs_table() -> str:
    """Return the table of planted bugs of `rejection`."""
    lines = ["| planted bug | what it changes | images until it is found |", "|---|---|---:|"]
    for mutant in MUTANTS:
        word = mutant.id.partition(".")[2]
        if word not in LAW_BUGS:
            continue
        # a scale that is accepted whole is needed before a bonus scale, and a filter where its zeros are lost
        length, top_p = 1 if word == "sharp-bonus" else 3, 0.95 if word == "opened" else 0.0
        decoder = mutant(MODELS, Settings(length, True, "rejection"))
        wealth, first = Wealth(usual_alternatives(request(0, top_p), V), PYRAMID.S), 0
        while not wealth.is_lost and first < MOST_OF_BUG:
            asked = request(first, top_p, FEW if first < BATCH else BATCH)
            bets = bet(along(decoder, asked), PYRAMID, wealth.alternatives)
            for row in range(asked.B):
                dropped = tuple(each for each in bets.forbidden if each[0] == row)
                if not wealth.is_lost:
                    wealth.take(replace(bets, won_BAS=bets.won_BAS[row : row + 1], forbidden=dropped))
            first += asked.B
        found = str(wealth.images) if wealth.is_lost else f"not in {wealth.images}"
        change = mutant.change.replace("|target − draft|", "abs(target − draft)")  # a bar ends a cell
        lines.append(f"| `{mutant.id}` | {change} | {found} |")
        print(lines[-1], flush=True)
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=40, help="images of every wrong law")
    parser.add_argument("--keep", type=Path, help="folder that keeps what was won")
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"laws": alternatives_table(given.pool, given.keep), "bugs": bugs_table()}
    PAGE.write_bytes(replaced_parts(PAGE, parts).encode())


if __name__ == "__main__":
    main()
