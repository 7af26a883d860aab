"""All randomness of a run, addressed by (seed, image, scale, stream, draw, value); a draw is a position's channel.

Promise: a number depends on its address alone. Any scale may be read in any order and as often as needed, and always
gives the same numbers, because the generator's state before every scale is kept; a ledger tells who read what.

A categorical draw is an exponential race, ``argmax(probs / E)`` with E ~ Exp(1): E never depends on the logits, so the
draft, the target and the reference that read the same address meet the same numbers (spec §7).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from harness.errors import NoiseError
from harness.protocol._request import Request
from harness.protocol.pyramid import ScalePyramid

TOKEN = "token"  # E of the token draw, read by draft, target and reference alike
SMOOTH = "smooth"  # E' of `more_smooth`
DRAFT = "draft"  # E of a draft that must be independent of the target (contract B)
ACCEPT = "accept"  # u of an acceptance test (contract B)
CORRECT = "correct"  # E of a draw from the residual (contract B)
STREAMS = (TOKEN, SMOOTH, DRAFT, ACCEPT, CORRECT)

BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1
NUMBERS = torch.float32  # whatever default the process that draws them has


class Noise(Protocol):
    """What a sampler may ask for. `reader` is a word for the ledger: "draft", "target", "reference", …"""

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        """Return E_BlV ~ Exp(1), float32, of scale `si`, any stream but ACCEPT; the caller must not write into it."""

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        """Return u_Bl, uniform in [0, 1), float32, of scale `si`, any stream; the caller must not write into it."""

    def labels(self, classes: int) -> Tensor:
        """Return int64 labels_B."""


Reading = Callable[[int, str, str], Tensor]  # (scale, stream, reader) -> numbers


class Ledger:
    """Remember who read which address; under contract B, where that is `exclusive`, refuse a second reader."""

    def __init__(self, exclusive: bool = False) -> None:
        self.exclusive = exclusive
        self.readers: dict[tuple[int, str], list[str]] = {}
        self.notes: list[str] = []

    def enter(self, si: int, stream: str, reader: str) -> None:
        """Note one reading. Raises `NoiseError` where the ledger is exclusive and somebody else read this address."""
        readers = self.readers.setdefault((si, stream), [])
        if self.exclusive and readers and reader not in readers:
            raise NoiseError(
                f"reader={reader}: the numbers of scale {si}, stream {stream} belong to {readers[0]}; "
                "under contract B every consumer reads a stream of its own"
            )
        if reader not in readers:
            readers.append(reader)


class NoiseBefore:
    """A source of numbers that stands before another one, `noise`: a derived one says what becomes of a reading."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def labels(self, classes: int) -> Tensor:
        """Return int64 labels_B."""
        return self.noise.labels(classes)

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        """Return E_BlV of scale `si`. Effects: those of the source."""
        return self.read(self.noise.exponential, si, stream, reader)

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        """Return u_Bl of scale `si`. Effects: those of the source."""
        return self.read(self.noise.uniform, si, stream, reader)

    def read(self, numbers: Reading, si: int, stream: str, reader: str) -> Tensor:
        """Return what is read; `numbers` reads the source."""
        return numbers(si, stream, reader)


class ExclusiveNoise(NoiseBefore):
    """A source of numbers with an exclusive ledger before it: what contract B reads through.

    Raises `NoiseError` on reading, when another consumer read the same address before.
    """

    def __init__(self, noise: Noise) -> None:
        super().__init__(noise)
        self.ledger = Ledger(exclusive=True)

    def read(self, numbers: Reading, si: int, stream: str, reader: str) -> Tensor:
        """Return what is read. Effects: an entry in both ledgers."""
        self.ledger.enter(si, stream, reader)
        return numbers(si, stream, reader)


