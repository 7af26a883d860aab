"""The form of a certificate: two readers that share no code, on every vector; and no change that goes unseen."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.certificate import _form as form
from harness.certificate import read_certificate
from harness.errors import InputError
from scripts import check_certificate as small
from tests.certificates import FOLDER, KEY, SUBJECT, certificate, run, sealed, vectors

EXPECTED = dict(line.split(": ") for line in (FOLDER / "expected.txt").read_text().splitlines())
CHANGES = 1000


def read(path: Path) -> form.Certificate:
    """Read a vector as it is meant to be read."""
    key = FOLDER / "key.pub" if path.read_bytes().startswith(b'{"payload"') else None
    return read_certificate(path, key)[0]


@pytest.mark.parametrize("name", EXPECTED)
def test_both_readers_say_of_every_vector_what_it_is(name: str, capsys: pytest.CaptureFixture[str]):
    path, what = FOLDER / name, EXPECTED[name]
    status = small.main(str(path))
    if what == "good":
        assert read(path).verdict in capsys.readouterr().out
    else:
        with pytest.raises(InputError) as refused:
            read(path)
        assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)
    assert status == (2 if what == "bad" else 0)  # a signature is not for the small one


def test_the_vectors_are_all_there_and_of_today_s_format():
    made = vectors()
    assert {name: what for name, (_, what) in made.items()} == EXPECTED
    assert {path.name for path in FOLDER.glob("*.json")} == set(EXPECTED)
    for name, (content, _) in made.items():  # other versions and commits, the same fields
        if EXPECTED[name] == "good" and name != "signed.json":
            here, kept = (json.loads(each)["predicate"] for each in (content, (FOLDER / name).read_bytes()))
            assert set(here) == set(kept)


@pytest.fixture(scope="module")
def good() -> bytes:
    return (FOLDER / "identical.json").read_bytes()


def changed(text: bytes, random: random.Random) -> tuple[str, bytes]:
    """Change one byte, field, token, order or key of a signed certificate, and make its own digest anew."""
    envelope = json.loads(text)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    kind = random.choice(("byte", "byte inside", "field", "token", "order", "key twice"))
    if kind == "byte":
        place = random.randrange(len(text))
        return kind, text[:place] + bytes([(text[place] + random.randrange(1, 256)) % 256]) + text[place + 1 :]
    if kind == "byte inside":
        payload = bytearray(base64.b64decode(envelope["payload"]))
        place = random.randrange(len(payload))
        payload[place] = (payload[place] + random.randrange(1, 256)) % 256
        return kind, form.canonical({**envelope, "payload": base64.b64encode(payload).decode()})
    if kind == "field":
        owner, key = random.choice(list(fields(statement["predicate"])))
        owner[key] = {int: 7, str: "other", bool: not owner[key], float: 0.25, list: [1], dict: {"a": 1}}.get(
            type(owner[key]), 1
        )
    elif kind == "token":
        shown = [i for d in statement["predicate"]["decodes"] for i in d["images"] if "tokens" in i]
        image = random.choice(shown)
        raw = bytearray(base64.b64decode(image["tokens"]))
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
        image["tokens"] = base64.b64encode(raw).decode()
    elif kind == "order":
        lists = [v for o, k in fields(statement) if isinstance(v := o[k], list) and len(v) > 1 and v != v[::-1]]
        random.choice(lists).reverse()
    else:
        payload = base64.b64decode(envelope["payload"])
        payload = payload.replace(b'"whole":true', b'"whole":false,"whole":true')
        return kind, form.canonical({**envelope, "payload": base64.b64encode(payload).decode()})
    try:
        payload = sealed(statement)
    except ValueError:
        payload = form.canonical(statement)
    return kind, form.canonical({**envelope, "payload": base64.b64encode(payload).decode()})


def fields(value: Any) -> list[tuple[Any, Any]]:
    """Return every place of a document: what holds it, and its key or index."""
    places = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in places] + [each for _, inside in places for each in fields(inside)]


def test_a_thousand_changes_of_a_signed_certificate_are_refused(tmp_path: Path, good: bytes):
    text, path, numbers = form.signed(good, KEY), tmp_path / "changed.json", random.Random(0)
    path.write_bytes(text)
    read(path)
    seen = dict[str, int]()
    while sum(seen.values()) < CHANGES:
        kind, other = changed(text, numbers)
        if other == text:
            continue
        path.write_bytes(other)
        with pytest.raises(InputError):
            read_certificate(path, FOLDER / "key.pub")
        seen[kind] = seen.get(kind, 0) + 1
    assert len(seen) == 6 and min(seen.values()) > 100


def test_what_accidents_do_to_an_unsigned_one_is_seen_by_both(tmp_path: Path, good: bytes):
    path, numbers = tmp_path / "changed.json", random.Random(1)
    for _ in range(200):
        place = numbers.randrange(len(good))
        path.write_bytes(good[:place] + bytes([(good[place] + numbers.randrange(1, 256)) % 256]) + good[place + 1 :])
        with pytest.raises(InputError):
            read_certificate(path)
        assert small.main(str(path)) == 2


def test_a_signed_one_is_read_with_a_key_alone_and_an_unsigned_one_without(tmp_path: Path):
    with pytest.raises(InputError, match="is signed, and nobody says by whom; pass --key FILE"):
        read_certificate(FOLDER / "signed.json")
    with pytest.raises(InputError, match="is not signed, and a key is given; drop --key"):
        read_certificate(FOLDER / "identical.json", FOLDER / "key.pub")
    assert read_certificate(FOLDER / "signed.json", believed=False)[2]
    with pytest.raises(InputError, match="it is signed with another key"):
        read_certificate(FOLDER / "signed-by-another-key.json", FOLDER / "key.pub")
    with pytest.raises(InputError, match="its signature is of another text"):
        read_certificate(FOLDER / "signature-of-another-text.json", FOLDER / "key.pub")
    with pytest.raises(InputError, match="is no public Ed25519 key as PEM"):
        read_certificate(FOLDER / "signed.json", FOLDER / "identical.json")


def test_a_file_of_any_size_or_depth_is_refused_before_anything_heavy(tmp_path: Path):
    large = tmp_path / "large.json"
    with large.open("wb") as stream:
        stream.write(b'{"_type":"')
        stream.truncate(2**30)
    with pytest.raises(InputError, match="has 1073741824 bytes, more than the 16777216 of any"):
        read_certificate(large)
    code = f"""
