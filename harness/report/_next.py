"""What to do after a verdict, and the command that does it."""

import re
import shlex
from pathlib import Path

from harness.decoders import NO_SO_FAR, OWN_DECODER
from harness.judge import Divergence, Verdict
from harness.protocol import Contract
from harness.runs import NOT_FOUND, OF_RECORDS, Verification, recipe_words

SPEED = ("graphs", "compile")  # which a covering design takes none of
# of a recipe, what leaves the question as it is; with any other option the design must be asked for
PLAIN = {*SPEED, "implementation", "contract", "sequential", "strict", "may_differ_from", "timeout", "memory",
         "in_process", "budgets", "device"}  # fmt: skip
LOCATE = " --locate"
OF_ALL = ("crash", "process", "f_hat")  # wrong at any scale, whatever is left out
ASK = "ask what was not exercised"
RAISED = re.compile(r" in [^,]+, ([^\s,]+:\d+)")  # of a crash, file and line

# What to do after the other commands, by exit status; `verify` asks the decoder that was under test.
AFTER = {
    "evidence": {
        0: "keep --state FILE, and feed it later images, too, but none again",
        1: "sdvar-harness verify asks which part of the decoder is wrong",
        3: "give it images of other seeds; with --state FILE it keeps what it has counted (docs/evidence.md)",
    },
    "golden": {
        0: "sdvar-harness verify judges a decoder",
        1: "mend the code; after a change that was intended, sdvar-harness golden diff (docs/goldens.md)",
        3: "check it on the platform that recorded it, or record it here (docs/goldens.md)",
    },
    "mutants": {
        0: "sdvar-harness verify judges a decoder by the same laws",
        1: "make a law of that family stricter (CONTRIBUTING.md), then hunt again with --only FAMILY",
    },
    "parts": {
        0: "the parts hold; ask the whole decoder more settings: {verify}",
        1: "mend the first part that is named, then ask again: later ones may follow from it",
        3: "show the parts that are missing (docs/laws.md), or ask the whole decoder: {verify}",
    },
    "quality": {
        0: "sdvar-harness verify asks whether the decoder does what it says",
        1: "choose a stricter rule of acceptance, or allow a larger loss (docs/quality.md)",
        3: "draw more images: --images, or --run FILE --resume where the run was kept",
    },
    "replay": {
        0: "ask the whole question again: {verify}",
        1: "mend it, then repeat this{more}",
        3: "give what is named as missing; or ask the whole run again, if a new decoder does it right: {verify}",
    },
}  # fmt: skip

NextStep = tuple[str, str]  # what to do, and the command line that does it; empty where none does


def next_steps(result: Verification) -> list[NextStep]:
    """Return what to do after a verdict, what helps first first: a defect whose line is not named yet is looked at."""
    step, repeat = next_step(result), repeat_step(result)
    both = [repeat, step] if repeat is not None and repeat[1].endswith(LOCATE) else [step, repeat]
    return [each for each in both if each is not None]