class RowsOf(NoiseBefore):
    """Some images of a batch's numbers; `rows` are int64 indices into it."""

    def __init__(self, noise: Noise, rows: Tensor) -> None:
        super().__init__(noise)
        self.rows = rows

    def labels(self, classes: int) -> Tensor:
        """Return int64 labels_b."""
        return self.noise.labels(classes)[self.rows]

    def read(self, numbers: Reading, si: int, stream: str, reader: str) -> Tensor:
        """Return the numbers of these images. Effects: an entry in the batch's ledger."""
        return numbers(si, stream, reader)[self.rows]


@dataclass(frozen=True)
class RecordedNumbers:
    """Numbers that somebody drew elsewhere and kept."""

    tensors: Mapping[str, Tensor]  # E_BlV or u_Bl1, by stream/scale
    request: Request  # whose they are

    def rows(self, request: Request, si: int, stream: str) -> Tensor:
        """Return the numbers of another request's images, which are among those recorded.

        Raises `NoiseError`: they were not recorded.
        """
        name, known = f"{stream}/{si}", self.request.addresses
        missing = name not in self.tensors or not set(request.addresses) <= set(known)
        if missing or (request.order == "batch" and request.addresses != known):
            raise NoiseError(f"stream={stream}: the numbers of scale {si} for these images were not recorded")
        return self.tensors[name][[known.index(address) for address in request.addresses]]


class SeededNoise:
    """Numbers from PyTorch generators on the device of the models.

    The request gives seed, image addresses and the order: "batch" is the published one (one generator through
    E₀, [E'₀,] E₁, [E'₁,] …, each E one (B·l, V) tensor), "image" gives every image generators of its own.

    Effects: draws from generators of its own, never from the global one. Keeps what was drawn, B·L·V floats a stream.
    Source: spec §7.
    """

    def __init__(
        self,
        request: Request,
        pyramid: ScalePyramid,
        V: int,  # codebook size
        device: torch.device,  # where the generators live; CPU and CUDA give different numbers
        ledger: Ledger | None = None,  # who read what; a new one by default
        recorded: RecordedNumbers | None = None,  # numbers to hand out in place of generated ones
    ) -> None:
        self.recorded = recorded
        self.request, self.pyramid, self.V, self.device = request, pyramid, V, device
        self.ledger = ledger or Ledger()
        self._chains: dict[tuple[int, int, str], _Chain] = {}
        self._kept: dict[tuple[int, str], Tensor] = {}
        self._labels: Tensor | None = None

    def note(self, text: str) -> None:
        """Say how far the decode is, in a clause: shown where it ends half-way. Effects: on the ledger."""
        self.ledger.notes.append(text)

    def labels(self, classes: int) -> Tensor:
        """Return labels_B: those of the request, or drawn first of all from the batch's generator (spec §7)."""
        if self.request.labels is not None:
            return torch.tensor(self.request.labels, device=self.device)
        if self._labels is None:
            classes = self.request.conditions(classes)
            if self._chains:
                raise NoiseError("labels=None: labels are drawn before any scale is read; ask for them first")
            chain = self._batch_chain(TOKEN)
            uniform_1C = torch.full((1, classes), 1.0 / classes, device=self.device)
            drawn_1B = torch.multinomial(uniform_1C, self.request.B, replacement=True, generator=chain.generator)
            self._labels = drawn_1B.reshape(self.request.B)
            chain.states = [chain.generator.get_state()]
        return self._labels

    def exponential(self, si: int, stream: str, reader: str) -> Tensor:
        """Return E_BlV ~ Exp(1), float32, of scale `si`. Effects: one entry in the ledger.

        Raises `NoiseError`: stream ACCEPT, which holds one uniform number a token; a stream that is none of `STREAMS`.
        """
        if stream == ACCEPT:
            raise NoiseError(f"stream={ACCEPT}: holds one uniform number a token; read it with uniform")
        return self._read(si, stream, reader)

    def uniform(self, si: int, stream: str, reader: str) -> Tensor:
        """Return u_Bl, uniform in [0, 1), float32, of scale `si`. Effects: one entry in the ledger.

        Of another stream than ACCEPT it is that of the token's first exponential: 1 − exp(−E), the largest float32
        below 1 where that rounds to 1. Whoever reads both reads one number twice.
        """
        first_Bl = self._read(si, stream, reader)[..., 0]
        return first_Bl if stream == ACCEPT else (-torch.expm1(-first_Bl)).clamp_max(BELOW_ONE)

    def _read(self, si: int, stream: str, reader: str) -> Tensor:
        if stream not in STREAMS:
            # no `InputError`: a decoder's mistake is no refusal of the request
            raise NoiseError(f"stream={stream}: is no stream of numbers; pass one of {', '.join(STREAMS)}")
        self.ledger.enter(si, stream, reader)
        if (si, stream) not in self._kept:
            self._kept[si, stream] = self._draw(si, stream)
        return self._kept[si, stream]

    def _draw(self, si: int, stream: str) -> Tensor:
        if self.recorded is not None:
            return self.recorded.rows(self.request, si, stream).to(self.device)
        B, l = self.request.B, self.pyramid.draws.counts[si]
        width = 1 if stream == ACCEPT else self.V
        if self.request.order == "batch":
            # spec §7: one whole (B·l, V) tensor a scale, in scale order
            return self._batch_chain(stream).read(si, stream, B).view(B, l, width)
        rows = [self._image_chain(*address, stream).read(si, stream, 1) for address in self.request.addresses]
        return torch.stack(rows).view(B, l, width)

    def _batch_chain(self, stream: str) -> _Chain:
        published = stream in (TOKEN, SMOOTH)
        key = (self.request.seed, -1, TOKEN if published else stream)
        if key not in self._chains:
            seed = self.request.seed if published else derive_seed(self.request.seed, -1, stream)
            streams = ((TOKEN, SMOOTH) if self.request.more_smooth else (TOKEN,)) if published else (stream,)
            self._chains[key] = _Chain(self, seed, streams)
        return self._chains[key]

    def _image_chain(self, seed: int, image: int, stream: str) -> _Chain:
        key = (seed, image, stream)
        if key not in self._chains:
            self._chains[key] = _Chain(self, derive_seed(seed, image, stream), (stream,))
        return self._chains[key]


