"""Laws of work: what a decode computes, and what it keeps of it. They are about cost: no token shows it."""

from dataclasses import replace

from harness.judge import require
from harness.laws._case import Case
from harness.laws._law import EXACT, Subject, law, require_shown_rounds
from harness.laws._oracle import Scripted, decode_drafted, needs_exact
from harness.protocol import Round


@law("work.least", "cache", policies=(*EXACT, "rejection"))
def least(subject: Subject, case: Case) -> bool:
    """A pass computes what its cache lacks, and no more; a cache keeps whatever is final of what it saw.

    Of a decoder that shows the parts which keep its caches: others may compute what they like anew. A rejected scale
    is final once it is corrected, and its keys depend on the scales before it alone.
    """
    needs_exact(case, "rounding decides whether a draft = target is accepted whole")
    subject.parts(case, "new_cache", "update_state_with_accepted_tokens")
    case = replace(case.at_least(4), labels=(0, 1, 2), order="image")
    decoded = decode_drafted(subject, case, Scripted.of(case, ((0, 1), (1, 0), (1, 2))))
    require_shown_rounds(decoded)
    for image, turns in enumerate(decoded.rounds):
        draft_cache = 0
        for k, turn in enumerate(turns):
            expected = _least(case, turn, draft_cache)
            seen = {name: getattr(turn, name) for name in expected}
            where = f"round {k} of image {image}, from scale {turn.first}, {turn.drafted} drafted"
            # a cache grows by what is computed: fewer rows than that were not counted
            is_counted = all(seen[name] >= expected[name] for name in ("target_rows", "draft_rows"))
            caches = all(seen[name] == expected[name] for name in ("target_cache", "draft_cache"))
            require(seen == expected, f"{where}: {seen}, not {expected}", "counts" if caches and not is_counted else "")
            draft_cache = turn.draft_cache
        calls = decoded.target_calls[image], decoded.draft_calls[image]
        least_calls = len(turns), sum(turn.drafted for turn in turns)
        require(calls == least_calls, f"image {image}: {calls} passes of target and draft, not {least_calls}")
    return any(turn.corrected and turn.drafted > 1 for turn in decoded.turns)


def _least(case: Case, turn: Round, draft_cache: int) -> dict[str, int]:
    """Return rows and caches of a round, the draft's cache before it given: the target's ends at the final scales."""
    pyramid, after = case.pyramid, turn.first + turn.drafted
    final = pyramid.begin(turn.first + turn.finished)
    submitted = after + (case.bonus and after < pyramid.S)
    return {
        "target_rows": pyramid.begin(submitted) - pyramid.begin(turn.first),
        "target_cache": final,
        "draft_rows": pyramid.begin(after) - draft_cache,
        "draft_cache": min(pyramid.begin(after), final),
    }
