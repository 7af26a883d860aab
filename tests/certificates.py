"""Certificates of small runs, and the vectors of tests/data/certificates, made of them.

    python -m tests.certificates

writes the vectors anew: after a change of the format alone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harness.certificate import _form as form
from harness.certificate import _read as reading
from harness.certificate.made import certificate_of
from harness.decoders import Terms
from harness.protocol import Request, Settings
from harness.runs import Decodes, Plan, RunFileOptions, Verification, verify_decodes
from harness.schema import record_of
from harness.speculative.sampler import build_decoder
from tests.helpers import Layout, tiny

FOLDER = Path(__file__).parent / "data" / "certificates"
MODELS = tiny(Layout((1, 2, 3)))
HERE = Terms(in_process=True)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))  # of tests: whoever reads this can sign with it
SUBJECT: list[dict[str, object]] = [{"name": "mydecoder.py", "digest": {"sha256": "5" * 64}}]
Change = Callable[[dict[str, Any]], object]


def run(factory: Any = build_decoder, policy: str = "coupled", seeds: int = 3) -> Verification:
    """Verify a decoder on tiny networks, two images a seed."""
    plan = Plan.of([Settings(2, policy=policy)], [Request((0, 1), seed) for seed in range(seeds)])
    return verify_decodes(MODELS, Decodes(factory, plan, HERE), store=RunFileOptions(recipe={}))


def certificate(result: Verification, challenged: int = 2) -> dict[str, Any]:
    """Return the statement of a run."""
    return dict(json.loads(certificate_of(result, MODELS, Path("certificate"), challenged)))


def sealed(statement: dict[str, Any]) -> bytes:
    """Return a statement's text, its digest made anew."""
    return form.sealed(statement["subject"], statement["predicate"])


def rooted(statement: dict[str, Any]) -> dict[str, Any]:
    """Return a statement whose root and challenges are those of its tokens: what a liar who reads the page does."""
    predicate = statement["predicate"]
    made = record_of(form.Certificate, predicate)
    leaves = [leaf for decode in made.decodes for image in decode.images for leaf in reading._leaves(made, image)[0]]
    predicate["root"] = form.merkle_root(leaves)
    count = len(predicate["challenged"])
    predicate["challenged"] = list(form.challenges(predicate["root"], form.candidates(made), count))
    return statement


def with_token(statement: dict[str, Any], image: int, draw: int, token: int, field: str = "tokens") -> None:
    """Change one token of an image that is shown, or of what is expected of it."""
    made = record_of(form.Certificate, statement["predicate"])
    decode, row = made.places[image]
    of_image = statement["predicate"]["decodes"][decode]["images"][row]
    tokens_L = made.tokens(of_image.get(field, of_image["tokens"])).copy()
    tokens_L[draw] = token
    of_image[field] = form.base64_of(form.packed(tokens_L, made.networks.V))


def with_tie(statement: dict[str, Any], is_tie: bool = True) -> dict[str, Any]:
    """Return a statement whose first challenged image has a token that is not the expected one: a tie, or wrong."""
    predicate = statement["predicate"]
    made = record_of(form.Certificate, predicate)
    image = predicate["challenged"][0]
    decode, row = made.places[image]
    token = int(made.tokens(made.image(image)[2].tokens)[-1])
    with_token(statement, image, made.networks.ends[-1] - 1, (token + 1) % made.networks.V, "expected")
    if is_tie:
        predicate["decodes"][decode]["images"][row]["ties"] = [made.networks.ends[-1] - 1]
    name, verdict = ("ties", "TIE") if is_tie else ("wrong_tokens", "DEFECT")
    for counts in (predicate["decodes"][decode], predicate["counts"]):
        counts["identical"] -= 1
        counts[name] += 1
        counts["defects"] += not is_tie
    predicate["decodes"][decode]["verdict"] = predicate["verdict"] = verdict
    return statement


def _hide(predicate: dict[str, Any]) -> None:
    made = record_of(form.Certificate, predicate)
    decode, row = made.places[predicate["challenged"][0]]
    leaves = reading._leaves(made, made.decodes[decode].images[row])[0]
    predicate["decodes"][decode]["images"][row] = {"scales": b"".join(leaves).hex()}


def _shown(predicate: dict[str, Any]) -> dict[str, Any]:
    return next(image for d in predicate["decodes"] for image in d["images"] if "tokens" in image)


def _respelt(predicate: dict[str, Any]) -> None:
    """Spell base64 with other bits where nothing is read: V = 16, 14 tokens, 7 bytes."""
    image = _shown(predicate)
    text = image["tokens"].rstrip("=")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    image["tokens"] = text[:-1] + letters[letters.index(text[-1]) ^ 1] + "=" * (-len(text) % 4)


