"""Files of weights as people have them: one, or several with an index, in the formats of safetensors and torch.save.

Promise: nothing in a file is executed, and its first bytes say what it is, whatever its name. What is read of a
safetensors file has memory of its own: the file may change while its weights are in use.

Files of a Hugging Face hub go by their address: hf://OWNER/NAME/FILE, at a revision hf://OWNER/NAME@REVISION/FILE. One
is downloaded once and kept in the hub's own cache; what is there is used unasked, so that it works offline and is the
same file every time. The library is wanted only where an address is given.
"""

import json
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

import torch
from safetensors import safe_open
from torch import Tensor

from harness.content import AGAIN, classes_of, refuse_other
from harness.errors import InputError, check_installed, shortened, text_of
from harness.files import HUB

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")  # of weights in a folder; the first goes before the others
MOST_NAMED, MOST_REASON = 6, 120  # files or classes that a message names; characters of why
# Share of a safetensors file, and bytes at least, between two openings: what was read is then no longer in memory.
AT_ONCE, LEAST_AT_ONCE = 1 / 32, 2**20
AT_A_TIME = 2**20  # bytes of a record, of which a checksum is made
SAFE_PROTOCOL = 3  # of pickles: the last one that torch.load reads without executing it
HARMLESS = re.compile(
    r"torch\._utils\._rebuild_|torch\.(\w+\.)?\w*Storage|torch\.Size|collections\.OrderedDict|(__builtin__|builtins)\."
)
TRUSTED = "where you trust it: torch.load(FILE, weights_only=False), then torch.save its state dict alone"
WHOLE = "pass a .safetensors file, or a .pth file of a state dict"


def files_of(path: Path, name: str) -> list[Path]:
    """Return the files that a path stands for: itself, an index's, or the one in a folder. Raises `InputError`."""
    if path.name.endswith(".index.json"):
        return _shards(path, name)
    if not os.path.isdir(path):  # a name that is too long is none
        return [path]
    there = sorted(path.iterdir())
    indices = [each for each in there if each.name.endswith(".index.json")]
    if indices:
        return _shards(min(indices, key=lambda each: SUFFIXES[0] not in each.name), name)
    weights = [each for each in there if each.suffix in SUFFIXES]
    first = [each for each in weights if each.suffix == SUFFIXES[0]]
    if len(first) == 1 or len(weights) == 1:
        return (first or weights)[:1]
    if os.path.exists(path / ".metadata"):
        remedy = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE, and pass FILE"
        raise InputError(name, str(path), "is a distributed checkpoint", remedy)
    names = ", ".join(each.name for each in weights[:MOST_NAMED])
    rule = f"is a folder of several files of weights ({names})" if weights else "is a folder without a file of weights"
    raise InputError(name, str(path), rule, f"pass --{name} FILE")


def shards_in(index: Path, name: str) -> list[str]:
    """Return the names of the files that an index names. Raises `InputError` where it is none."""
    refuse_other(index, name, ("json",), WHOLE)
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if names and all(each and Path(each).name == each for each in names):
            return names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise InputError(name, str(index), "is no index of shards: its weight_map names no files beside it", WHOLE)


def _shards(index: Path, name: str) -> list[Path]:
    paths = [index.parent / each for each in shards_in(index, name)]
    missing = [path.name for path in paths if not os.path.isfile(path)]  # a name that is too long is none
    if missing:
        rule = f"names {', '.join(missing[:MOST_NAMED])}, which {'is' if len(missing) == 1 else 'are'} not there"
        raise InputError(name, str(index), rule, "download every shard beside it")
    return paths


def read(files: Sequence[Path], name: str) -> object:
    """Return what files hold, tensors in mappings, of several files together. Raises `InputError`."""
    trees = [_read_one(path, name) for path in files]
    if len(trees) == 1:
        return trees[0]
    return {key: value for tree in trees if isinstance(tree, dict) for key, value in tree.items()}


def settled(tensor: Tensor, copy: bool = False) -> Tensor:
    """Return a tensor as it is computed with: floats in float32, in as much memory as it needs, its own with `copy`."""
    plain = tensor.detach()
    if plain.is_floating_point() and plain.dtype != torch.float32:
        return plain.float().contiguous()
    shares = copy or plain.untyped_storage().nbytes() > plain.numel() * plain.itemsize
    return plain.clone(memory_format=torch.contiguous_format) if shares else plain.contiguous()


def _read_one(path: Path, name: str) -> object:
    content = refuse_other(path, name, ("safetensors", "torch", "pickle"), WHOLE)
    if content.kind == "pickle":
        raise _needs_code(path, name, content.words) or InputError(name, str(path), content.words, WHOLE)
    return _read_safetensors(path, name) if content.kind == "safetensors" else _read_torch(path, name)


def _needs_code(path: Path, name: str, words: str) -> InputError | None:
    """Return the error for a file that names what would have to be executed; None where it names nothing such."""
    classes = [each for each in classes_of(path)[1] if not HARMLESS.match(each)]
    if not classes:
        return None
    rule = f"{words}, and needs {', '.join(classes[:MOST_NAMED])}, which reading would execute"
    return InputError(name, str(path), rule, TRUSTED)


