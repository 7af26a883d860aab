"""A network whose logits are nudged and whose inputs may be given: how a plain sampler is led off its path, or along
another's.

Promise: everything but the nudge and the given inputs is the network's own; the sampler that runs it is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from harness.models.network import Condition, Network
from harness.models.pair import ModelPair
from harness.protocol.pyramid import ScalePyramid
from harness.reference.latent import next_input

Nudge = Callable[[Tensor], Tensor]  # logits_RlV of a whole scale -> the same, moved


class Nudged:
    """One network; `nudge` moves its logits, `raw` replaces the raw input of the scales that it names.

    Args:
        network: whose passes run.
        nudge: what to make of the logits of a scale.
        raw: raw_BlC by number of tokens, which tells the scales of a pyramid apart.
    """

    def __init__(self, network: Network, nudge: Nudge, raw: Mapping[int, Tensor]) -> None:
        self._network, self._nudge, self._raw = network, nudge, raw
        self.config, self.weights, self.pyramid = network.config, network.weights, network.pyramid
        self.device, self.dtype, self.start_1D = network.device, network.dtype, network.start_1D
        self.pos_LD, self.lvl_SD = network.pos_LD, network.lvl_SD
        self.bytes, self.to = network.bytes, network.to
        self.condition, self.hidden = network.condition, network.hidden

    def embed(self, raw_BnC: Tensor) -> Tensor:
        """Return the embedding of the given input, or of the sampler's own."""
        given = self._raw.get(raw_BnC.shape[1])
        return self._network.embed(raw_BnC if given is None else given)

    def logits(self, h_RnD: Tensor, condition: Condition) -> Tensor:
        """Return the network's logits, nudged."""
        return self._nudge(self._network.logits(h_RnD, condition))


def as_they_are(logits_RlV: Tensor) -> Tensor:
    """Return the logits: no nudge."""
    return logits_RlV


def nudged(models: ModelPair, nudge: Nudge = as_they_are, raw: Mapping[int, Tensor] | None = None) -> ModelPair:
    """Return a pair whose draft and target are nudged alike."""
    draft, target = (Nudged(network, nudge, raw or {}) for network in (models.draft, models.target))
    return replace(models, draft=draft, target=target)


def raw_inputs(f_hat_SBCPP: Tensor, pyramid: ScalePyramid) -> dict[int, Tensor]:
    """Return the raw input of every scale but the first that follows from f_hat after the one before it.

    Args:
        f_hat_SBCPP: f_hat after every scale.
        pyramid: scales.

    Returns:
        raw_BlC by number of tokens, for `Nudged`.
    """
    return {pyramid.tokens(si): next_input(f_hat_SBCPP[si - 1], si, pyramid) for si in pyramid if si > 0}
