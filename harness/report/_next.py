"""What to do after a verdict, and the command that does it."""

import shlex

from harness.decoders import OWN_DECODER
from harness.judge import Verdict
from harness.protocol import Contract
from harness.runs import Verification, recipe_words

SPEED = ("graphs", "compile")  # which a covering design takes none of
# of a recipe, what leaves the question as it is; with any other option the design must be asked for
PLAIN = {*SPEED, "implementation", "contract", "sequential", "strict", "timeout", "memory", "in_process", "budgets",
         "device"}  # fmt: skip
ALONE, LINE = "this shows that image alone", ", with --locate the line of code, too"
BATCH = "if IDENTICAL, the fault needs its batch or the requests before it: ask the whole question again"


NextStep = tuple[str, str]  # what to do, and the command line that does it; empty where none does


def next_step(result: Verification) -> NextStep | None:
    """Return what to do after a verdict; None where nothing was wrong and no command line made the run."""
    record, exercised, verdict = result.record, result.exercised, result.verdict
    first = result.first_divergence
    if verdict is Verdict.DEFECT and first is not None:
        if result.claims is not None and result.claims.broken:
            return "choose a stricter rule of acceptance, or allow a larger loss (docs/quality.md)", ""
        what = f"{'compare' if result.against else 'mend'} what the first defect names, {first.component}"
        if result.alone:
            shown = ALONE + LINE * (not result.line)
            return f"{what}; {shown}{f' ({BATCH})' * (result.plan.images > 1)}", result.alone
        law = " (its line ends in the call that replays the case)" if result.laws and result.laws.broken else ""
        return f"{what}{law}; then ask again", ""
    if record is None or record.recipe is None:
        return None
    if not result.is_whole:
        if "--run" in record.command:
            return "go on where it stopped", shlex.join(["sdvar-harness", *record.command, "--resume"])
        return "ask again with --run FILE: with --resume such a run goes on where it stopped", ""
    name = record.recipe.get("implementation", OWN_DECODER)
    if verdict is Verdict.INCONCLUSIVE and (result.covers or not exercised.missing):
        return "mend what is named as inconclusive, or declare it (docs/own-decoder.md), then ask again", ""
    if exercised.missing and not result.covers:
        return "ask what was not exercised", _design(result)
    if Contract.QUALITY.value in result.contract:
        return "measure what the loss is: docs/quality.md", "sdvar-harness quality --max-loss 0.1"
    if name == OWN_DECODER:
        return "judge a decoder of yours; this writes one to change", "sdvar-harness init mydecoder.py"
    if any(option == "checkout" for option, _ in result.plan.settings[0].options):
        return "keep it right: docs/pytest.md asks published code in your tests", ""
    return "keep it right: ask it in your tests (extra [test])", f"pytest --sdvar-implementation {shlex.quote(name)}"


def _design(result: Verification) -> str:
    """Return the command line that asks the covering design of the same decoder on the same networks."""
    assert result.record is not None and result.record.recipe is not None
    recipe, settings = result.record.recipe, result.plan.settings[0]
    words = recipe_words({name: text for name, text in recipe.items() if name not in SPEED}, settings)
    words += ["--policy", settings.policy] if settings.policy not in ("", "coupled") else []
    return shlex.join(words + ["--cover"] * bool(recipe.keys() - PLAIN))
