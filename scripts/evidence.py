"""How soon bets find a wrong law on digits, and which planted bugs of contract B they find: tables of docs/evidence.md.

Every decoder draws whole images by a law that is wrong in one thing, at all scales or at one. What the bets win of an
image is measured once; a run is such images, drawn with replacement, until the bets are won.

    python -m scripts.evidence --device cuda                     # minutes of an H200; --tables names some of them
    # one script for all tables of the page, which share the laws and where images are drawn
    python -m scripts.evidence --pool 16 --tables laws,bugs      # some 20 minutes of a CPU
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from harness import ModelPair, load_digits
from harness.judge import TokensSeen, Wealth, bet, usual_alternatives
from harness.mutants import MUTANTS
from harness.protocol import Contract, Request, Settings
from harness.protocol.noise import ACCEPT
from harness.quality import Source, digits_means
from harness.quality._draw import BASE, LAW
from harness.quality._gather import ImageSet
from harness.quality._rows import measure_rows
from harness.reference import family_of
from harness.reference.sequential import sample as sample_sequential
from harness.rounding import joint_budget, set_precision
from harness.speculative import Acceptance, Policy, parse_policy, race, race_alone
from harness.speculative.parts import parts_of
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from scripts.evidence_cost import cost_table
from scripts.pages import DOCS, line, replaced_parts, table
from scripts.two_samples import compare_samples

PAGE = DOCS / "evidence.md"
MODELS = load_digits()
PYRAMID, V, LAST = MODELS.pyramid, MODELS.target.config.V, MODELS.pyramid.S - 1
STEPS, RIGHT = family_of(MODELS.target), parts_of(MODELS.target)
RUNS, MOST, MOST_OF_BUG, FEW, CERTAIN = 20, 3000, 400, 2, 1e9
MODES = ("float32", "TF32", "bfloat16", "float16")
TABLES = ("laws", "bugs", "null", "beside", "cost")
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


@dataclass(frozen=True)
class Stage:
    """Where images are drawn."""

    models: ModelPair
    batch: int  # images

    @classmethod
    def of(cls, device: str, mode: str, batch: int) -> Stage:
        """Put digits on a device. Effects: process-wide precision."""
        set_precision(mode == "TF32")
        return cls(load_digits().in_mode(device, "float32" if mode == "TF32" else mode), batch)

    def sequential(self, policy: Policy | None = None) -> SpeculativeDecoder:
        """Return a decoder of one scale a round, by the target alone."""
        policy = policy or parse_policy(f"code:{PYRAMID.S}")
        return SpeculativeDecoder(self.models, DecoderOptions(1, policy=policy))

    def wrong(self, law: Wrong) -> SpeculativeDecoder:
        """Return a decoder that is wrong at every scale."""
        decoder = self.sequential(law.policy())
        decoder.parts = replace(decoder.parts, **law.parts())
        return decoder

    def drawn(self, decoder: SpeculativeDecoder, asked: Request) -> Tensor:
        """Return the tokens of a batch."""
        return decoder.decode(asked, self.models.noise(asked)).tokens_BL

    def along(self, decoder: SpeculativeDecoder, asked: Request) -> TokensSeen:
        """Let a decoder draw a batch; return what bets need."""
        budget = joint_budget(self.models, compiled=False)
        return TokensSeen.along(self.models, budget, asked, self.drawn(decoder, asked))

    def requests(self, images: int, **other: object) -> list[Request]:
        """Return batches of so many images."""
        starts = range(0, images, self.batch)
        return [replace(request(first, count=min(self.batch, images - first)), **other) for first in starts]


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


def request(first: int, top_p: float = 0.0, count: int = 8) -> Request:
    """Return a batch of images, labels in turn."""
    images = tuple(range(first, first + count))
    return Request(tuple(k % 10 for k in images), 11, top_p=top_p, images=images, count=count)


def won_of(seen: TokensSeen) -> Tensor:
    """Return what bets win of a batch."""
    bets = bet(seen, PYRAMID, usual_alternatives(seen.request, V))
    won_BAS = bets.won_BAS.clone()
    for row, draw in bets.forbidden:  # it ends the run at once
        won_BAS[row, 0, PYRAMID.draws.level_of(draw)] = CERTAIN
    return won_BAS


def pool_of(stage: Stage, law: Wrong, images: int) -> Tensor:
    """Return what bets win of so many images of a decoder that is wrong at every scale."""
    decoder = stage.wrong(law)
    return torch.cat([won_of(stage.along(decoder, asked)) for asked in stage.requests(images, top_p=law.top_p)])


def last_scale_of(law: Wrong, right: Sequence[TokensSeen]) -> Tensor:
    """Return what bets win of images that are right but for the last scale.

    The networks see no token of it: their rows are those of right images.
    """
    won, span, generator = [], PYRAMID.draws.span(LAST), torch.Generator().manual_seed(1)
    for seen in right:
        law_BlV, tokens_BL = law.law(seen, LAST).cpu(), seen.tokens_BL.clone()
        drawn_n = torch.multinomial(law_BlV.flatten(0, 1), 1, generator=generator)
        tokens_BL[:, span] = drawn_n.view(law_BlV.shape[:2]).to(tokens_BL)
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


def laws_table(stage: Stage, images: int) -> str:
    """Return the table of wrong laws."""
    lines = []
    right = {
        top_p: [stage.along(stage.sequential(), asked) for asked in stage.requests(images, top_p=top_p)]
        for top_p in {law.top_p for law in WRONG}
    }
    for law in WRONG:
        alone = runs_of(last_scale_of(law, right[law.top_p]), law.top_p)
        everywhere = runs_of(pool_of(stage, law, images), law.top_p)
        figures = [f"{median(n for n, _ in runs):g}" for runs in (everywhere, alone)]
        named = sum(scale == LAST for _, scale in alone)
        lines.append(line(law.name, figures[0], law.wanted, figures[1], f"{named} of {RUNS}"))
    head = f"wrong law|median images, all scales:|wanted:|median images, scale {LAST} alone:|scale {LAST} named:"
    return table(head, lines)


def bugs_table(stage: Stage) -> str:
    """Return the table of planted bugs of `rejection`."""
    lines = []
    for mutant in MUTANTS:
        word = mutant.id.partition(".")[2]
        if word not in LAW_BUGS:
            continue
        # a scale that is accepted whole is needed before a bonus scale, and a filter where its zeros are lost
        length, top_p = 1 if word == "sharp-bonus" else 3, 0.95 if word == "opened" else 0.0
        decoder = mutant(stage.models, Settings(length, True, "rejection"))
        wealth = Wealth(usual_alternatives(request(0, top_p), V), PYRAMID.S)
        few = [request(0, top_p, FEW), *(request(first, top_p) for first in range(FEW, MOST_OF_BUG, 8))]
        for asked in few:
            bets = bet(stage.along(decoder, asked), PYRAMID, wealth.alternatives)
            for row in range(asked.B):
                dropped = tuple(each for each in bets.forbidden if each[0] == row)
                if not wealth.is_lost:
                    wealth.take(replace(bets, won_BAS=bets.won_BAS[row : row + 1], forbidden=dropped))
            if wealth.is_lost:
                break
        found = str(wealth.images) if wealth.is_lost else f"not in {wealth.images}"
        change = mutant.change.replace("|target − draft|", "abs(target − draft)")  # a bar ends a cell
        lines.append(line(f"`{mutant.id}`", change, found))
    return table("planted bug|what it changes|images until it is found:", lines)


def null_table(modes: Sequence[str], device: str, batch: int, runs: int, images: int) -> str:
    """Return the table of right decoders: `rejection`, draft length 3 with bonus, half of the runs filtered."""
    lines = []
    for mode in modes:
        stage, alarms, highest, forbidden = Stage.of(device, mode, batch), 0, 0.0, 0
        decoder = SpeculativeDecoder(stage.models, DecoderOptions(3, True, parse_policy("rejection")))
        for run in range(runs):
            filters = {"top_k": 100, "top_p": 0.95} if run % 2 else {}
            requests = stage.requests(images, seed=1000 + run, **filters)
            wealth = Wealth(usual_alternatives(requests[0], V), PYRAMID.S)
            for asked in requests:
                wealth.take(bet(stage.along(decoder, asked), PYRAMID, wealth.alternatives))
            alarms, forbidden = alarms + wealth.is_lost, forbidden + wealth.forbidden
            highest = max(highest, wealth.highest)
        most = f"e^{highest:.1f} of e^{wealth.goal:.1f}"
        lines.append(line(mode, runs, images, alarms, forbidden, most))
    set_precision(False)
    head = "mode|runs:|images a run:|accused:|forbidden tokens:|largest wealth met, and needed:"
    return table(head, lines)


def beside_table(stage: Stage, images: int) -> str:
    """Return what a two-sample test of tokens and the Fréchet distance say of the wrong laws, at so many images."""
    lines, features = [], digits_means().features.to(stage.models.device)

    def images_of(source: Source, law: Wrong | None, seed: int) -> tuple[Tensor, ImageSet]:
        kept = []  # tokens, features and recognised classes of every batch
        for asked in stage.requests(images, seed=seed, top_p=law.top_p if law else 0.0):
            noise = stage.models.noise(asked)
            target, vae = stage.models.target, stage.models.vae
            trace = stage.wrong(law).decode(asked, noise) if law else sample_sequential(target, vae, asked, noise)
            kept.append((trace.tokens_BL, *features(vae.decode(trace.f_hat_BCPP))))
        tokens_NL, features_ND, classes_N = (torch.cat(each) for each in zip(*kept, strict=True))
        labels_N = torch.arange(images) % 10
        nothing = torch.zeros(0)
        return tokens_NL, ImageSet(source, "B", labels_N, features_ND.cpu(), classes_N.cpu(), nothing, nothing, 0.0)

    (_, base), (law_tokens_NL, law_set) = images_of(BASE, None, 11), images_of(LAW, None, 12)
    for law in WRONG:
        if law.top_p:  # another law is what all are compared with
            continue
        tokens_NL, other = images_of(Source(law.name, "wrong"), law, 13)
        told = compare_samples(tokens_NL, law_tokens_NL, PYRAMID, V, torch.Generator().manual_seed(0))
        row = measure_rows((base, law_set, other), None, features.classes, PYRAMID, 20)[-1]
        lines.append(line(law.name, f"{told.p:.2g}", row.drift))
    return table(f"wrong law|p of the token test, {images} images:|drift of the Fréchet distance:", lines)


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=int, default=400, help="images of every wrong law")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--modes", default=",".join(MODES), help="of right decoders")
    parser.add_argument("--runs", type=int, default=RUNS, help="right decoders a mode")
    parser.add_argument("--images", type=int, default=1000, help="of each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    batch = 250 if given.device == "cuda" else 8
    stage = Stage.of(given.device, "float32", batch)
    made: dict[str, Callable[[], str]] = {
        "laws": lambda: laws_table(stage, given.pool),
        "bugs": lambda: bugs_table(stage),
        "null": lambda: null_table(given.modes.split(","), given.device, batch, given.runs, given.images),
        "beside": lambda: beside_table(stage, given.images),
        "cost": lambda: cost_table(given.device),
    }
    for name in given.tables.split(","):
        PAGE.write_bytes(replaced_parts(PAGE, {name: made[name]()}).encode())


if __name__ == "__main__":
    main()
