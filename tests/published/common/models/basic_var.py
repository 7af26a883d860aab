"""Blocks with a cache of their own, called by keywords."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .switches import ON


class FFN(nn.Module):
    """Feed forward."""

    def __init__(self, D, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, hidden), nn.Linear(hidden, D)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SelfAttention(nn.Module):
    """Attention; the cache is switched on and off, and emptied in both cases."""

    def __init__(self, D, H, l2_norm):
        super().__init__()
        self.H, self.c, self.l2_norm = H, D // H, l2_norm
        self.scale = 1.0 if l2_norm else 0.25 / math.sqrt(D // H)
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, H, 1, 1), 4.0).log())
        self.mat_qkv = nn.Linear(D, 3 * D, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))
        self.register_buffer("zero_k_bias", torch.zeros(D))
        self.proj = nn.Linear(D, D)
        self.caching, self.cached_k, self.cached_v = False, None, None

    def kv_caching(self, enable):
        self.caching, self.cached_k, self.cached_v = enable, None, None

    def forward(self, x, attn_bias):
        R, n, D = x.shape
        qkv = F.linear(x, self.mat_qkv.weight, torch.cat((self.q_bias, self.zero_k_bias, self.v_bias)))
        q, k, v = qkv.view(R, n, 3, self.H, self.c).permute(2, 0, 3, 1, 4).unbind(0)
        if self.l2_norm:
            q = F.normalize(q, dim=-1).mul(self.scale_mul_1H11.clamp_max(math.log(100)).exp())
            k = F.normalize(k, dim=-1)
        if self.caching:
            if self.cached_k is None:
                self.cached_k, self.cached_v = k, v
            else:
                k = self.cached_k = torch.cat((self.cached_k, k), dim=2)
                v = self.cached_v = torch.cat((self.cached_v, v), dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(R, n, D))


class AdaLNSelfAttn(nn.Module):
    """One block."""

    def __init__(self, D, H, l2_norm, shared_aln):
        super().__init__()
        self.D, self.attn, self.ffn = D, SelfAttention(D, H, l2_norm), FFN(D, 4 * D)
        self.ln_wo_grad = nn.LayerNorm(D, elementwise_affine=False, eps=1e-6)
        self.shared_aln = shared_aln
        if shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, D) / D**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(inplace=False), nn.Linear(D, 6 * D))

    def forward(self, x, cond_BD, attn_bias):
        six = self.ada_gss + cond_BD if self.shared_aln else self.ada_lin(cond_BD).view(-1, 1, 6, self.D)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six.unbind(2)
        if "crashes-late" in ON and x.shape[1] == 9:
            raise IndexError("list index out of range")
        if "hangs" in ON and x.shape[1] == 9:
            while True:
                pass
        x = x + self.attn(self.ln_wo_grad(x).mul(scale1.add(1)).add_(shift1), attn_bias).mul_(gamma1)
        return x + self.ffn(self.ln_wo_grad(x).mul(scale2.add(1)).add_(shift2)).mul(gamma2)


class AdaLNBeforeHead(nn.Module):
    """Layer norm before the head."""

    def __init__(self, D):
        super().__init__()
        self.D, self.ln_wo_grad = D, nn.LayerNorm(D, elementwise_affine=False, eps=1e-6)
        self.ada_lin = nn.Sequential(nn.SiLU(inplace=False), nn.Linear(D, 2 * D))

    def forward(self, x, cond_BD):
        scale, shift = self.ada_lin(cond_BD).view(-1, 1, 2, self.D).unbind(2)
        return self.ln_wo_grad(x).mul(scale.add(1)).add_(shift)


class SharedAdaLin(nn.Linear):
    """Six vectors for all blocks."""

    def forward(self, cond_BD):
        return super().forward(cond_BD).view(-1, 1, 6, self.out_features // 6)
