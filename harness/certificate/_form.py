"""The form of a certificate (docs/certificate.md): read, checked against itself, sealed and signed.

Promise: what is read holds together: one canonical text, one root over all tokens, challenges that follow from it, and
counts and a verdict that are those of its own tokens. Whatever the bytes are, they are data: refused in one line within
two seconds, and never executed, imported or fetched. PyTorch is not imported.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import InputError, check_installed, shortened, text_of
from harness.files import check_readable
from harness.schema import record_of

STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "urn:sdvar-harness:certificate:v1"
PAYLOAD = "application/vnd.in-toto+json"
BEGINS = (b'{"_type":"', b'{"payload":"')  # of a statement and of an envelope, whose keys are sorted
NAME, REMEDY = "certificate", "pass a file of verify --certificate"
MOST_BYTES, MOST_VALUES = 2**24, 60_000  # of a file, some 25,000 images: what is beyond is refused unread
MOST_DIGITS, MOST_V = 24, 2**31  # of a number, as it is spelt; values of a draw
CHALLENGED = 16
WORST_LAST = ("IDENTICAL", "TIE", "CONSISTENT", "INCONCLUSIVE", "DEFECT")
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
    """One setting."""

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
    """Names and sizes of the networks."""

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
    """Return the bits of a token."""
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
    signature = {"keyid": key_id(key.public_key()), "sig": base64_of(key.sign(_encoded(payload)))}
    return canonical({"payload": base64_of(payload), "payloadType": PAYLOAD, "signatures": [signature]})


def key_id(key: Any) -> str:
    """Return the SHA-256 of a public key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def read_key(path: Path, private: bool = False) -> Any:
    """Return the Ed25519 key of a PEM file. Raises `InputError` for a file of anything else."""
    word = "private" if private else "public"
    remedy = "openssl genpkey -algorithm ed25519 -out KEY" if private else "openssl pkey -in KEY -pubout -out PUBLIC"
    check_readable(path, "key", f"make one: {remedy}")
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  # an extra brings it
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

    try:
        with path.open("rb") as stream:
            text = stream.read(2**16)
        key: object = (
            serialization.load_pem_private_key(text, None) if private else serialization.load_pem_public_key(text)
        )
    except Exception:  # a password, another format, another algorithm
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey):
        raise InputError("key", str(path), f"is no {word} Ed25519 key as PEM without a password", f"make one: {remedy}")
    return key


def is_certificate(path: Path) -> bool:
    """Tell whether a file begins as one; no file, or none that can be read, does not."""
    try:
        with path.open("rb") as stream:
            return path.is_file() and stream.read(len(BEGINS[1])).startswith(BEGINS)
    except OSError:
        return False


def read_certificate(path: Path, key: Path | None = None, believed: bool = True) -> tuple[Certificate, list[Any], bool]:
    """Return what a certificate says, its subject, and whether it is signed.

    A signed one is read with the public key of whoever is trusted to have signed it; where nobody is asked to believe
    it (`believed` false), without. Raises `InputError` for whatever does not hold together.
    """
    check_readable(path, NAME, REMEDY)
    if (size := path.stat().st_size) > MOST_BYTES:
        raise InputError(NAME, str(path), f"has {size} bytes, more than the {MOST_BYTES} of any", REMEDY)
    with path.open("rb") as stream:
        raw = stream.read(MOST_BYTES + 1)
    if not raw.startswith(BEGINS):
        raise InputError(NAME, str(path), "is no certificate", REMEDY)
    check_extra(path)
    is_signed = raw.startswith(BEGINS[1])
    if is_signed != (key is not None) and (believed or not is_signed):
        rule = "is signed, and nobody says by whom" if is_signed else "is not signed, and a key is given"
        remedy = "pass --key FILE, the public key of whom you trust" if is_signed else "drop --key"
        raise InputError(NAME, str(path), rule, remedy)
    public = read_key(key) if key else None
    try:
        payload = _payload(raw, public) if is_signed else raw
        return *_checked(payload), is_signed
    except InputError:
        raise
    except Exception as error:  # whatever the bytes of a damaged or hostile file lead to
        rule = f"does not hold together ({shortened(text_of(error), 160) or type(error).__name__})"
        raise InputError(NAME, str(path), rule, "ask for it again from whoever made it") from None


