"""The parts of a checkout, one by one: which laws the methods of an SDVAR object keep, by the names of the report.

Promise: each method is asked alone, with its own signature, in a state that is right; one that crashes is one row and
hides no other, and of a law every kind of finding is listed. The whole decode is not needed; a sampler that has no such
methods is asked by its passes (`parts_sampler`). Acceptance is asked by its own statement, the share of top-1 hits of a
scale over the whole batch; what it keeps of contract A, B or C is told apart from whether it does what it says.
"""

import inspect
from functools import partial

import torch
from torch import Tensor

from harness.adapters import _probe as probing
from harness.adapters._parallel import accepted_scales
from harness.adapters._parts_sampler import ask_hand_off_masks, ask_network, sampler_laws
from harness.adapters._parts_update import UPDATE_QUESTIONS
from harness.adapters._parts_window import WINDOW_QUESTIONS
from harness.adapters._probe import PartNoted, PartQuestion, Probe, ProbeWindow
from harness.adapters._published import Sampler
from harness.adapters._recorder import Recorder
from harness.judge import Broken, PartLaw, require
from harness.protocol import Request
from harness.reference import guide
from harness.rounding import Budget

THRESHOLD = 0.5  # that acceptance is asked with, where it takes one


def examine_parts(decoder: Sampler, request: Request, budget: Budget) -> list[PartLaw]:
    """Ask every law of every part of a decoder that is made of published code; return a row a law."""
    probe = Probe.of(decoder, request, budget)
    if decoder.loop is None:
        probe.rows += sampler_laws(decoder, request, budget)
    else:
        methods = {part: getattr(decoder.sdvar, part, None) for part in {each.part for each in SDVAR_QUESTIONS}}
        probe.ask(SDVAR_QUESTIONS, {part: method for part, method in methods.items() if callable(method)}.get)
    if decoder.sdvar is not None:
        ask_hand_off_masks(probe)
    ask_network(probe)
    return probe.rows


def _verify(probe: Probe) -> None:
    for window in probe.windows():
        recorder, guided = Recorder(probe.pyramid), list[Tensor]()
        with probe.aside():
            state, tokens = probe.state_at(window), probe.drafted(window)
            with recorder.watching(None, probe.code.target, probe.code.vae, probe.code.checkout.module):
                verified = probe.sdvar.target_verify_batch(tokens, state, probe.request.B)
            guided = list(verified[0] if isinstance(verified, tuple) else verified)
            require(len(guided) == window.count, f"{window}: logits of {len(guided)} scales")
        seen, K = recorder.passes[-1].cached if recorder.passes else -1, probe.pyramid.begin(window.first)
        cache = f"; the pass saw {seen} cached positions, not {K}" if seen != K else ""
        for si, logits in zip(window.scales, guided, strict=False):
            with probe.aside():
                try:
                    _require_guided(probe, logits, si, f"{window}: guided logits of scale {si}")
                except Broken as wrong:
                    raise Broken(f"{wrong}{cache}") from None


def _require_guided(probe: Probe, logits: Tensor, si: int, what: str) -> None:
    cfg, pyramid, B = probe.request.cfg, probe.pyramid, probe.request.B
    rows = probe.target.run.rows_RLV[:, pyramid.span(si)]
    expected = guide(rows, cfg, si, pyramid.S)
    why = {"it is not guided": rows[:B], "the halves are swapped": guide(rows.roll(B, 0), cfg, si, pyramid.S)}
    if si + 1 < pyramid.S:
        why["its guidance weight is that of the next scale"] = guide(rows, cfg, si + 1, pyramid.S)
    error = 2 * probe.budget.guided(cfg, pyramid.ramp(si)).logits
    probing.require_close(probing.require_tensor(logits, expected.shape, what), expected, error, what, why)


