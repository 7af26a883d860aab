"""The form of a certificate (docs/certificate.md): its records, the tree over its tokens, what is digested and signed.

Promise: a certificate has one text, tokens one spelling, a root one set of challenges. PyTorch is not imported.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import check_installed

STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "urn:sdvar-harness:certificate:v1"
PAYLOAD = "application/vnd.in-toto+json"
NAME = "certificate"
MOST_BYTES, MOST_VALUES, MOST_SCALES = 2**24, 40_000, 2**17  # of a file, some 7,000 images: what two seconds read
CHALLENGED = 16
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Image:
    """The tokens of one decoded image: themselves, or a digest a scale."""

    scales: str = ""  # 64 hexadecimal digits a scale
    tokens: str = ""  # base64 of packed bits
    expected: str = ""  # likewise, the reference's along them, where a claimed token differs
    ties: tuple[int, ...] = ()  # draws whose difference is a certified tie


@dataclass(frozen=True)
class Decoded:
    """One request under one setting."""

    setting: int
    request: int
    verdict: str
    refused: str  # why the decoder refused it; empty = it did not
    first: str  # its first defect, else its first tie, in words
    draws: int
    identical: int
    ties: int
    wrong_tokens: int
    unclaimed: int
    wrong_tensors: int
    defects: int
    images: tuple[Image, ...]  # empty where nothing was compared


@dataclass(frozen=True)
class SettingStated:
    contract: str  # A, B or C
    draft_len: int | str
    bonus: bool
    policy: str
    options: tuple[tuple[str, str], ...]  # of the factory; where its checkout lay is left out
    graphs: bool
    compiled: bool
    draft_noise: float | None


@dataclass(frozen=True)
class Layout:
    title: str
    family: str
    dtype: str
    draft_dtype: str
    patch_nums: tuple[int, ...]
    sides: tuple[tuple[int, int], ...]
    channels: int
    V: int
    classes: int

    @property
    def ends(self) -> list[int]:
        """One past the last draw of every scale, 0 before them."""
        sides = self.sides or tuple((pn, pn) for pn in self.patch_nums)
        return [0, *accumulate(h * w * self.channels for h, w in sides)]


@dataclass(frozen=True)
class Certificate:
    """All that a certificate says of a run; docs/certificate.md describes the fields."""

    digest: str
    decoder: Mapping[str, str | bool]
    settings: tuple[SettingStated, ...]
    requests: tuple[Mapping[str, Any], ...]
    networks: Layout
    weights: Mapping[str, str]
    platform: Mapping[str, Any]
    precision: Mapping[str, bool]
    versions: Mapping[str, str]
    budget: Mapping[str, Any]
    verdict: str
    whole: bool
    early: tuple[str, ...]
    inconclusive: tuple[str, ...]
    exercised: Mapping[str, Any]
    counts: Mapping[str, int]
    evidence: tuple[Mapping[str, Any], ...]
    laws: Mapping[str, Any] | None
    planted: Mapping[str, int] | None
    closest: tuple[tuple[int, int, float, float], ...]
    decodes: tuple[Decoded, ...]
    root: str
    challenged: tuple[int, ...]

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Decode and row of every image whose tokens are under the root, in its order."""
        return [(k, row) for k, decode in enumerate(self.decodes) for row in range(len(decode.images))]

    def image(self, number: int) -> tuple[Decoded, int, Image]:
        """Return an image by its number: decode, row of the batch, tokens."""
        decode, row = self.places[number]
        return self.decodes[decode], row, self.decodes[decode].images[row]

    def tokens(self, text: str) -> Tokens:
        """Return tokens_L of packed bits in base64. Raises `ValueError`: they are none of this layout."""
        return unpacked(decoded(text), self.networks.ends[-1], self.networks.V)


def packed(tokens_l: Tokens, V: int) -> bytes:
    """Return tokens as bits, the highest of each first, as many a token as V - 1 has; the last byte filled with 0."""
    shifts = np.arange(width(V) - 1, -1, -1)
    return np.packbits((tokens_l[:, None] >> shifts & 1).astype(np.uint8)).tobytes()


