"""Bits as codes of length 1."""

import torch.nn.functional as F
from infinity.switches import ON
from torch import nn


class Binary(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def indices_to_codes(self, bits, label_type="int_label"):
        assert label_type == "bit_label"
        if "bits-reversed" in ON:
            bits = bits.flip(-1)
        sign = 1 if "bits-negated" not in ON else -1
        codes = F.normalize((bits * 2.0 - 1) * sign * self.dim**-0.5, dim=-1)
        return codes.permute(0, 4, 1, 2, 3)


class MultiScaleBSQ(nn.Module):
    def __init__(self, *, dim, codebook_size, new_quant=False):
        super().__init__()
        assert codebook_size == 2**dim
        assert new_quant
        self.lfq, self.z_interplote_up = Binary(dim), "trilinear"