def _payload(raw: bytes, public: Any) -> bytes:
    """Return what an envelope holds. Raises `ValueError` where it is not what the key signed."""
    envelope = _parsed(raw)
    signatures = envelope["signatures"]
    if canonical(envelope) != raw or set(envelope) != {"payload", "payloadType", "signatures"}:
        raise ValueError("its envelope is not in the one form that it has")
    if envelope["payloadType"] != PAYLOAD or len(signatures) != 1 or set(signatures[0]) != {"keyid", "sig"}:
        raise ValueError("its envelope is none of one signature of a statement")
    payload = decoded(envelope["payload"])
    if public is not None:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # an extra brings it

        if signatures[0]["keyid"] != key_id(public):
            raise ValueError("it is signed with another key")
        try:
            public.verify(decoded(signatures[0]["sig"]), _encoded(payload))
        except InvalidSignature:
            raise ValueError("its signature is of another text") from None
    return payload


def _encoded(payload: bytes) -> bytes:
    """Return what is signed (DSSE's pre-authentication encoding)."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def base64_of(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def values_in(raw: bytes) -> int:
    """Return how many values a text of JSON may have at most."""
    return sum(map(raw.count, (b",", b"[", b"{")))


def _parsed(raw: bytes) -> Any:
    """Return a JSON document. Raises `ValueError` for one that is too large, or says something twice."""
    if values_in(raw) > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES} values")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(values := dict(pairs)) != len(pairs):
            raise ValueError("it has a key twice")
        return values

    def number(kind: Callable[[str], Any], text: str) -> Any:
        if len(text) > MOST_DIGITS:
            raise ValueError("it has a number that is too long")
        return kind(text)

    try:
        return json.loads(
            raw, object_pairs_hook=once, parse_int=lambda text: number(int, text),
            parse_float=lambda text: number(float, text), parse_constant=lambda text: number(int, text),
        )  # fmt: skip
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _checked(raw: bytes) -> tuple[Certificate, list[Any]]:
    """Return a statement's predicate and subject. Raises whatever a text that is none leads to."""
    statement = _parsed(raw)
    if set(statement) != {"_type", "predicate", "predicateType", "subject"}:
        raise ValueError("it is no statement")
    if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE):
        raise ValueError("it is a statement of another type")
    predicate, subject = statement["predicate"], statement["subject"]
    if set(predicate) != {each.name for each in fields(Certificate)}:
        raise ValueError("its predicate has other fields")
    own = str(predicate["digest"])
    empty = canonical({**statement, "predicate": {**predicate, "digest": ""}})
    if empty.replace(b'"digest":""', f'"digest":"{own}"'.encode()) != raw:
        raise ValueError("it is not in canonical form")
    if hashlib.sha256(empty).hexdigest() != own:
        raise ValueError("its digest is of another text")
    _check_subject(subject)
    made = record_of(Certificate, predicate)
    for problem in _problems(made):
        raise ValueError(problem)
    return made, subject


def _check_subject(subject: Any) -> None:
    names = [each["name"] for each in subject]
    if not names or len(set(names)) != len(names) or any(set(each) != {"digest", "name"} for each in subject):
        raise ValueError("its subject names nothing, or something twice")
    if not all(isinstance(word, str) for each in subject for word in (each["name"], *each["digest"].values())):
        raise ValueError("its subject has no digests")


