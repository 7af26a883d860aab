"""Stand-in for CoDe's `models.var`: one large model drafts, a small one refines."""

import torch

from . import helpers
from .helpers import sample_with_top_k_top_p_ as plain_sampler
from .network import Base
from .switches import ON


def sample_with_top_k_top_p_(logits_BlV, top_k=0, top_p=0.0, rng=None, num_samples=1, temp=1):
    """Filter, divide by the temperature, draw."""
    if temp == 1:
        return plain_sampler(logits_BlV, top_k, top_p, rng, num_samples)
    return helpers.sample_with_top_k_top_p_(logits_BlV.div_(temp), top_k, top_p, rng, num_samples)


class VAR(Base):
    """Draft and refine."""

    @torch.no_grad()
    def autoregressive_infer_cfg_draft(
        self, B, label_B, g_seed=None, cfg=1.5, top_k=(), top_p=0.0, more_smooth=False, exit_num=7, temp=(),
    ):  # fmt: skip
        self.rng.manual_seed(g_seed)
        cond_RD, lvl_pos, x = self.first(self.labels(B, label_B, self.rng))
        S, P, hub = len(self.patch_nums), self.patch_nums[-1], []
        f_hat = x.new_zeros(B, self.Cvae, P, P)
        self.caching(True)
        for si, pn in enumerate(self.patch_nums[:exit_num]):
            logits = self.guided(self.get_logits(self.run(x, cond_RD), cond_RD), si, cfg, B)
            idx_Bl = sample_with_top_k_top_p_(logits, top_k[si], top_p, self.rng, temp=temp[si])[:, :, 0]
            h = self.soft_codes(logits, si, self.rng) if more_smooth else self.codes(idx_Bl, pn)
            f_hat, raw = self.vae_quant_proxy[0].get_next_autoregressive_input(si, S, f_hat, h)
            if si < S - 1:
                hub.append(raw.view(B, self.Cvae, -1).transpose(1, 2))
                x = self.next_input(raw, si + 1, lvl_pos)
        self.caching(False)
        return f_hat, torch.cat(hub, 1)

    @torch.no_grad()
    def autoregressive_infer_cfg_refine(
        self, B, label_B, g_seed=None, cfg=1.5, top_k=(), top_p=0.0, more_smooth=False, draft=None, f_hat=None,
        entry_num=7, temp=(),
    ):  # fmt: skip
        self.rng.manual_seed(g_seed)
        cond_RD, lvl_pos, x0 = self.first(self.labels(B, label_B, self.rng))
        S, end = len(self.patch_nums), self.begin_ends[entry_num][1]
        x = (self.word_embed(draft) + lvl_pos[:, 1:end]).repeat(2, 1, 1)
        x = torch.cat((x0, x), 1)
        mask = self.attn_bias_for_masking[:, :, :end, :end]
        if "refine-causal" in ON:
            mask = torch.full((end, end), -torch.inf).triu(1)[None, None]
        if "refine-emptied" in ON:
            self.caching(False)
        else:
            self.caching(True)
        logits_RnV = self.get_logits(self.run(x, cond_RD, mask), cond_RD)
        for si in range(entry_num + 1):
            begin, end = self.begin_ends[si]
            logits = self.guided(logits_RnV[:, begin:end], si, cfg, B)
            if si == entry_num or "out-of-step" not in ON:
                idx_Bl = sample_with_top_k_top_p_(logits, top_k[si], top_p, self.rng, temp=temp[si])[:, :, 0]
        for si in range(entry_num, S):
            pn = self.patch_nums[si]
            if si > entry_num:
                logits = self.guided(self.get_logits(self.run(x, cond_RD), cond_RD), si, cfg, B)
                idx_Bl = sample_with_top_k_top_p_(logits, top_k[si], top_p, self.rng, temp=temp[si])[:, :, 0]
            h = self.soft_codes(logits, si, self.rng) if more_smooth else self.codes(idx_Bl, pn)
            f_hat, raw = self.vae_quant_proxy[0].get_next_autoregressive_input(si, S, f_hat, h)
            if si < S - 1:
                x = self.next_input(raw, si + 1, lvl_pos)
        self.caching(False)
        return self.picture(f_hat)
