"""Filter, draw and the soft draw, with the published signatures."""

import torch
import torch.nn.functional as F

from .switches import ON


def sample_with_top_k_top_p_(logits_BlV, top_k=0, top_p=0.0, rng=None, num_samples=1):
    """Filter in place; return (B, l, num_samples)."""
    B, l, V = logits_BlV.shape
    if top_k > 0:
        logits_BlV.masked_fill_(logits_BlV < logits_BlV.topk(top_k, dim=-1)[0][..., -1:], -torch.inf)
    if top_p > 0:
        ascending, order = logits_BlV.sort(dim=-1)
        drop = ascending.softmax(-1).cumsum_(-1) <= 1 - top_p
        drop[..., -1:] = False
        logits_BlV.masked_fill_(drop.scatter(-1, order, drop), -torch.inf)
    probs = logits_BlV.softmax(-1).view(-1, V)
    if "most-likely" in ON:
        return probs.argmax(-1).view(B, l, 1)
    return torch.multinomial(probs, num_samples=num_samples, replacement=True, generator=rng).view(B, l, num_samples)


def gumbel_softmax_with_rng(logits, tau=1.0, hard=False, eps=1e-10, dim=-1, rng=None):
    """Return the soft one-hot vectors of `more_smooth`."""
    if rng is None:
        return F.gumbel_softmax(logits, tau=tau, hard=hard, eps=eps, dim=dim)
    gumbels = -torch.empty_like(logits).exponential_(generator=rng).log()
    return ((logits + gumbels) / tau).softmax(dim)