def _start(probe: Probe) -> None:
    state, S = probe.begin_state(2), probe.pyramid.S
    require(int(state.current_stage) == 0, f"current_stage begins at {state.current_stage}")
    require(int(state.total_stages) == S, f"total_stages is {state.total_stages}, not {S}")
    lvl = torch.tensor(probe.pyramid.levels(), device=probe.code.models.device)
    for name, side in (("draft", probe.draft), ("target", probe.target)):
        f_hat = probing.require_tensor(getattr(state, f"{name}_f_hat"), probe.f_hat(0).shape, f"{name}_f_hat")
        require(not bool(f_hat.any()), f"{name}_f_hat does not begin at zero")
        expected: dict[str, Tensor] = {
            "cond_BD": side.cond_RD,
            "lvl_pos": (side.network.lvl_SD[lvl] + side.network.pos_LD)[None],
            "next_token_map": side.run.x_RLD[:, probe.pyramid.span(0)],
        }
        for word, tensor in expected.items():
            actual = probing.require_tensor(getattr(state, f"{name}_{word}"), tensor.shape, f"{name}_{word}")
            halves = {"its halves are swapped": tensor.roll(probe.request.B, 0)} if len(tensor) > 1 else {}
            probing.require_close(actual, tensor, probe.input_error(tensor), f"{name}_{word}", halves)


def _alias(probe: Probe) -> None:
    state, B = probe.begin_state(2), probe.request.B
    if state.draft_f_hat.untyped_storage().data_ptr() != state.target_f_hat.untyped_storage().data_ptr():
        return
    harm = "draft_f_hat and target_f_hat are one tensor: what is drafted is accepted already, or counted twice"
    try:
        with probe.running(Recorder(probe.pyramid)):
            tokens = list(
                probing.call_by_known_names(probe.sdvar.draft_generate_batch, state=state, B=B, verbose=False)
            )
            drafted = state.target_f_hat.clone()
            probe.sdvar.update_state_with_accepted_tokens(tokens, 1, state, B)
    except Exception:  # nobody can tell what the shared tensor would do
        raise Broken(harm) from None
    for actual, expected in zip((drafted, state.target_f_hat), probe.f_hats_along(0, tokens[:1]), strict=True):
        same = actual.shape == expected.shape and bool(((actual - expected).abs() <= 2 * probe.budget.f_hat).all())
        require(same, harm)


def _accepted(probe: Probe, rule: str, hits: list[Tensor], first: int = 0) -> int:
    """Return how many scales a rule accepts where the target's best token is the drafted one just where `hits` say."""
    window, V = ProbeWindow(first, len(hits)), probe.target.network.config.V
    tokens, logits = probe.drafted(window), []
    for idx, hits_Bl in zip(tokens, hits, strict=True):
        best = torch.where(hits_Bl, idx, (idx + 1) % V)
        logits.append(12.0 * torch.nn.functional.one_hot(best, V).float())  # by a wide margin
    answer = probing.call_by_known_names(
        getattr(probe.sdvar, rule), draft_tokens=tokens, target_logits=logits, state=probe.state_at(window),
        B=probe.request.B, similarity_threshold=THRESHOLD, verbose=False,
    )  # fmt: skip
    count = accepted_scales(answer)
    if count is None:
        raise Broken(f"it returns a {type(answer).__name__}, not a number of scales")
    return count


def _hits(probe: Probe, si: int, share: float) -> Tensor:
    """Return hits (B,l), `share` of them, spread over images and positions."""
    shape = (probe.request.B, probe.pyramid.tokens(si))
    hits = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    order = torch.randperm(len(hits), generator=torch.Generator().manual_seed(si))
    hits[order[: round(share * len(hits))]] = True
    return hits.view(shape).to(probe.code.models.device)


def _accept_extremes(probe: Probe, rule: str) -> None:
    count = min(3, probe.pyramid.S)
    full, none = [1.0] * count, [0.0] * count
    for shares, expected in ((full, count), (none, 0), ([1.0, *none[1:]], 1)):
        accepted = _accepted(probe, rule, [_hits(probe, si, share) for si, share in enumerate(shares)])
        require(accepted == expected, f"shares of hits {shares}: {accepted} scales accepted, not {expected}")
    accepted = _accepted(probe, rule, [_hits(probe, si, share) for si, share in enumerate([0.0, *full[1:]])])
    require(accepted == 0, f"a scale without a hit before scales full of hits: {accepted} scales accepted, not 0")


