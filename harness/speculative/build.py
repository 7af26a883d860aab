"""The harness's own decoder as a factory: what `--implementation` takes by default, and what code outside wraps."""

from __future__ import annotations

from harness.models.pair import ModelPair
from harness.protocol.decoder import Settings
from harness.speculative.policies import parse
from harness.speculative.sampler import Options, SpeculativeDecoder
from harness.speculative.tools.observer import Observer


def build_decoder(models: ModelPair, settings: Settings, observer: Observer | None = None) -> SpeculativeDecoder:
    """Build the speculative decoder.

    Args:
        models: draft, target and VQ-VAE.
        settings: how to speculate.
        observer: debug tools; None = off.

    Raises:
        InputError: settings that do not exist or do not fit the networks.
    """
    return SpeculativeDecoder(
        models, Options(settings.draft_len, settings.bonus, parse(settings.policy)), observer=observer
    )
