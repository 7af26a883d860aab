"""The one network in a file: found in whatever mapping and under whatever prefix it lies.

Promise: if exactly one state dict fits, it is taken, and what was taken from where is said; where two fit, which one
is asked, by name. What fits, the family says. Memory: each tensor is converted alone, and the file's own is let go,
so that loading takes twice the file's size at most.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import Tensor

from harness.errors import InputError, one_line, shortened
from harness.files import ENTRY, HUB, split_source
from harness.models._weight_files import WHOLE, fetched, files_of, read, revision_of, settled
from harness.models.network import Codec, Network

MOST_DEPTH, MOST_NAMED = 32, 6  # of mappings in mappings; keys or entries that a message names
MOST_SAID = 400  # characters on what was taken from where
PACKED = (torch.float4_e2m1fn_x2,)  # several in a byte
# What PyTorch's wrappers put into the names of whatever they wrap, at any depth.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
SHARD = re.compile(r"-0*(\d+)-of-0*([2-9]|\d{2,})\.")
Built = TypeVar("Built", bound=Network | Codec)


@dataclass(frozen=True)
class Kind:
    """A kind of network, as files tell it."""

    words: str  # to a person
    anchors: tuple[str, ...]  # tensors of every such network, by which the prefix of its names is found
    unread: tuple[str, ...]  # last parts of the names of tensors that may be there, and that nothing computes with
    inner: re.Pattern[str] = WRAPPERS  # what else files may have in names


@dataclass(frozen=True)
class Candidate:
    """Tensors of a file that may be the network's."""

    entry: str  # keys down to them, and the prefix of their names, joined by dots; empty: the file as it is
    tensors: dict[str, Tensor]  # by name without the prefix
    wrappers: tuple[str, ...]  # that were taken out of names
    beside: int  # other tensors of the same mapping

    def same(self, other: Self) -> bool:
        """Tell whether another one holds the same numbers."""
        if self.tensors.keys() != other.tensors.keys():
            return False
        pairs = ((mine, other.tensors[key]) for key, mine in self.tensors.items())
        return all(a is b or (is_plain(a) and is_plain(b) and torch.equal(a, b)) for a, b in pairs)


def load_network(
    source: Path | str, name: str, kinds: tuple[Kind, ...], build: Callable[[Mapping[str, Tensor], str], Built]
) -> tuple[Built, str]:
    """Return the one network of a file or folder that fits, and what was taken from where; empty where that is plain.

    `source` is FILE, FOLDER, FILE::ENTRY, or hf://OWNER/NAME/FILE; `name` what it is to the user, e.g. ``target``;
    `kinds` the one that is wanted, then those that may lie beside it; `build` makes the network of a state dict, or
    says in an `InputError` why it does not fit.

    Raises `InputError` where the file cannot be read; nothing in it fits (with every name that is missing, unknown or
    mis-shaped); several fit, or none has the entry's name.
    """
    place, entry = split_source(str(source))
    files = files_of(fetched(place, name), name)
    chosen, built = _chosen(files, (name, place, entry), kinds, build)
    used, names = list(built.weights), list(chosen.tensors)
    del built  # it holds the tensors as the file does
    weights = [chosen.tensors[key] for key in used]
    wide = any(t.dtype == torch.float64 and not torch.equal(t.float().double(), t) for t in weights)
    del weights
    for key in used:
        chosen.tensors[key] = settled(chosen.tensors.pop(key))
    left = [key for key in names if key not in used and key.rpartition(".")[2] not in kinds[0].unread]
    notes = [f"taken from {chosen.entry}"] if chosen.entry else []
    notes += [f"{', '.join(chosen.wrappers)} taken out of its names"] if chosen.wrappers else []
    notes += [f"{len(files)} shards"] if len(files) > 1 else []
    notes += [f"revision {revision}"] if place.startswith(HUB) and (revision := revision_of(files[0])) else []
    notes += [f"{chosen.beside} other tensors beside it"] if chosen.beside else []
    notes += [f"not needed: {', '.join(sorted({key.partition('.')[0] for key in left}))}"] if left else []
    notes += ["rounded from float64 to float32"] if wide else []
    said = one_line(f"{name} {Path(place).name}: {shortened('; '.join(notes), MOST_SAID)}") if notes else ""
    return build(chosen.tensors, f"{name}={place}"), said


