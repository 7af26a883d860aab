"""The sequential sampler, written plainly from the spec page; never imports `speculative`."""

from harness.reference._cachefree import (
    JointLaw, joint_law, law_distance, prefix_inputs, sample_cachefree, teacher_forced,
)  # fmt: skip
from harness.reference._handoff import HandOff, sample_handoff
from harness.reference._policies import PolicyRule, decode_by_policy, length_after, length_begin, length_wanted
from harness.reference._steps import FamilySteps, block_causal, draw, family_of, filter_logits, hand_off_mask, race
from harness.reference._var import accumulate, guidance_labels, guide, next_input, scale_input
from harness.reference.sequential import GrowingCache, Progress, Walk, sample_sequential, walked
