"""The judgement on decodes: form, tokens and ties, tensors and components, distances."""

from harness.judge._against import changed_counts, judge_against, judge_ends
from harness.judge._bets import ALPHA, HELD, Alternative, Wealth, gains, usual_alternatives
from harness.judge._compare import differences, largest_difference
from harness.judge._components import INPUT_ULPS
from harness.judge._decode import image_distances, judge, judge_along, judge_partial_trace, unverified_scales
from harness.judge._evidence import Evidence, Searches
from harness.judge._form import (
    TRACE_DTYPES,
    expected_tensors,
    made_plain,
    malformed,
    tokens_to_consume,
    unreadable,
    wrong_shape,
)
from harness.judge._likelihood import TokensSeen, bet, law_of, weigh_law
from harness.judge._line import CodeLine, LineSearch
from harness.judge._shown_law import nats_of, undrawn
from harness.judge._suspects import ACCEPTED, UNEXPLAINED
from harness.judge._ties import costs_of_draws, exponentials, margin_bound, margins_of_differing_tokens, weigh_run
from harness.judge._verdict import (
    CALLS_AND_ROWS, Broken, Distance, Divergence, Judgement, PartLaw, PartVerdict, Verdict, require, worst_verdict,
)  # fmt: skip
from harness.judge._wrong_decode import WrongDecode
