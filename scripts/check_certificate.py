"""A second reader of certificates, from docs/certificate.md alone: json, hashlib and numpy, nothing of the harness.

    python scripts/check_certificate.py CERTIFICATE

It checks the form, the digest, the root over all tokens, the challenges and the counts; it computes no image. Of a
signed certificate it reads the statement, and leaves the signature to others. Exit status: 0 it holds together, 2 not.
"""

import base64
import hashlib
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

STATEMENT_KEYS = {"_type", "predicate", "predicateType", "subject"}
PREDICATE_KEYS = {
    "budget", "challenged", "closest", "counts", "decoder", "decodes", "digest", "early", "evidence", "exercised",
    "inconclusive", "laws", "networks", "planted", "platform", "precision", "requests", "root", "settings", "verdict",
    "versions", "weights", "whole",
}  # fmt: skip
DECODE_KEYS = {
    "defects", "draws", "first", "identical", "images", "refused", "request", "setting", "ties", "unclaimed",
    "verdict", "wrong_tensors", "wrong_tokens",
}  # fmt: skip
COUNTS = ("draws", "identical", "ties", "wrong_tokens", "unclaimed", "wrong_tensors")
ORDER = ["IDENTICAL", "TIE", "CONSISTENT", "INCONCLUSIVE", "DEFECT"]


class RefusedError(ValueError):
    """What does not hold, one clause."""


def need(holds: object, rule: str) -> None:
    """Raise `RefusedError` unless something holds."""
    if not holds:
        raise RefusedError(rule)


# ---- canonical JSON (RFC 8785) ----


def number_text(value: float) -> str:
    """Return a number as ECMAScript writes it: the shortest digits that give it back."""
    need(abs(value) < float("inf"), "a number is not finite")
    if value == 0:
        return "0"
    if value < 0:
        return "-" + number_text(-value)
    mantissa, _, exponent = f"{float(value)!r}".partition("e")
    whole, _, rest = mantissa.partition(".")
    digits = (whole + rest).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + rest) - len(digits))  # before which digit the point stands
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        return digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{tail}e{'+' if point > 0 else '-'}{abs(point - 1)}"


def canonical(value: Any) -> str:
    """Return the one text of a JSON value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        need(abs(value) < 2**53, "a whole number is too large")
        return str(value)
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{','.join(map(canonical, value))}]"
    pairs = sorted(value.items(), key=lambda pair: pair[0].encode("utf-16-be"))
    return "{" + ",".join(f"{canonical(key)}:{canonical(each)}" for key, each in pairs) + "}"


def parsed(raw: bytes) -> Any:
    """Return the value of a text in canonical form."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), "a key stands there twice")
        return dict(pairs)

    def short(text: str) -> Any:
        need(len(text) <= 24, "a number is too long")
        return int(text) if text.lstrip("-").isdigit() else float(text)

    def none(text: str) -> Any:
        raise RefusedError(f"{text} is no number")

    need(sum(map(raw.count, (b",", b"[", b"{", b"\\"))) <= 40_000, "more than 40000 values")
    value = json.loads(raw, object_pairs_hook=once, parse_int=short, parse_float=short, parse_constant=none)
    need(canonical(value).encode() == raw, "the text is not in canonical form")
    return value


def unbase64(text: str) -> bytes:
    """Return the bytes of base64 in its one spelling."""
    raw = base64.b64decode(text, validate=True)
    need(base64.b64encode(raw).decode() == text, "base64 is spelt in another way")
    return raw


# ---- tokens, tree, challenges ----


def bits_of(V: int) -> int:
    """Return how many bits a token has."""
    return max(1, (V - 1).bit_length())


