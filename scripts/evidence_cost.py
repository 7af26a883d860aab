"""What bets on a law cost beside the decodes that they judge: a table of docs/evidence.md, which `evidence` writes."""

import time
from statistics import median

import torch

from harness import ModelPair, load_digits
from harness.judge import TokensSeen, bet, usual_alternatives
from harness.judge._likelihood import rows_along
from harness.models import random_pair
from harness.protocol import Request
from harness.reference.sequential import sample as sample_sequential
from harness.rounding import joint_budget
from harness.speculative import parse_policy
from harness.speculative.sampler import DecoderOptions, SpeculativeDecoder
from scripts.pages import line, table


def cost_table(device: str) -> str:
    """Return what bets cost beside the decodes of decoder and reference."""
    lines = []
    sizes = [("digits", load_digits(), (1, 8, 100) if device == "cuda" else (1, 4))]
    if device == "cuda":
        sizes.append(("d16-d30 (random weights)", random_pair("d16-d30", "cuda"), (1, 8)))
    for name, pair, batches in sizes:
        models = pair.in_mode(device, "float32")
        for B in batches:
            for words, filters in (("none", {}), ("top-k 100, top-p 0.95", {"top_k": 100, "top_p": 0.95})):
                asked = Request(tuple(k % 10 for k in range(B)), 11, images=tuple(range(B)), count=B, **filters)
                # the first one warms up
                decodes, bets = (median(each) for each in zip(*(costs(models, asked) for _ in range(4)), strict=True))
                share = f"{bets / decodes:.2f}"
                lines.append(line(name, B, words, f"{decodes * 1e3:.0f}", f"{bets * 1e3:.0f}", share))
    return table("networks|images:|filter|both decodes, ms:|bets and the draft's pass, ms:|share:", lines)


def costs(models: ModelPair, asked: Request) -> tuple[float, float]:
    """Return the seconds of decoder and reference, and those of bets and the draft's pass.

    The target's rows along the tokens are known from the judgement.
    """
    decoder = SpeculativeDecoder(models, DecoderOptions(3, True, parse_policy("rejection")))
    labels_B = torch.tensor(asked.labels, device=models.device)
    begin = clock(models)
    tokens_BL = decoder.decode(asked, models.noise(asked)).tokens_BL
    sample_sequential(models.target, models.vae, asked, models.noise(asked))
    decoded = clock(models)
    rows_along(models.draft, models, asked, labels_B, tokens_BL)
    drafted = clock(models)
    seen = TokensSeen.along(models, joint_budget(models, compiled=False), asked, tokens_BL)
    known = clock(models)
    bet(seen, models.pyramid, usual_alternatives(asked, models.target.config.V))
    return decoded - begin, drafted - decoded + clock(models) - known


def clock(models: ModelPair) -> float:
    """Return the time now, all work done."""
    if models.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