def unpacked(raw: bytes, count: int, V: int) -> Tokens:
    """Return what `packed` made these bytes of. Raises `ValueError`: of nothing."""
    if len(raw) != -(-count * width(V) // 8):
        raise ValueError(f"{len(raw)} bytes of tokens hold no {count} of {V}")
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))
    tokens_l = bits[: count * width(V)].reshape(count, -1).astype(np.int64) @ (1 << np.arange(width(V) - 1, -1, -1))
    if bits[count * width(V) :].any() or (count and int(tokens_l.max()) >= V):
        raise ValueError(f"tokens are none of {V}")
    return np.asarray(tokens_l, np.int64)


def width(V: int) -> int:
    return max(1, (V - 1).bit_length())


def decoded(text: str) -> bytes:
    """Return the bytes of base64. Raises `ValueError` for any but the one spelling of them."""
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError("base64 is spelt otherwise than it is written")
    return raw


def scale_digests(tokens_L: Tokens, ends: Sequence[int], V: int) -> list[bytes]:
    """Return the digest of every scale's tokens: the leaves of the tree."""
    return [hashlib.sha256(b"\0" + packed(tokens_L[a:b], V)).digest() for a, b in pairwise(ends)]


def merkle_root(leaves: Sequence[bytes]) -> str:
    """Return the root of RFC 6962: nodes of two, a rest of one as it is, and no node that could be a leaf."""
    level = list(leaves)
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0].hex() if level else hashlib.sha256().hexdigest()


def challenges(root: str, candidates: Sequence[int], count: int) -> tuple[int, ...]:
    """Return which images a root challenges, of the numbers of those that may be."""
    drawn, j = dict[int, None](), 0
    while len(drawn) < min(count, len(candidates)):
        number = hashlib.sha256(bytes.fromhex(root) + j.to_bytes(8, "big")).digest()
        drawn[candidates[int.from_bytes(number, "big") % len(candidates)]] = None
        j += 1
    return tuple(drawn)


def canonical(document: object) -> bytes:
    """Return the one text of a JSON document (RFC 8785). Raises `ValueError` for what it has no number or text for."""
    import rfc8785  # noqa: PLC0415  # an extra brings it

    return rfc8785.dumps(document)  # type: ignore[arg-type]  # whatever else it is, it refuses


def sealed(subject: list[dict[str, object]], predicate: dict[str, Any]) -> bytes:
    """Return a statement, `digest` of its predicate filled in: the digest of the same text with an empty one."""
    statement: dict[str, Any] = {"_type": STATEMENT, "subject": subject, "predicateType": PREDICATE}
    own = hashlib.sha256(canonical({**statement, "predicate": {**predicate, "digest": ""}})).hexdigest()
    return canonical({**statement, "predicate": {**predicate, "digest": own}})


def check_extra(path: Path) -> None:
    """Refuse a certificate where what reads and writes one is not installed. Raises `InputError`."""
    for package in ("rfc8785", "cryptography"):
        check_installed(package, "certificate", NAME, str(path), f"needs {package}")


def signed(payload: bytes, key: Any) -> bytes:
    """Return the envelope of a statement, signed with an Ed25519 key (DSSE)."""
    signature = {"keyid": key_id(key.public_key()), "sig": base64_of(key.sign(encoded(payload)))}
    return canonical({"payload": base64_of(payload), "payloadType": PAYLOAD, "signatures": [signature]})


def key_id(key: Any) -> str:
    """Return the SHA-256 of a public key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def encoded(payload: bytes) -> bytes:
    """Return what is signed (DSSE's pre-authentication encoding)."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def base64_of(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def values_in(raw: bytes) -> int:
    """Return how many values a text of JSON may have at most, and escaped characters, which take as long to spell."""
    return sum(map(raw.count, (b",", b"[", b"{", b"\\")))


def candidates(made: Certificate) -> list[int]:
    """Return the numbers of the images that may be challenged: what soft codes lead to, tokens alone do not say."""
    requests = [bool(made.requests[decode.request].get("more_smooth")) for decode in made.decodes]
    return [number for number, (decode, _) in enumerate(made.places) if not requests[decode]]