def tokens_of(text: str, L: int, V: int) -> np.ndarray:
    """Return L tokens of packed bits."""
    bits, b = np.unpackbits(np.frombuffer(unbase64(text), np.uint8)), bits_of(V)
    need(len(bits) == -(-L * b // 8) * 8 and not bits[L * b :].any(), "tokens are of another length")
    values = [int("".join(map(str, row)), 2) for row in bits[: L * b].reshape(L, b).tolist()]
    need(max(values) < V, "a token is beyond V")
    return np.array(values)


def leaf(tokens_l: np.ndarray, V: int) -> bytes:
    """Return the digest of one scale's tokens."""
    text = "".join(f"{token:0{bits_of(V)}b}" for token in tokens_l.tolist())
    text += "0" * (-len(text) % 8)
    return hashlib.sha256(b"\x00" + int(text, 2).to_bytes(len(text) // 8, "big")).digest()


def root_of(leaves: list[bytes]) -> bytes:
    """Return the Merkle tree hash as RFC 6962 defines it: split at the largest power of two below the number."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + root_of(leaves[:k]) + root_of(leaves[k:])).digest()


def challenged(root: bytes, candidates: list[int], count: int) -> list[int]:
    """Return the first `count` different candidates that a root draws."""
    chosen: list[int] = []
    j = 0
    while len(chosen) < min(count, len(candidates)):
        number = int(hashlib.sha256(root + j.to_bytes(8, "big")).hexdigest(), 16)
        if (image := candidates[number % len(candidates)]) not in chosen:
            chosen.append(image)
        j += 1
    return chosen


# ---- the certificate ----


def statement_of(raw: bytes) -> dict[str, Any]:
    """Return the statement of a file, in an envelope or alone."""
    need(len(raw) <= 2**24, "more than 16777216 bytes")
    document = parsed(raw)
    if set(document) == {"payload", "payloadType", "signatures"}:
        need(document["payloadType"] == "application/vnd.in-toto+json", "the envelope holds another type")
        (signature,) = document["signatures"]
        need(set(signature) == {"keyid", "sig"} and len(unbase64(signature["sig"])) == 64, "no Ed25519 signature")
        need(re.fullmatch("[0-9a-f]{64}", signature["keyid"]), "no keyid")
        document = parsed(unbase64(document["payload"]))
    return dict(document)


def check(raw: bytes) -> dict[str, Any]:
    """Return the predicate of a certificate. Raises `RefusedError`, or whatever a file that is none leads to."""
    statement = statement_of(raw)
    need(set(statement) == STATEMENT_KEYS, "the statement has other fields")
    need(statement["_type"] == "https://in-toto.io/Statement/v1", "the statement is of another type")
    need(statement["predicateType"] == "urn:sdvar-harness:certificate:v1", "the predicate is of another type")
    made, subject = statement["predicate"], statement["subject"]
    need(set(made) == PREDICATE_KEYS, "the predicate has other fields")
    names = [each["name"] for each in subject]
    need(names and len(set(names)) == len(names), "the subject names nothing, or something twice")
    need(all(set(each) == {"name", "digest"} for each in subject), "the subject has other fields")
    empty = canonical({**statement, "predicate": {**made, "digest": ""}})
    need(hashlib.sha256(empty.encode()).hexdigest() == made["digest"], "the digest is of another text")
    check_tokens(made)
    check_summary(made)
    return dict(made)


def ends_of(networks: dict[str, Any]) -> list[int]:
    """Return where every scale's draws end, 0 first."""
    sides = networks["sides"] or [(pn, pn) for pn in networks["patch_nums"]]
    counts = [h * w * networks["channels"] for h, w in sides]
    need(counts and min(counts) > 0 and 1 <= networks["V"] <= 2**31, "the networks draw nothing")
    return [sum(counts[:k]) for k in range(len(counts) + 1)]


def check_tokens(made: dict[str, Any]) -> None:
    """Check every image, the root over all of them, and the challenges that it draws."""
    ends, V = ends_of(made["networks"]), made["networks"]["V"]
    images = sum(len(decode["images"]) for decode in made["decodes"])
    need(images * (len(ends) - 1) <= 2**17, "more than 131072 scales")
    leaves: list[bytes] = []
    candidates, shown, number = [], set(), 0
    for decode in made["decodes"]:
        need(set(decode) == DECODE_KEYS, "a decode has other fields")
        need(min(decode["setting"], decode["request"]) >= 0, "a decode of nothing")
        request, claims = made["requests"][decode["request"]], made["settings"][decode["setting"]]["contract"] == "A"
        need(len(decode["images"]) in (0, request["count"]), "a decode holds other images than were asked")
        differing = ties = 0
        for image in decode["images"]:
            need(all(image.values()), "an image has an empty field")
            if "tokens" in image:
                need(set(image) <= {"tokens", "expected", "ties"}, "an image has other fields")
                tokens_L = tokens_of(image["tokens"], ends[-1], V)
                expected_L = tokens_of(image["expected"], ends[-1], V) if "expected" in image else tokens_L
                places = np.flatnonzero(tokens_L != expected_L).tolist()
                tied = image.get("ties", [])
                need(("expected" in image) == bool(places), "expected tokens that do not differ")
                need(tied == sorted(set(tied)) and set(tied) <= set(places), "a tie where nothing differs")
                differing, ties = differing + len(places), ties + len(tied)
                leaves += [leaf(tokens_L[a:b], V) for a, b in pairwise(ends)]
                shown.add(number)
            else:
                need(set(image) == {"scales"}, "an image has other fields")
                need(re.fullmatch(f"[0-9a-f]{{{64 * (len(ends) - 1)}}}", image["scales"]), "no digest a scale")
                leaves += [bytes.fromhex(image["scales"])[k : k + 32] for k in range(0, 32 * (len(ends) - 1), 32)]
            candidates += [] if request["more_smooth"] else [number]
            number += 1
        check_counts(decode, claims, (differing, ties), ends[-1])
    root = root_of(leaves)
    need(root.hex() == made["root"], "the root is of other tokens")
    need(
        challenged(root, candidates, len(made["challenged"])) == made["challenged"], "other challenges than the root's"
    )
    need(set(made["challenged"]) <= shown, "a challenge is not answered")
    need(all(0 <= image < number and 0 <= draw < ends[-1] for image, draw, _, _ in made["closest"]), "draws of nowhere")


def check_counts(decode: dict[str, Any], claims: bool, seen: tuple[int, int], L: int) -> None:
    """Check the counts and the verdict of a decode against its own tokens: how many differ, how many are ties."""
    counts = [decode[name] for name in COUNTS]
    need(min(*counts, decode["defects"]) >= 0 and sum(counts[1:5]) == counts[0], "counts do not add up")
    need(counts[0] == L * len(decode["images"]), "other draws than its images have")
    need(seen == ((decode["ties"] + decode["wrong_tokens"], decode["ties"]) if claims else (0, 0)), "other ties")
    right = ("TIE" if decode["ties"] else "IDENTICAL") if claims else "CONSISTENT"
    may = ["DEFECT"] if decode["defects"] else ["INCONCLUSIVE"] + [right] * bool(decode["images"])
    need(decode["verdict"] in may and decode["defects"] >= decode["wrong_tokens"], "another verdict of a decode")


def check_summary(made: dict[str, Any]) -> None:
    """Check the counts and the verdict of the whole run against those of its decodes."""
    asked = [decode for decode in made["decodes"] if not decode["refused"]]
    totals = {name: sum(decode[name] for decode in asked) for name in (*COUNTS, "defects")}
    totals["images"] = sum(made["requests"][decode["request"]]["count"] for decode in asked)
    totals["defects"] += len(made["early"])
    need(made["counts"] == totals, "other counts than those of its decodes")
    worst = 0
    for setting in range(len(made["settings"])):
        worst = max(worst, max((ORDER.index(d["verdict"]) for d in asked if d["setting"] == setting), default=3))
    worst = 4 if made["early"] else max(worst, 3 if made["inconclusive"] else 0)
    need(made["verdict"] == ORDER[worst], "another verdict than that of its decodes")
    said = made["exercised"]
    words = [*said["asked"], *said["not_done"], *said["missing"]]
    need(len(set(words)) == len(words), "something was exercised, and was not")
    refused = len(made["decodes"]) - len(asked)
    need(
        (said["decodes"], said["refused"] + said["declared"]) == (len(made["decodes"]), refused), "exercised by others"
    )
    need(made["planted"] is None or (made["whole"] and made["laws"]), "planted bugs of another question")


def main(path: str) -> int:
    """Check a file; print one line, and return the exit status."""
    try:
        need(Path(path).stat().st_size <= 2**24, "more than 16777216 bytes")
        made = check(Path(path).read_bytes())
    except Exception as error:  # whatever the bytes lead to
        print(f"refused: {error or type(error).__name__}", file=sys.stderr)
        return 2
    print(f"{made['verdict']}: holds together; {len(made['challenged'])} images to compute anew")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
