"""What a decoder under test may claim, what it must offer, and how it should speculate.

Promise: anything with `contract` and `decode(request, noise) -> Trace` can be judged. `tokens_BL`, `f_hat_BCPP` and
`scale_writes_BS` are indispensable; the more of the trace is filled in, the closer the harness can point at a mistake.
This is the one place that names the three contracts: texts elsewhere are read from here.

Source: design §1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from harness.errors import InputError
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import Noise


class Contract(StrEnum):
    """The claims, the strongest first; each entails those after it. The value is the name that results carry."""

    TOKENS = "token-identical"
    LAW = "distribution-identical"
    QUALITY = "quality-preserving"

    @property
    def letter(self) -> str:
        """A, B or C: the short name, as on the command line."""
        return "ABC"[list(Contract).index(self)]

    @property
    def claim(self) -> str:
        """What is claimed, one clause."""
        return {
            "A": "same seed, same tokens as sequential target decoding",
            "B": "the law of sequential target decoding",
            "C": "lossy by a stated rule, at a measured distance",
        }[self.letter]

    def entails(self, other: Contract) -> bool:
        """Tell whether a decoder that keeps this contract keeps `other` too."""
        return self.letter <= other.letter

    @classmethod
    def of(cls, text: str) -> Contract:
        """Return the contract of a letter or a name. Raises `InputError` for neither."""
        for contract in cls:
            if text in (contract.letter, contract.value):
                return contract
        raise InputError("contract", text, "must be A, B or C", "drop it to take the decoder's own")


@dataclass(frozen=True)
class Settings:
    """How a decoder should speculate: what a factory gets besides the models."""

    # scales proposed per round: a number, or the text of another rule (`speculative.draft_length`); empty where the
    # decoder is not asked for one
    draft_len: int | str = 5
    bonus: bool = False  # submit the scale after the drafted ones too
    policy: str = "coupled"  # coupling and acceptance rule, as on the command line; empty where it has none of ours
    options: tuple[tuple[str, str], ...] = ()  # (name, value) of ``--option NAME=VALUE``: settings of its own
    graphs: bool = False  # the harness's own decoder: record and replay its device work as CUDA graphs
    compiled: bool = False  # likewise: run its networks' blocks through PyTorch's compiler

    def option(self, name: str, default: str = "") -> str:
        """Return the value of an option, the last one where it was given twice."""
        return dict(self.options).get(name, default)

    @property
    def greedy(self) -> bool:
        """True when the oracle takes the most likely token in place of a draw."""
        return self.policy == "greedy"

    def __str__(self) -> str:
        # with options it has a rule of its own; the usual policy goes without saying
        usual = self.policy == "coupled" and self.draft_len != ""
        words = [self.policy] if self.policy and not self.options and not usual else []
        words += [f"draft_len={self.draft_len}"] if self.draft_len != "" else []
        words += [word for word in ("bonus", "graphs", "compiled") if getattr(self, word)]
        return " ".join(words + [f"{n}={v}" for n, v in self.options if n != "checkout"]) or "as it is"


# What a decoder may declare not to do, by an attribute `declines` that is read once, before its first decode: each word
# with the decodes that ask it. Images of one batch diverge by themselves: no decode asks for that.
DECLINES: Mapping[str, Callable[[Settings, Request], bool]] = {
    "bonus": lambda settings, request: settings.bonus,
    "draft rules": lambda settings, request: isinstance(settings.draft_len, str) and settings.draft_len != "",
    "diverging batches": lambda settings, request: False,
    "several images": lambda settings, request: request.B > 1,
    "top_k": lambda settings, request: any(top_k > 0 for top_k, _ in request.every_filter),
    "top_p": lambda settings, request: any(top_p > 0 for _, top_p in request.every_filter),
    "filters": lambda settings, request: bool(request.filters),
    "guidance": lambda settings, request: request.is_guided,
    "batch order": lambda settings, request: request.order == "batch",
    "more_smooth": lambda settings, request: request.more_smooth,
}

OF_SETTINGS = {"bonus": "bonus", "draft rules": "draft_len"}  # those that settings ask for, with the field that does


def declined(declines: Sequence[str], settings: Settings, request: Request) -> str:
    """Return what a decode asks of those that a decoder declares not to do; empty where it asks none."""
    return next((word for word in declines if DECLINES[word](settings, request)), "")


class Implementation(Protocol):
    """A decoder under test; `declines`, where it has that attribute, names what it does not do (`DECLINES`)."""

    @property
    def contract(self) -> str:
        """What it claims: the name of a `Contract`, e.g. ``token-identical``."""

    def decode(self, request: Request, noise: Noise) -> Trace:
        """Draw a batch; all randomness comes from `noise`, read as "draft" and "target"."""
