"""The speculative decoder; never imports `reference`."""

from harness.speculative._accept import Acceptance, Outcome, Policy, Proposal, Window
from harness.speculative._cache import CacheWindow, KVCache, NewCache
from harness.speculative._draft_length import DraftLength
from harness.speculative._forward import Pass, forward, forward_window
from harness.speculative._policies import IMPOSED, parse_policy, policy_speculates
from harness.speculative._round import draft_generate_batch, propose_scale, run_round
from harness.speculative._rules import (
    accept_by_kl,
    accept_by_rate,
    is_in_top,
    is_own_draw,
    most_likely,
    race,
    race_alone,
)
from harness.speculative._state import Buffers, DecodeState, Side