def _threshold(probe: Probe, rule: str) -> float | None:
    """Return the threshold that it is given, or that the object was built with; None where nobody can know it."""
    parameters = inspect.signature(getattr(probe.sdvar, rule)).parameters
    if "similarity_threshold" in parameters:
        return THRESHOLD
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return None  # it may have a threshold of its own
    if probe.decoder.threshold is not None:
        return probe.decoder.threshold
    built = inspect.signature(type(probe.sdvar)).parameters.get("similarity_thresh")
    default = built.default if built is not None else None
    return float(default) if isinstance(default, int | float) else None


def _accept_share(probe: Probe, rule: str) -> None:
    si, threshold, lowest = probe.pyramid.S - 1, _threshold(probe, rule), None
    for step in range(21):
        hits = _hits(probe, si, step / 20)
        share = float(hits.float().mean())
        accepted = _accepted(probe, rule, [hits], si) == 1
        lowest = share if accepted and lowest is None else lowest
        require(accepted or lowest is None, f"a share of {share:.2f} is not accepted, where {lowest} is")
        if threshold is not None and abs(share - threshold) > 1e-6 and accepted != (share > threshold):
            said = f"{'accepted' if accepted else 'not accepted'}, with a threshold of {threshold:g}"
            raise Broken(f"a share of {share:.2f} of the batch's tokens is {said}")
    # hits in some images only count as a share of the whole batch
    uneven = torch.zeros_like(_hits(probe, si, 0.0))
    uneven[: max(1, probe.request.B // 2)] = True
    share = float(uneven.float().mean())
    even = _accepted(probe, rule, [_hits(probe, si, share)], si) == 1  # as many hits, in every image
    expected = even if threshold is None else share > threshold
    for hits in (uneven, uneven.flip(0)):
        accepted = _accepted(probe, rule, [hits], si) == 1
        if accepted != expected and (threshold is None or abs(share - threshold) > 1e-6):
            said = "accepted" if accepted else "not accepted"
            raise Broken(f"hits in some images only ({share:.2f} of the batch): {said}")


def _accept_contract(probe: Probe, rule: str) -> None:
    si, threshold, clauses = probe.pyramid.S - 1, _threshold(probe, rule), []
    hits = _hits(probe, si, 0.95 if threshold is None else min(0.95, threshold + 0.05))
    wrong = int((~hits).sum())
    if wrong and _accepted(probe, rule, [hits], si) == 1:
        clauses.append(f"it accepts {wrong} of {hits.numel()} tokens to which the target gives hardly a chance")
    if probe.request.B > 1:
        all_hits, first_image = torch.ones_like(hits), torch.ones_like(hits)
        first_image[1:] = False
        if _accepted(probe, rule, [all_hits], si) != _accepted(probe, rule, [first_image], si):
            clauses.append("image 0, the same in both, is accepted or not as its neighbours are")
    if clauses:
        raise PartNoted(f"contract C alone, neither A nor B: {'; '.join(clauses)}")
    raise PartNoted("no token was accepted that the target would not draw: A or B is not ruled out by this")


_BASIC, _ADVANCED = "basic_token_matching", "advanced_token_matching"
_EXTREMES = "All hits accept every scale, no hit accepts none, and a miss ends the run."
SDVAR_QUESTIONS = (
    *WINDOW_QUESTIONS,
    *UPDATE_QUESTIONS,
    PartQuestion("target_verify_batch", "positions.rows",
        "The guided logits of a window are those of sequential decoding.", _verify),
    PartQuestion("_initialize_inference_state", "state.start",
        "Conditions, positions and first inputs are those of the labels; f_hat is zero.", _start),
    PartQuestion("_initialize_inference_state", "state.alias",
        "Draft and target have an f_hat of their own, or sharing one does no harm.", _alias),
    PartQuestion(_BASIC, "accept.extremes", _EXTREMES, partial(_accept_extremes, rule=_BASIC)),
    PartQuestion(_BASIC, "accept.share",
        "A scale is accepted iff the batch's share of top-1 hits reaches the threshold.",
        partial(_accept_share, rule=_BASIC)),
    PartQuestion(_BASIC, "accept.contract", "Which contract does the rule keep?",
        partial(_accept_contract, rule=_BASIC)),
    PartQuestion(_ADVANCED, "accept.extremes", _EXTREMES, partial(_accept_extremes, rule=_ADVANCED)),
)  # fmt: skip
