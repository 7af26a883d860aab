"""The speculative decoder; never imports `reference`."""

from harness.speculative._accept import Acceptance, Outcome, Policy, Proposal, Window
from harness.speculative._draft_length import DraftLength
from harness.speculative._policies import (
    IMPOSED, accept_by_kl, accept_by_rate, is_in_top, is_own_draw, most_likely, parse_policy, policy_speculates, race,
    race_alone,
)  # fmt: skip
from harness.speculative._round import (
    Pass, draft_generate_batch, forward, forward_window, propose_scale, run_round, target_verify_batch,
)  # fmt: skip
from harness.speculative._state import Buffers, CacheWindow, DecodeState, KVCache, Launcher, NewCache, Side
from harness.speculative.parts import PARTS, Parts
