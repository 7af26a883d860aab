"""What a file is, by its first bytes, whatever its name: one answer for checkpoints, goldens, run files and bundles.

Promise: nothing is executed, and nothing unpacked; a file is called cut short only where it says itself how long it is.
Who reads a file names the kinds that it takes; any other is refused as what it is, with what to do.
"""

import io
import json
import pickletools
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError, shortened, text_of
from harness.files import check_readable

HEAD = 512  # bytes that tell
GENERATOR = '<meta name="generator" content="sdvar-harness">'  # at the head of every page
MOST_HEADER = 10**8  # bytes of a safetensors header; the library refuses more, too
MOST_PICKLE = 2**26  # bytes of a pickle that are looked through for classes
MOST_SHOWN, MOST_REASON = 40, 120  # characters of a text, and of why
AGAIN = "copy or download it again"
UNPACK = "unpack it, and pass what is inside"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of the number that torch.save began with until 1.6


@dataclass(frozen=True)
class Content:
    """What a file is."""

    kind: str  # in a word: safetensors, torch, pickle, sqlite, cut, …
    words: str  # to a person
    remedy: str = ""  # what to do about it; empty where the reader knows better


SAFETENSORS = Content("safetensors", "is a safetensors file")
TORCH = Content("torch", "is a file of torch.save")
MAGIC: tuple[tuple[bytes, Content], ...] = (
    (LEGACY, TORCH),
    (b"version https://git-lfs", Content("lfs", "is a git-lfs pointer: the file itself is not here", "git lfs pull")),
    (b"SQLite format 3\0", Content("sqlite", "is an SQLite database, as run files are")),
    (b"\x89HDF\r\n\x1a\n", Content("hdf5", "is an HDF5 file")),
    (b"\x93NUMPY", Content("npy", "is a NumPy array (.npy)")),
    (b"GGUF", Content("gguf", "is a GGUF file")),
    (b"PAR1", Content("parquet", "is a Parquet file")),
    (b"\x1f\x8b", Content("gzip", "is compressed by gzip", UNPACK)),
    (b"\x28\xb5\x2f\xfd", Content("zstd", "is compressed by zstd", UNPACK)),
    (b"\xfd7zXZ\0", Content("xz", "is compressed by xz", UNPACK)),
    (b"BZh", Content("bzip2", "is compressed by bzip2", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Content("7z", "is a 7z archive", UNPACK)),
    (b"Rar!", Content("rar", "is a RAR archive", UNPACK)),
    (b"\x89PNG", Content("picture", "is a picture (.png)")),
    (b"\xff\xd8\xff", Content("picture", "is a picture (.jpg)")),
)  # fmt: skip


def content_of(path: Path) -> Content:
    """Say what a regular file is. Raises `OSError` where it cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    if not head:
        return Content("empty", "is empty", AGAIN)
    for begin, content in MAGIC:
        if head.startswith(begin):
            return content
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _zip(path)
    if head[257:262] == b"ustar":
        return Content("tar", "is a tar archive", UNPACK)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= MOST_HEADER:
        return _safetensors(path, length, size)
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        words = "is a pickle, not a file of torch.save"
        return Content("pickle", words, "save its tensors with torch.save or safetensors")
    if not head.strip(b"\0"):
        return Content("zeros", "begins with zeros alone: its content never arrived", AGAIN)
    return _text(head) or Content("unknown", "is of a format that its first bytes do not tell")


def refuse_other(path: Path, name: str, taken: Iterable[str], remedy: str) -> Content:
    """Return what a file is; refuse one that is none of the kinds `taken`, or no regular file. Raises `InputError`.

    `name` is what it is to the user, e.g. ``target``; `remedy` what to do where the content itself suggests nothing.
    """
    check_readable(path, name, remedy)
    try:
        content = content_of(path)
    except OSError as error:
        raise InputError(name, str(path), f"cannot be read ({error.strerror})", remedy) from None
    if content.kind not in taken:
        raise InputError(name, str(path), content.words, content.remedy or remedy)
    return content


def read_safetensors(path: Path, name: str, remedy: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return metadata and tensors of a safetensors file. Raises `InputError` where it is none, or damaged."""
    from safetensors import safe_open  # noqa: PLC0415  # commands check their files before PyTorch is there

    refuse_other(path, name, ("safetensors",), remedy)
    try:
        with safe_open(path, "pt") as stream:
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118  # not a mapping
            return dict(stream.metadata() or {}), tensors
    except Exception as error:  # whatever the bytes of a damaged file lead to
        reason = shortened(text_of(error), MOST_REASON)
        raise InputError(name, str(path), f"is a damaged safetensors file ({reason})", AGAIN) from None


def classes_of(path: Path) -> tuple[int, list[str]]:
    """Return the protocol of a pickle, or of the one in a file of torch.save, and the classes and functions it names.

    These in their order, once each; the protocol is 0 where it is not said.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                record = next(each for each in archive.namelist() if each.endswith("data.pkl"))
                with archive.open(record) as stream:
                    pickles = stream.read(MOST_PICKLE)
        else:
            with path.open("rb") as stream:
                pickles = stream.read(MOST_PICKLE)
    except (OSError, zipfile.BadZipFile, StopIteration):
        return 0, []
    return pickles[1] if pickles[:1] == b"\x80" and pickles[1:] else 0, list(dict.fromkeys(_named(pickles)))


def _named(pickles: bytes) -> Iterator[str]:
    """Yield the dotted names that the opcodes of one pickle after another look up."""
    stream, texts, memo = io.BytesIO(pickles), list[str](), dict[int, str]()
    try:
        while stream.tell() < len(pickles):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(texts[-2:])
                elif opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
                    memo[int(argument or 0) if opcode.name != "MEMOIZE" else len(memo)] = texts[-1] if texts else ""
                elif opcode.name in ("BINGET", "LONG_BINGET"):
                    texts.append(memo.get(int(argument or 0), ""))
                elif isinstance(argument, str):
                    texts.append(argument)
    except Exception:  # the rest is no pickle: weights, in old files of torch.save
        return


def _zip(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return Content("cut", "is a zip archive, as of torch.save, that is cut short", AGAIN)
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        return Content("torchscript", "is a TorchScript archive: a program", "save model.state_dict() in its place")
    if "data.pkl" in inside:
        return TORCH
    if names and all(name.endswith(".npy") for name in names):
        return Content("npz", "is a NumPy archive (.npz)")
    first = f" of {names[0]}" if names else " of nothing"
    return Content("zip", f"is a zip archive{first}, with no data.pkl of torch.save inside", UNPACK)


def _safetensors(path: Path, length: int, size: int) -> Content:
    """Compare what a header promises with what is there."""
    promised = 8 + length
    try:
        if size >= promised:
            with path.open("rb") as stream:
                header: Mapping[str, Any] = json.loads(stream.read(promised)[8:])
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            promised += max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return SAFETENSORS  # a damaged one: the library says what is wrong
    if size < promised:
        return Content("cut", f"is a safetensors file that is cut short: {size} of {promised} bytes", AGAIN)
    return SAFETENSORS


def _text(head: bytes) -> Content | None:
    """Say what a text is; None for what is none."""
    try:
        text = head.decode("utf-8-sig", "strict" if len(head) < HEAD else "ignore").strip()
    except UnicodeDecodeError:
        return None
    if not text or any(not (character.isprintable() or character.isspace()) for character in text):
        return None
    if text.lower().startswith(("<!doctype html", "<html", "<head", "<!--")):
        if GENERATOR in text:
            return Content("html", "is a page of --html", "pass the file of --run that it was made from")
        words = "is a web page, as a server sends to a browser"
        return Content("html", words, "download the file itself, signed in if need be")
    begins = f"that begins with {shortened(' '.join(text.split()), MOST_SHOWN)!r}"
    if text.startswith("<"):
        return Content("xml", f"is an XML text {begins}, as a server says why not", AGAIN)
    if text.startswith(("{", "[")):
        return Content("json", f"is a JSON text {begins}")
    return Content("text", f"is a text {begins}")
