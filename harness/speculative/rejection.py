"""What contract B keeps of a draft, and what it draws in place of the rest (Leviathan et al., 2023, algorithm 1).

Promise: pure functions of probabilities; a decoder of somebody else's may take them, too.
"""

import torch
from torch import Tensor


def keep_drafted(u_Bn: Tensor, draft_prob_Bn: Tensor, target_prob_Bn: Tensor) -> Tensor:
    """Return kept_Bn, True with probability min(1, target/draft) of the drafted token, for u in [0, 1)."""
    return u_Bn * draft_prob_Bn < target_prob_Bn


def residual(draft_probs_BnV: Tensor, target_probs_BnV: Tensor) -> Tensor:
    """Return the law that a rejected token is drawn from anew: the normalised positive part of target − draft.

    It is the target's law where that part is empty.
    """
    above_BnV = (target_probs_BnV - draft_probs_BnV).clamp_min(0)
    mass_Bn1 = above_BnV.sum(-1, keepdim=True)
    return torch.where(mass_Bn1 > 0, above_BnV / mass_Bn1, target_probs_BnV)