def tensors_of(file: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a file by name, in float32; `name` is as of `load_network`. Raises `InputError`."""
    tree = read([file], name)
    if not isinstance(tree, dict) or not all(isinstance(each, Tensor) for each in tree.values()):
        raise InputError(name, str(file), "must hold tensors by name", "pass a .safetensors file")
    return {str(key): settled(tensor) for key, tensor in tree.items()}


def _chosen(
    files: Sequence[Path], asked: tuple[str, str, str], kinds: tuple[Kind, ...],
    build: Callable[[Mapping[str, Tensor], str], Built],
) -> tuple[Candidate, Built]:  # fmt: skip
    """Return the one candidate that fits, and what is built of it; `asked` is (name, place, entry)."""
    name, place, entry = asked
    tree = read(files, name)
    candidates = list(_candidates(tree, kinds))
    if not candidates:
        raise InputError(name, place, _without(tree, kinds), WHOLE)
    del tree
    named = [each for each in candidates if not entry or entry in (each.entry or ".", each.entry.rpartition(".")[2])]
    if not named:
        rule = f"has no {kinds[0].words} named {entry}: there is {_listed(candidates)}"
        raise InputError(name, place, rule, _remedy(asked, candidates))
    fitting: list[tuple[Candidate, Built]] = []
    errors: list[InputError] = []
    for each in named:
        try:
            built = build(each.tensors, f"{name}={place}{ENTRY if each.entry else ''}{each.entry}")
        except InputError as error:
            errors.append(error)
        else:
            if not any(each.same(other) for other, _ in fitting):
                fitting.append((each, built))
    if len(fitting) > 1:
        several = [each for each, _ in fitting]
        rule = f"holds {len(fitting)} networks that fit: {_listed(several)}"
        raise InputError(name, place, rule, _remedy(asked, several))
    if fitting:
        return fitting[0]
    shard = SHARD.search(files[0].name) if len(files) == 1 else None
    if shard:
        rule = f"is shard {shard[1]} of {shard[2]}, not a whole network"
        raise InputError(name, place, rule, "pass the folder, with every shard and its index")
    raise max(zip(errors, named, strict=True), key=lambda pair: len(pair[1].tensors))[0]


def _listed(candidates: Sequence[Candidate]) -> str:
    return ", ".join(each.entry or "." for each in candidates[:MOST_NAMED])


def _remedy(asked: tuple[str, str, str], candidates: Sequence[Candidate]) -> str:
    return f"pass --{asked[0]} {asked[1]}{ENTRY}{candidates[0].entry or '.'}"


def _without(tree: object, kinds: tuple[Kind, ...]) -> str:
    """Say what a file holds in which there is no network of the kind."""
    kind, *others = kinds
    for other in others:
        if any(_candidates(tree, (other,))):
            return f"holds a {other.words}, no {kind.words}"
    keys = list(tree) if isinstance(tree, Mapping) else []
    there = f"a mapping of {', '.join(map(str, keys[:MOST_NAMED]))}{', …' if len(keys) > MOST_NAMED else ''}"
    held = there if keys else "no tensors" if isinstance(tree, Mapping) else f"a {type(tree).__name__}"
    return f"holds no {kind.words}, which has {kind.anchors[0]}, but {held}"


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor holds its numbers place by place, and has them."""
    held = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    return held and tensor.dtype not in PACKED


def _mappings(
    tree: object, path: tuple[str, ...] = (), entered: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every mapping that holds tensors itself, with the keys down to it; none twice, though it hold itself."""
    entered = set() if entered is None else entered
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    if isinstance(tree, Mapping):
        named = {key: each for key, each in tree.items() if isinstance(key, str) and isinstance(each, Tensor)}
        tensors = {key: each for key, each in named.items() if not each.is_nested}  # such a one has no shape
        if tensors:
            yield path, tensors
    if len(path) < MOST_DEPTH and id(tree) not in entered:
        entered.add(id(tree))
        for key, value in items:
            yield from _mappings(value, (*path, str(key)), entered)


def _candidates(tree: object, kinds: tuple[Kind, ...]) -> Iterator[Candidate]:
    """Yield what may be a network of the kind: under every prefix of its tensors' names, in every mapping."""
    for path, tensors in _mappings(tree):
        clean = {key: kinds[0].inner.sub("", WRAPPERS.sub("", key)) for key in tensors}
        if len(set(clean.values())) < len(clean):
            clean = {key: key for key in tensors}
        wrappers = {word for key, name in clean.items() if key != name for word in WRAPPERS.findall(key)}
        own, *others = (_prefixes(clean.values(), kind) for kind in kinds)
        every = own.union(*others)
        for prefix in sorted(own):
            inside = tuple(each for each in every if each != prefix and each.startswith(prefix))
            under = {key: name for key, name in clean.items() if name.startswith(prefix)}
            mine = {key: name for key, name in under.items() if not name.startswith(inside)}
            entry = ".".join((*path, *filter(None, (prefix.rstrip("."),))))
            found = {name.removeprefix(prefix): tensors[key] for key, name in mine.items()}
            yield Candidate(entry, found, tuple(sorted(wrappers)), len(tensors) - len(mine))


def _prefixes(names: Iterable[str], kind: Kind) -> set[str]:
    """Return what stands before the names of a kind's tensors: it ends with a dot, or is empty."""
    pairs = ((name, anchor) for name in names for anchor in kind.anchors)
    return {name.removesuffix(anchor) for name, anchor in pairs if f".{name}".endswith(f".{anchor}")}
