"""The part of the published VAR class that all three checkouts share; each `models.var` completes it."""

import math

import dist
import torch
from torch import nn

from .basic_var import AdaLNBeforeHead, AdaLNSelfAttn, SharedAdaLin
from .helpers import gumbel_softmax_with_rng
from .switches import ON


class Base(nn.Module):
    """Weights and buffers under the published names."""

    def __init__(
        self, vae, num_classes=1000, depth=16, embed_dim=1024, num_heads=16, shared_aln=False, attn_l2_norm=False,
        patch_nums=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    ):  # fmt: skip
        super().__init__()
        self.Cvae, self.V = vae.Cvae, vae.vocab_size
        self.depth, self.C, self.D, self.num_classes, self.patch_nums = (
            depth,
            embed_dim,
            embed_dim,
            num_classes,
            patch_nums,
        )
        self.L, self.first_l = sum(pn**2 for pn in patch_nums), patch_nums[0] ** 2
        self.begin_ends, at = [], 0
        for pn in patch_nums:
            self.begin_ends.append((at, at + pn**2))
            at += pn**2
        self.num_stages_minus_1 = len(patch_nums) - 1
        self.rng = torch.Generator(device=dist.get_device())
        self.vae_proxy, self.vae_quant_proxy = (vae,), (vae.quantize,)
        self.word_embed = nn.Linear(self.Cvae, self.C)
        self.uniform_prob = torch.full((1, num_classes), 1.0 / num_classes, device=dist.get_device())
        self.class_emb = nn.Embedding(num_classes + 1, self.C)
        self.pos_start = nn.Parameter(torch.randn(1, self.first_l, self.C) / math.sqrt(self.C))
        self.pos_1LC = nn.Parameter(torch.randn(1, self.L, self.C) / math.sqrt(self.C))
        self.lvl_embed = nn.Embedding(len(patch_nums), self.C)
        self.shared_ada_lin = nn.Identity()
        if shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(inplace=False), SharedAdaLin(self.D, 6 * self.D))
        self.blocks = nn.ModuleList([AdaLNSelfAttn(self.D, num_heads, attn_l2_norm, shared_aln) for _ in range(depth)])
        levels = torch.cat([torch.full((pn * pn,), si) for si, pn in enumerate(patch_nums)]).view(1, self.L, 1)
        self.register_buffer("lvl_1L", levels[:, :, 0].contiguous())
        mask = torch.where(levels >= levels.transpose(1, 2), 0.0, -torch.inf)
        self.register_buffer("attn_bias_for_masking", mask.reshape(1, 1, self.L, self.L).contiguous())
        self.head_nm, self.head = AdaLNBeforeHead(self.D), nn.Linear(self.D, self.V)
        print(f"[VAR config] depth={depth}, embed_dim={embed_dim}, num_heads={num_heads}")

    def get_logits(self, h_RnD, cond_RD):
        return self.head(self.head_nm(h_RnD.float(), cond_RD).float()).float()

    def labels(self, B, label_B, rng):
        if label_B is None:
            return torch.multinomial(self.uniform_prob, num_samples=B, replacement=True, generator=rng).reshape(B)
        if isinstance(label_B, int):
            return torch.full((B,), self.num_classes if label_B < 0 else label_B, device=self.lvl_1L.device)
        return label_B

    def first(self, label_B):
        """Return the condition, the position term and the first input."""
        cond_RD = self.class_emb(torch.cat((label_B, torch.full_like(label_B, fill_value=self.num_classes))))
        lvl_pos = self.lvl_embed(self.lvl_1L) + self.pos_1LC
        x = cond_RD.unsqueeze(1) + self.pos_start + lvl_pos[:, : self.first_l]
        return cond_RD, lvl_pos, x

    def run(self, x_RnD, cond_RD, mask=None):
        """All blocks."""
        shared = self.shared_ada_lin(cond_RD)
        for block in self.blocks:
            x_RnD = block(x=x_RnD, cond_BD=shared, attn_bias=mask)
        return x_RnD

    def caching(self, enable):
        for block in self.blocks:
            block.attn.kv_caching(enable)

    def guided(self, logits_RlV, si, cfg, B):
        t = cfg if "flat-guidance" in ON else cfg * si / self.num_stages_minus_1
        return (1 + t) * logits_RlV[:B] - t * logits_RlV[B:]

    def codes(self, idx_Bl, pn):
        """Return the code vectors of one scale as a map."""
        h_BlC = self.vae_quant_proxy[0].embedding(idx_Bl)
        return h_BlC.transpose(1, 2).reshape(-1, self.Cvae, pn, pn)

    def soft_codes(self, logits_BlV, si, rng):
        """Return the soft code vectors of `more_smooth`, of filtered logits, as a map."""
        ratio, pn = si / self.num_stages_minus_1, self.patch_nums[si]
        tau = 0.27 if "tau-constant" in ON else max(0.27 * (1 - ratio * 0.95), 0.005)
        soft = gumbel_softmax_with_rng(logits_BlV.mul(1 + ratio), tau=tau, rng=rng)
        return (soft @ self.vae_quant_proxy[0].embedding.weight).transpose(1, 2).reshape(-1, self.Cvae, pn, pn)

    def next_input(self, raw_BCpp, si, lvl_pos):
        """Return the input of scale `si` for both halves."""
        x = self.word_embed(raw_BCpp.view(len(raw_BCpp), self.Cvae, -1).transpose(1, 2))
        begin, end = self.begin_ends[si]
        return (x + lvl_pos[:, begin:end]).repeat(2, 1, 1)

    def picture(self, f_hat):
        return self.vae_proxy[0].fhat_to_img(f_hat).add_(1).mul_(0.5)