import sys
from pathlib import Path
from harness.certificate import read_certificate
try:
    read_certificate(Path({str(FOLDER / "nested.json")!r}))
except Exception as error:
    print(type(error).__name__, "nested too deep" in str(error), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["InputError", "True", "False"]


def test_as_many_images_as_anybody_reads_take_two_seconds(tmp_path: Path):
    statement = json.loads((FOLDER / "identical.json").read_text())
    decode = statement["predicate"]["decodes"][0]
    decode["images"] = [{"scales": "0" * 192}] * 19_500
    path = tmp_path / "many.json"
    path.write_bytes(sealed(statement))
    start = time.process_time()
    with pytest.raises(InputError, match="a decode holds other images than were asked"):
        read_certificate(path)
    assert time.process_time() - start < 2
    decode["images"] *= 2
    path.write_bytes(sealed(statement))
    with pytest.raises(InputError, match="it has more than 40000 values"):
        read_certificate(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.update(scales=""),
        lambda image: image.update(ties=[]),
        lambda image: image.update(expected=""),
        lambda image: image.update(note="believe me"),
    ],
)
def test_an_image_has_one_spelling_for_both(change: Any, tmp_path: Path):
    statement = json.loads((FOLDER / "identical.json").read_text())
    change(next(i for d in statement["predicate"]["decodes"] for i in d["images"] if "tokens" in i))
    path = tmp_path / "respelt.json"
    path.write_bytes(sealed(statement))
    with pytest.raises(InputError, match="does not hold together"):
        read_certificate(path)
    assert small.main(str(path)) == 2


def test_a_record_without_names_is_refused(tmp_path: Path):
    statement = json.loads((FOLDER / "identical.json").read_text())
    fields_of = form.SettingStated.__dataclass_fields__
    statement["predicate"]["settings"] = [[each[n] for n in fields_of] for each in statement["predicate"]["settings"]]
    path = tmp_path / "unnamed.json"
    path.write_bytes(sealed(statement))
    with pytest.raises(InputError, match="a record of it has no names"):
        read_certificate(path)
    assert small.main(str(path)) == 2


@pytest.mark.parametrize("kind", ["scales", "escapes"])
def test_what_takes_long_to_read_is_refused_by_both_within_two_seconds(kind: str, tmp_path: Path):
    statement = json.loads((FOLDER / "identical.json").read_text())
    predicate = statement["predicate"]
    if kind == "scales":  # a digest each, of one bit
        predicate["networks"].update(patch_nums=[1] * 4000, V=2)
        predicate["decodes"][0]["images"] = [{"tokens": "A" * 667 + "="}] * 2000
        text = sealed(statement)
    else:
        text = (FOLDER / "identical.json").read_bytes().replace(b'"title":"', b'"title":"' + b"\\u0001" * 10**6)
    path = tmp_path / "slow.json"
    path.write_bytes(text)
    start = time.process_time()
    with pytest.raises(InputError, match=r"it has more than (131072 scales|40000 values)"):
        read_certificate(path)
    assert small.main(str(path)) == 2
    assert time.process_time() - start < 4  # of both


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 13])
def test_both_build_the_tree_of_the_rfc(count: int):
    leaves = [bytes([k]) * 32 for k in range(count)]
    assert form.merkle_root(leaves) == small.root_of(leaves).hex()


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 1.0, 0.1, 1e21, 1e-7, 123456789012345680.0, 5e-324, 1.7976931348623157e308, 1e20, 1e-6, -2.5e-9],
)  # fmt: skip
def test_both_spell_a_number_alike(value: float):
    assert small.canonical(value).encode() == form.canonical(value)


@pytest.mark.parametrize("V", [2, 3, 16, 4096, 4097])
def test_tokens_come_back_from_their_bits(V: int):
    tokens_L = form.np.array([0, V - 1, 1, V // 2, 1])
    raw = form.packed(tokens_L, V)
    assert form.unpacked(raw, 5, V).tolist() == tokens_L.tolist()
    assert small.tokens_of(form.base64_of(raw), 5, V).tolist() == tokens_L.tolist()
    assert form.scale_digests(tokens_L, [0, 5], V) == [small.leaf(tokens_L, V)]


def test_a_hundred_images_of_the_published_size_take_less_than_a_megabyte():
    """Of a decoder with a tie in every image: tokens of all of them, and what the reference draws, are there."""
    V, tokens_L = 4096, form.np.arange(680)
    text = form.base64_of(form.packed(tokens_L, V))
    statement = certificate(run(seeds=1))
    images = [{"tokens": text, "expected": text, "ties": [1]}] * 100
    statement["predicate"]["decodes"][0]["images"] = images
    assert len(form.sealed(SUBJECT, statement["predicate"])) < 10**6 / 2
