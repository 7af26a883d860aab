"""The combined query: inputs of several scales in one pass, each at its own positions.

Promise: row r of scales first..last sits at absolute position begin(first)+r, with that position's embeddings; both
guidance halves get the same input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.models.network import Condition, Network


def build_combined_query(network: Network, condition: Condition, raw_BnC: Tensor, first: int, last: int) -> Tensor:
    """Return x_RnD of scales `first`..`last`.

    Args:
        network: whose embeddings are used.
        condition: of the R = 2B guidance rows.
        raw_BnC: raw inputs of positions begin(first)..end(last)-1; the one of position 0 is not used.
        first: first scale of the window.
        last: last scale of the window.

    Source: spec §4.
    """
    pyramid = network.pyramid
    by_scale = [network.lvl_SD[si] + network.pos_LD[pyramid.span(si)] for si in range(first, last + 1)]
    lvl_pos_nD = torch.cat(by_scale)
    x_BnD = network.embed(raw_BnC) + lvl_pos_nD
    x_RnD = torch.cat((x_BnD, x_BnD))
    if first == 0:
        x_RnD[:, 0] = condition.cond_RD + network.start_1D + lvl_pos_nD[0]
    return x_RnD