class _Chain:
    """One generator walked through its addresses in order, with the state before each kept."""

    def __init__(self, noise: SeededNoise, seed: int, streams: tuple[str, ...]) -> None:
        self.pyramid, self.V, self.device = noise.pyramid, noise.V, noise.device
        self.addresses = [(si, stream) for si in noise.pyramid for stream in streams]
        self.generator = torch.Generator(device=noise.device)
        self.generator.manual_seed(seed)
        self.states = [self.generator.get_state()]
        self.at = 0  # the address that the generator is about to draw

    def read(self, si: int, stream: str, count: int) -> Tensor:
        wanted = self.addresses.index((si, stream))
        for index in range(min(wanted, len(self.states) - 1), wanted + 1):
            if index != self.at:
                self.generator.set_state(self.states[index])
            numbers = self._next(index, count)
            self.at = index + 1
            if index + 1 == len(self.states):
                self.states.append(self.generator.get_state())
        return numbers

    def _next(self, index: int, count: int) -> Tensor:
        si, stream = self.addresses[index]
        rows = count * self.pyramid.draws.counts[si]
        if stream == ACCEPT:
            return torch.rand(rows, 1, device=self.device, dtype=NUMBERS, generator=self.generator)
        E_nV = torch.empty(rows, self.V, device=self.device, dtype=NUMBERS)
        return E_nV.exponential_(1, generator=self.generator)


def derive_seed(seed: int, image: int, stream: str) -> int:
    """Mix an address into the 63-bit seed of a stream of its own (BLAKE2b, so that near addresses share nothing)."""
    digest = hashlib.blake2b(f"{seed}/{image}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
