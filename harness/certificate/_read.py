"""A certificate read, and checked against itself (docs/certificate.md).

Promise: what is read holds together: one canonical text, one root over all tokens, challenges that follow from it, and
counts and a verdict that are those of its own tokens. Whatever the bytes are, they are data: refused in one line within
two seconds, and never executed, imported or fetched. PyTorch is not imported.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from harness.certificate import _form as form
from harness.certificate._form import Certificate, Decoded, Image
from harness.errors import InputError, shortened, text_of
from harness.files import check_readable
from harness.schema import record_of

BEGINS = (b'{"_type":"', b'{"payload":"')  # of a statement and of an envelope, whose keys are sorted
REMEDY = "pass a file of verify --certificate"
MOST_DIGITS, MOST_V = 24, 2**31  # of a number, as it is spelt; values of a draw
WORST_LAST = ("IDENTICAL", "TIE", "CONSISTENT", "INCONCLUSIVE", "DEFECT")


def read_key(path: Path, private: bool = False) -> Any:
    """Return the Ed25519 key of a PEM file. Raises `InputError` for a file of anything else."""
    word = "private" if private else "public"
    remedy = "openssl genpkey -algorithm ed25519 -out KEY" if private else "openssl pkey -in KEY -pubout -out PUBLIC"
    check_readable(path, "key", f"make one: {remedy}")
    from cryptography.hazmat.primitives import serialization as pem  # noqa: PLC0415  # an extra brings it
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

    try:
        with path.open("rb") as stream:
            text = stream.read(2**16)
        key: object = pem.load_pem_private_key(text, None) if private else pem.load_pem_public_key(text)
    except Exception:  # a password, another format, another algorithm
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey):
        raise InputError("key", str(path), f"is no {word} Ed25519 key as PEM without a password", f"make one: {remedy}")
    return key


def is_certificate(path: Path) -> bool:
    """Tell whether a file begins as one; no file, or none that can be read, does not."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            return False
        with path.open("rb") as stream:
            return stream.read(len(BEGINS[1])).startswith(BEGINS)
    except OSError:
        return False


def read_certificate(path: Path, key: Path | None = None, believed: bool = True) -> tuple[Certificate, list[Any], bool]:
    """Return what a certificate says, its subject, and whether it is signed.

    A signed one is read with the public key of whoever is trusted to have signed it; where nobody is asked to believe
    it (`believed` false), without. Raises `InputError` for whatever does not hold together.
    """
    check_readable(path, form.NAME, REMEDY)
    if (size := path.stat().st_size) > form.MOST_BYTES:
        raise InputError(form.NAME, str(path), f"has {size} bytes, more than the {form.MOST_BYTES} of any", REMEDY)
    with path.open("rb") as stream:
        raw = stream.read(form.MOST_BYTES + 1)
    if not raw.startswith(BEGINS):
        raise InputError(form.NAME, str(path), "is no certificate", REMEDY)
    form.check_extra(path)
    is_signed = raw.startswith(BEGINS[1])
    if is_signed != (key is not None) and (believed or not is_signed):
        rule = "is signed, and nobody says by whom" if is_signed else "is not signed, and a key is given"
        remedy = "pass --key FILE, the public key of whom you trust" if is_signed else "drop --key"
        raise InputError(form.NAME, str(path), rule, remedy)
    public = read_key(key) if key else None
    try:
        payload = _payload(raw, public) if is_signed else raw
        return *_checked(payload), is_signed
    except InputError:
        raise
    except Exception as error:  # whatever the bytes of a damaged or hostile file lead to
        rule = f"does not hold together ({shortened(text_of(error), 160) or type(error).__name__})"
        raise InputError(form.NAME, str(path), rule, "ask for it again from whoever made it") from None


def _payload(raw: bytes, public: Any) -> bytes:
    """Return what an envelope holds. Raises `ValueError` where it is not what the key signed."""
    envelope = _parsed(raw)
    signatures = envelope["signatures"]
    if form.canonical(envelope) != raw or set(envelope) != {"payload", "payloadType", "signatures"}:
        raise ValueError("its envelope is not in the one form that it has")
    if envelope["payloadType"] != form.PAYLOAD or len(signatures) != 1 or set(signatures[0]) != {"keyid", "sig"}:
        raise ValueError("its envelope is none of one signature of a statement")
    payload = form.decoded(envelope["payload"])
    if public is not None:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # an extra brings it

        if signatures[0]["keyid"] != form.key_id(public):
            raise ValueError("it is signed with another key")
        try:
            public.verify(form.decoded(signatures[0]["sig"]), form.encoded(payload))
        except InvalidSignature:
            raise ValueError("its signature is of another text") from None
    return payload


def _parsed(raw: bytes) -> Any:
    """Return a JSON document. Raises `ValueError` for one that is too large, or says something twice."""
    if form.values_in(raw) > form.MOST_VALUES:
        raise ValueError(f"it has more than {form.MOST_VALUES} values")

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
    if (statement["_type"], statement["predicateType"]) != (form.STATEMENT, form.PREDICATE):
        raise ValueError("it is a statement of another type")
    predicate, subject = statement["predicate"], statement["subject"]
    if set(predicate) != {each.name for each in fields(Certificate)}:
        raise ValueError("its predicate has other fields")
    own = str(predicate["digest"])
    empty = form.canonical({**statement, "predicate": {**predicate, "digest": ""}})
    if empty.replace(b'"digest":""', f'"digest":"{own}"'.encode()) != raw:
        raise ValueError("it is not in canonical form")
    if hashlib.sha256(empty).hexdigest() != own:
        raise ValueError("its digest is of another text")
    names = [each["name"] for each in subject]
    if not names or len(set(names)) != len(names) or any(set(each) != {"digest", "name"} for each in subject):
        raise ValueError("its subject names nothing, or something twice")
    if not all(isinstance(word, str) for each in subject for word in (each["name"], *each["digest"].values())):
        raise ValueError("its subject has no digests")
    images = [image for decode in predicate["decodes"] for image in decode["images"]]
    if not all(isinstance(each, dict) for each in (predicate["networks"], *predicate["settings"], *images)):
        raise ValueError("a record of it has no names")
    if not all(all(image.values()) for image in images):
        raise ValueError("an image has an empty field")
    made = record_of(Certificate, predicate)
    for problem in _problems(made):
        raise ValueError(problem)
    return made, subject


def _problems(made: Certificate) -> Iterator[str]:
    """Say what a certificate contradicts itself in, if anything."""
    ends, V, leaves, number = made.networks.ends, made.networks.V, list[bytes](), 0
    if len(made.places) * (len(ends) - 1) > form.MOST_SCALES:
        yield f"it has more than {form.MOST_SCALES} scales"
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
    if form.merkle_root(leaves) != made.root:
        yield "its root is of other tokens"
    if form.challenges(made.root, form.candidates(made), len(made.challenged)) != made.challenged:
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
        leaves = form.scale_digests(tokens_L, made.networks.ends, made.networks.V)
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
    words = [word for name in ("asked", "not_done", "missing") for word in made.exercised[name]]
    counts = made.exercised["decodes"], made.exercised["refused"] + made.exercised["declared"]
    if len(set(words)) != len(words) or counts != (len(made.decodes), len(made.decodes) - len(asked)):
        yield "what was exercised is not of its decodes"
    if made.planted is not None and not (made.whole and made.laws):
        yield "it counts planted bugs of another question than the default one"