def _read_safetensors(path: Path, name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    most = max(int(path.stat().st_size * AT_ONCE), LEAST_AT_ONCE)
    try:
        with safe_open(path, "pt") as stream:
            left = list(stream.keys())
        while left:
            with safe_open(path, "pt") as stream:
                read_bytes = 0
                while left and read_bytes < most:
                    mapped = stream.get_tensor(left[-1])
                    tensors[left.pop()] = settled(mapped, copy=True)
                    read_bytes += mapped.nbytes
                del mapped
    except Exception as error:  # whatever the bytes of a damaged file lead to
        rule = f"is a safetensors file that cannot be read ({shortened(text_of(error), MOST_REASON)})"
        raise InputError(name, str(path), rule, AGAIN) from None
    return tensors


def _read_torch(path: Path, name: str) -> object:
    try:
        with warnings.catch_warnings(), path.open("rb") as stream:  # of a path, torch.load would believe the name
            warnings.simplefilter("ignore")  # of pickle protocols and quantised tensors: what matters is checked
            tree = torch.load(stream, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler meets any byte, and raises accordingly
        if (needs := _needs_code(path, name, "is a file of torch.save")) is not None:
            raise needs from None
        protocol = classes_of(path)[0]
        if protocol > SAFE_PROTOCOL:
            rule = f"is a file of torch.save in pickle protocol {protocol}, of which PyTorch reads nothing unexecuted"
            raise InputError(name, str(path), rule, TRUSTED) from None
        reason = shortened(text_of(error).splitlines()[0], MOST_REASON)
        rule = f"is a file of torch.save that is damaged or cut short ({reason})"
        raise InputError(name, str(path), rule, AGAIN) from None
    _check_sums(path, name)
    return tree


def _check_sums(path: Path, name: str) -> None:
    """Refuse an archive of torch.save in which a byte is another one: PyTorch does not look. Raises `InputError`."""
    if not zipfile.is_zipfile(path):
        return  # of PyTorch before 1.6: without checksums
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                with archive.open(record) as stream:
                    while record.CRC and stream.read(AT_A_TIME):  # 0 where the writer computed none
                        pass
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, zlib.error) as error:
        rule = f"is a file of torch.save that is damaged ({shortened(text_of(error), MOST_REASON)})"
        raise InputError(name, str(path), rule, AGAIN) from None


FORM = f"{HUB}OWNER/NAME/FILE"
MOST_REFUSAL = 150  # characters of why the hub refuses
# What the library refuses by, the first that an error is; what the hub's answer means, and what to do.
REFUSALS = (
    ("GatedRepoError", "is for those whom its owners let in", "ask for access on its page, then hf auth login"),
    ("RevisionNotFoundError", "has no revision {revision}", "see the commits on its page"),
    ("RepositoryNotFoundError", "is no repository of the hub, or a private one", "see its name, or hf auth login"),
    ("LocalEntryNotFoundError", "is not in the cache, and the hub cannot be reached",
     "go online once, or pass --{name} FILE"),
    ("EntryNotFoundError", "has no file {file}", "see the files on its page"),
    ("Exception", "cannot be fetched ({reason})", "download it by hand, and pass --{name} FILE"),
)  # fmt: skip


def fetched(place: str, name: str) -> Path:
    """Return where the file of an address lies here, with its shards; a path, as it is. Raises `InputError`."""
    if not place.startswith(HUB):
        return Path(place)
    owner, _, rest = place.removeprefix(HUB).partition("/")
    repository, _, file = rest.partition("/")
    repository, _, revision = repository.partition("@")
    if not (owner and repository and file):
        raise InputError(name, place, f"must read {FORM}", f"pass --{name} {HUB}FoundationVision/var/var_d16.pth")
    check_installed("huggingface_hub", "hub", name, place, "is fetched by huggingface_hub")
    get = partial(_downloaded, f"{owner}/{repository}", revision or None, name=name, place=place)
    path = get(file)
    if path.name.endswith(".index.json"):
        for shard in shards_in(path, name):
            get(str(PurePosixPath(file).with_name(shard)))
    return path


def revision_of(path: Path) -> str:
    """Return the commit of a file in the hub's cache; empty for any other."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else ""


def _downloaded(repository: str, revision: str | None, file: str, name: str, place: str) -> Path:
    """Return where a file of a repository lies, downloaded if need be. Raises `InputError`."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415  # an extra
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        with suppress(LocalEntryNotFoundError):  # what is there is not asked for again, and does not change
            return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # of the library, of HTTP, of the disk
        kinds = {each.__name__ for each in type(error).__mro__}
        rule, remedy = next(words for kind, *words in REFUSALS if kind in kinds)
        reason = shortened(text_of(error), MOST_REFUSAL)
        rule = rule.format(revision=revision, file=file, reason=reason)
        raise InputError(name, place, rule, remedy.format(name=name)) from None