# By name, what is done to the predicate of a good one, whose digest is then made anew.
BAD: dict[str, Change] = {
    "another-root": lambda p: p.update(root="0" * 64),
    "other-challenges": lambda p: p["challenged"].reverse(),
    "hidden-challenge": _hide,
    "another-field": lambda p: p.update(note="believe me"),
    "missing-field": lambda p: p.pop("exercised"),
    "another-verdict": lambda p: p.update(verdict="TIE"),
    "another-decode-verdict": lambda p: p["decodes"][0].update(verdict="TIE"),
    "other-counts": lambda p: p["counts"].update(identical=p["counts"]["identical"] + 1),
    "counts-that-do-not-add-up": lambda p: p["decodes"][0].update(identical=1),
    "fewer-images": lambda p: p["decodes"][0]["images"].pop(),
    "hidden-defect": lambda p: p["decodes"][0].update(defects=1),
    "no-such-setting": lambda p: p["decodes"][0].update(setting=7),
    "a-tie-where-nothing-differs": lambda p: _shown(p).update(ties=[3]),
    "short-tokens": lambda p: _shown(p).update(tokens="AAAA"),
    "respelt-base64": _respelt,
    "a-digest-in-capitals": lambda p: next(i for d in p["decodes"] for i in d["images"] if "scales" in i).update(
        scales="F" * 192
    ),
    "inconclusive-and-identical": lambda p: p.update(inconclusive=["nothing was drafted"]),
    "early-and-identical": lambda p: p.update(early=["law broken"]),
    "closest-draw-of-nowhere": lambda p: p.update(closest=[[99, 0, 0.5, 0.1]]),
    "exercised-by-fewer": lambda p: p["exercised"].update(decodes=1),
    "exercised-and-missing": lambda p: p["exercised"]["asked"].append(next(iter(p["exercised"]["missing"]))),
    "planted-bugs-of-another-question": lambda p: p.update(planted={"caught": 176, "planted": 180}),
    "no-networks": lambda p: p["networks"].update(patch_nums=[], sides=[]),
}


def vectors() -> dict[str, tuple[bytes, str]]:
    """Return every vector by its file's name, with what becomes of it: good, bad, or bad by its signature alone."""
    good, wrong = certificate(run()), certificate(run("tests.doors:wrong_token"))
    law = certificate(run(policy="rejection"))
    for each in (good, wrong, law):
        each["subject"] = SUBJECT
        each["predicate"]["decoder"] |= {"commit": "0" * 40, "changed": False}
    text = sealed(good)
    made = {"identical": text, "defect": sealed(wrong), "law": sealed(law), "tie": sealed(with_tie(_copy(good)))}
    made["signed"] = form.signed(made["identical"], KEY)
    found = {f"{name}.json": (content, "good") for name, content in made.items()}
    for name, change in BAD.items():
        each = _copy(good)
        change(each["predicate"])
        found[f"{name}.json"] = sealed(each), "bad"
    for name, subject in {"no-subject": [], "a-subject-twice": SUBJECT * 2}.items():
        found[f"{name}.json"] = sealed({**good, "subject": subject}), "bad"
    envelope = json.loads(made["signed"])
    signature = envelope["signatures"][0]
    of_text = {
        "another-digest": text.replace(b'"whole":true', b'"whole":false'),
        "a-key-twice": text.replace(b'"whole":true', b'"whole":true,"whole":true'),
        "white-space": text.replace(b'"whole":true', b'"whole": true'),
        "a-line-break-at-the-end": text + b"\n",
        "another-order": text.replace(b'"versions":', b'"versionz":'),
        "a-number-respelt": text.replace(b'"cfg":1.5', b'"cfg":1.50'),
        "a-long-number": text.replace(b'"cfg":1.5', b'"cfg":1.5' + b"0" * 5000),
        "an-integer-beyond-2-53": text.replace(b'"seed":0', b'"seed":9007199254740993'),
        "not-a-number": text.replace(b'"cfg":1.5', b'"cfg":NaN'),
        "infinite": text.replace(b'"cfg":1.5', b'"cfg":1e999'),
        "half-a-character": text.replace(b'"title":"', b'"title":"\\ud800'),
        "cut-short": text[: len(text) // 2],
        "nested": text[: text.index(b'"laws":') + 7] + b"[" * 30_000,
        "empty": b"",
        "another-payload-type": form.canonical({**envelope, "payloadType": "text/plain"}),
        "two-signatures": form.canonical({**envelope, "signatures": [signature, signature]}),
        "no-signature": form.canonical({**envelope, "signatures": []}),
        "a-respelt-payload": form.canonical({**envelope, "payload": envelope["payload"].rstrip("=") + "===="}),
    }
    found |= {f"{name}.json": (content, "bad") for name, content in of_text.items()}
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    of_signature = {
        "signed-by-another-key": form.signed(made["identical"], other),
        "signature-of-another-text": form.canonical({**envelope, "payload": base64.b64encode(made["defect"]).decode()}),
        "another-keyid": form.canonical({**envelope, "signatures": [{**signature, "keyid": "0" * 64}]}),
    }
    return found | {f"{name}.json": (content, "bad signature") for name, content in of_signature.items()}


def _copy(statement: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(statement)))


def main() -> None:
    """Write the vectors, what becomes of each, and the public key."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    made = vectors()
    for name, (content, _) in made.items():
        (FOLDER / name).write_bytes(content)
    (FOLDER / "expected.txt").write_text("".join(f"{name}: {what}\n" for name, (_, what) in sorted(made.items())))
    pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (FOLDER / "key.pub").write_bytes(KEY.public_key().public_bytes(*pem))


if __name__ == "__main__":
    main()
