"""A decoder that writes into what it shares with its oracle breaks every law, and spoils no other case."""

from __future__ import annotations

import pytest

from harness import ModelPair, Request, SeededNoise, Settings, Trace, build_decoder
from harness.laws import Case, Violation, check
from harness.models.pair import pair_checksums

LAWS = ("acceptance.token-identical", "state.once", "guidance.unconditional")
CASE = Case(patch_nums=(1, 2, 3))


class Writes:
    """A decoder that changes the target before every decode."""

    contract = "token-identical"

    def __init__(self, models: ModelPair, settings: Settings) -> None:
        self.models, self.inner = models, build_decoder(models, settings)

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        self.models.target.weights["head.weight"][0, 0] += 1e-3
        return self.inner.decode(request, noise)


def writes_when_built(models: ModelPair, settings: Settings):
    models.target.weights["head.bias"].zero_()
    return build_decoder(models, settings)


class ChangesRequest(Writes):
    """A decoder that switches guidance off in the request that it is given."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        decoded = self.inner.decode(request, noise)
        object.__setattr__(request, "cfg", 0.0)
        return decoded


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("factory", [Writes, writes_when_built], ids=["decode", "factory"])
def test_writing_into_the_networks_breaks_every_law(law: str, factory):
    due = pair_checksums(CASE.models)
    with pytest.raises(Violation):
        check(law, factory, CASE)
    assert pair_checksums(CASE.models) == due
    check(law, build_decoder, CASE)


def test_writing_into_the_request_is_told():
    with pytest.raises(Violation, match="decoding changed the request"):
        check("state.once", ChangesRequest, CASE)


def test_what_else_holds_does_not_hide_it():
    with pytest.raises(Violation, match=r"the decoder wrote into target\.head\.weight"):
        check("state.refusal", Refuses, CASE)


class Refuses(Writes):
    """A decoder that writes and then refuses, as the law of refusals wants it to."""

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        self.models.target.weights["head.weight"][0, 0] += 1e-3
        raise ValueError("label")
