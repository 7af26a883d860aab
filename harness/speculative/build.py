"""The harness's own decoder as a factory: what `--implementation` takes by default, and what code outside wraps."""

from __future__ import annotations

from dataclasses import replace

from harness.models.network import Network
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
    options = Options(settings.draft_len, settings.bonus, parse(settings.policy), graphs=settings.graphs)
    return SpeculativeDecoder(models.compiled() if settings.compiled else models, options, observer=observer)


def build_sequential(models: ModelPair, network: Network, graphs: bool = False) -> SpeculativeDecoder:
    """Build sequential decoding by one network out of the same parts: it stands in the draft's place, and is trusted.

    Args:
        models: whose VQ-VAE and name it takes.
        network: the one that decides; compiled or not.
        graphs: record and replay device work.

    Raises:
        InputError: graphs on another device than the first CUDA device.
    """
    trusted = parse(f"handoff:{models.pyramid.S}")
    alone = replace(models, draft=network, target=network)
    return SpeculativeDecoder(alone, Options(1, policy=trusted, keep_intermediates=False, graphs=graphs))