def _problems(made: Certificate) -> Iterator[str]:
    """Say what a certificate contradicts itself in, if anything."""
    ends, V, leaves, number = made.networks.ends, made.networks.V, list[bytes](), 0
    if not (len(ends) > 1 and 1 <= V <= MOST_V and ends[-1] < MOST_V and min(np.diff(ends)) > 0):
        yield "its networks draw nothing"
    for decode in made.decodes:
        if not (0 <= decode.setting < len(made.settings) and 0 <= decode.request < len(made.requests)):
            yield "it holds a decode of nothing that was asked"
        if decode.images and len(decode.images) != made.requests[decode.request]["count"]:
            yield "a decode holds other images than were asked"
        yield from _wrong_counts(decode, ends[-1])
        differing = ties = 0
        for image in decode.images:
            of_image, places = _leaves(made, image)
            leaves += of_image
            if bool(image.expected) != bool(places) or list(image.ties) != sorted(set(image.ties) & places):
                yield "the ties of an image are no tokens that differ"
            differing, ties = differing + len(places), ties + len(image.ties)
        number += len(decode.images)
        claims = made.settings[decode.setting].contract == "A"
        if (ties, differing) != ((decode.ties, decode.ties + decode.wrong_tokens) if claims else (0, 0)):
            yield "a decode counts other differing tokens than it shows"
        yield from _wrong_verdict(decode, claims)
    if merkle_root(leaves) != made.root:
        yield "its root is of other tokens"
    if challenges(made.root, candidates(made), len(made.challenged)) != made.challenged:
        yield "its challenges are not those of its root"
    if not all(made.image(each)[2].tokens for each in made.challenged):
        yield "a challenge is not answered"
    if any(not (0 <= image < number and 0 <= draw < ends[-1]) for image, draw, _, _ in made.closest):
        yield "its closest draws are nowhere"
    yield from _wrong_summary(made)


def _leaves(made: Certificate, image: Image) -> tuple[list[bytes], set[int]]:
    """Return the digests of an image's scales, and the draws at which the reference's token is another one."""
    if image.tokens and not image.scales:
        tokens_L = made.tokens(image.tokens)
        expected_L = made.tokens(image.expected) if image.expected else tokens_L
        leaves = scale_digests(tokens_L, made.networks.ends, made.networks.V)
        return leaves, set(np.flatnonzero(tokens_L != expected_L).tolist())
    leaves = [bytes.fromhex(image.scales[k : k + 64]) for k in range(0, len(image.scales), 64)]
    if b"".join(leaves).hex() != image.scales or len(image.scales) != 64 * (len(made.networks.ends) - 1):
        raise ValueError("an image has neither tokens nor a digest a scale")
    return leaves, set()


def _wrong_counts(decode: Decoded, L: int) -> Iterator[str]:
    counts = decode.identical, decode.ties, decode.wrong_tokens, decode.unclaimed
    if min(*counts, decode.wrong_tensors, decode.defects) < 0 or sum(counts) != decode.draws:
        yield "counts of a decode do not add up"
    if decode.draws != L * len(decode.images):
        yield "a decode counts other draws than its images have"


def candidates(made: Certificate) -> list[int]:
    """Return the numbers of the images that may be challenged: what soft codes lead to, tokens alone do not say."""
    requests = [bool(made.requests[decode.request].get("more_smooth")) for decode in made.decodes]
    return [number for number, (decode, _) in enumerate(made.places) if not requests[decode]]


def _wrong_verdict(decode: Decoded, claims: bool) -> Iterator[str]:
    right = ("TIE" if decode.ties else "IDENTICAL") if claims else "CONSISTENT"
    may = ("DEFECT",) if decode.defects else ("INCONCLUSIVE", right) if decode.images else ("INCONCLUSIVE",)
    if decode.verdict not in may or decode.defects < decode.wrong_tokens:
        yield "the verdict of a decode is not that of its counts"


def _wrong_summary(made: Certificate) -> Iterator[str]:
    asked = [decode for decode in made.decodes if not decode.refused]
    names = ("draws", "identical", "ties", "wrong_tokens", "unclaimed", "wrong_tensors", "defects")
    totals = {name: sum(getattr(decode, name) for decode in asked) for name in names}
    totals |= {
        "images": sum(made.requests[d.request]["count"] for d in asked),
        "defects": totals["defects"] + len(made.early),
    }
    if dict(made.counts) != totals:
        yield "its counts are not those of its decodes"
    judged = {number: [3] for number in range(len(made.settings))}  # of which nothing was judged, nothing is known
    for decode in asked:
        of_setting = judged[decode.setting]
        judged[decode.setting] = [*(of_setting if of_setting != [3] else []), WORST_LAST.index(decode.verdict)]
    worst = 4 if made.early else max(max(map(max, judged.values()), default=3), 3 * bool(made.inconclusive))
    if made.verdict != WORST_LAST[worst]:
        yield "its verdict is not that of its decodes"