def next_step(result: Verification) -> NextStep | None:
    """Return what to do after a verdict; None where nothing was wrong and no command line made the run."""
    record, exercised, verdict = result.record, result.exercised, result.verdict
    first = result.first_divergence
    if verdict is Verdict.DEFECT and first is not None:
        return _mend(result, first), ""
    if record is None or record.recipe is None:
        return None
    if not result.is_whole:
        given = {word.partition("=")[0] for word in record.command}
        if "--run" in given or result.is_kept:
            more = [] if "--resume" in given else ["--resume"]
            return "go on where it stopped", shlex.join(["sdvar-harness", *record.command, *more])
        names = ("run.db", *(f"run-{k}.db" for k in range(2, 100)))
        free = next((name for name in names if not Path(name).exists()), "FILE")
        anew = shlex.join(["sdvar-harness", *record.command, "--run", free])
        return "ask again so that it can be stopped (after a stop add --resume)", anew
    name = record.recipe.get("implementation", OWN_DECODER)
    if verdict is Verdict.INCONCLUSIVE and (result.covers or not exercised.missing):
        if exercised.not_done:
            return "let it do what it refuses or declines, or ask a part: --seeds 0:4 --draft-len 5", ""
        return "mend what is named as inconclusive, or decline it (docs/own-decoder.md), then ask again", ""
    if exercised.missing and not result.covers:
        return ASK, _design(result)
    if Contract.QUALITY.value in result.contract:
        loss = ["--contract", "C", "--max-loss", "0.1"]
        what = "judge the loss: --max-loss (extra [quality]) or --max-nats, on 10,000 images (docs/quality.md)"
        return what, shlex.join([*shlex.split(_design(result)), *loss])
    if name == OWN_DECODER:
        return "judge a decoder of yours; this writes one to change", "sdvar-harness init mydecoder.py"
    if any(option == "checkout" for option, _ in result.plan.settings[0].options):
        return "keep it right: docs/pytest.md asks published code in your tests", ""
    return "keep it right: ask it in your tests (extra [pytest])", f"pytest --sdvar-implementation {shlex.quote(name)}"


def _mend(result: Verification, first: Divergence) -> str:
    """Return what to change after a defect."""
    if result.claims is not None and result.claims.broken:
        return "choose a stricter rule of acceptance, or allow a larger loss (docs/quality.md)"
    raised = RAISED.search(first.detail) if first.component == "crash" else None
    what = f"what the first defect names: {first.component}" if raised is None else f"{raised[1]}, where it raises"
    if any(NO_SO_FAR in text for text in result.so_far[:1]):
        what += ", or let so_far() return what was made before: it shows what was wrong first (docs/own-decoder.md)"
    if result.line == NOT_FOUND:
        what = "what is kept between decodes or settings, or goes wrong over many (one batch alone is right)"
    if before := result.before_the_crash:
        what = f"what was wrong before it crashed: {before.component}"
    is_asked = result.against or result.record is None or result.record.terms.may_differ_from is not None
    is_lossy = result.contract == Contract.QUALITY.value and not is_asked
    if is_lossy and first.scale > 0 and first.component not in OF_ALL:
        option = f"--may-differ-from {first.scale} (docs/accelerators.md)"
        what += f", or, if it leaves work out on purpose from scale {first.scale} on, say so: {option}"
    law = " (its line ends in the call that replays the case)" if result.laws and result.laws.broken else ""
    return f"{'compare' if result.against else 'mend'} {what}{law}; then ask again"


def repeat_step(result: Verification) -> NextStep | None:
    """Return what decodes the batch of the first defect without others; None where nothing does."""
    first = result.first_divergence
    if result.verdict is not Verdict.DEFECT or first is None or not result.alone or result.line == NOT_FOUND:
        return None
    is_searched = result.line and "--locate" not in str(result.line)
    searched = first.component in ("crash", *OF_RECORDS) or result.against or is_searched
    if result.plan.decodes == 1:  # it was decoded alone
        return None if searched else ("name the line of code", result.alone + LOCATE)
    needs = " (IDENTICAL there: the decoder keeps something of other decodes or images; the whole run shows it)"
    shows = "" if searched else " and name the line of code"
    return f"decode only the batch of the first defect{shows}{needs}", result.alone + ("" if searched else LOCATE)


def _design(result: Verification) -> str:
    """Return the command line that asks the covering design of the same decoder on the same networks."""
    assert result.record is not None and result.record.recipe is not None
    recipe, settings = result.record.recipe, result.plan.settings[0]
    words = recipe_words({name: text for name, text in recipe.items() if name not in SPEED}, settings)
    words += ["--policy", settings.policy] if settings.policy not in ("", "coupled") else []
    return shlex.join(words + ["--cover"] * bool(recipe.keys() - PLAIN))
