"""Stand-in for VAR's `models.var`."""

import torch

from .helpers import sample_with_top_k_top_p_
from .network import Base
from .switches import ON

if "no-class" not in ON:

    class VAR(Base):
        """Sequential sampling."""

        @torch.no_grad()
        def autoregressive_infer_cfg(self, B, label_B, g_seed=None, cfg=1.5, top_k=0, top_p=0.0, more_smooth=False):
            rng = None
            if g_seed is not None:
                self.rng.manual_seed(g_seed)
                rng = self.rng
            misbehave()
            label_B = self.labels(B, label_B, rng)
            cond_RD, lvl_pos, x = self.first(label_B)
            S, P = len(self.patch_nums), self.patch_nums[-1]
            f_hat = x.new_zeros(B, self.Cvae, P, P)
            self.caching(True)
            for si, pn in enumerate(self.patch_nums):
                if "stops-early" in ON and si == S - 1:
                    break
                logits = self.guided(self.get_logits(self.run(x, cond_RD), cond_RD), si, cfg, B)
                idx_Bl = sample_with_top_k_top_p_(logits, top_k=top_k, top_p=top_p, rng=rng)[:, :, 0]
                soft = more_smooth and "deaf-to-smooth" not in ON
                h = self.soft_codes(logits, si, rng) if soft else self.codes(idx_Bl, pn)
                f_hat, raw = self.vae_quant_proxy[0].get_next_autoregressive_input(si, S, f_hat, h)
                if si < S - 1:
                    x = self.next_input(raw, si + 1, lvl_pos if "wrong-positions" not in ON else lvl_pos.roll(1, 1))
            self.caching(False)
            return self.picture(f_hat)


def misbehave():
    """What a decoder must not leave behind."""
    if "patches-torch" in ON:
        torch.rand = torch.ones
    if "default-dtype" in ON:
        torch.set_default_dtype(torch.float64)
    if "moves-generator" in ON:
        torch.rand(1)


if "other-signature" in ON:

    class VAR(Base):
        """Takes other arguments."""

        def autoregressive_infer_cfg(self, batch):
            raise NotImplementedError
