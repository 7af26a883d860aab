"""What a run has to do: tasks, each one batch under some settings; and how images become batches, and how large ones.

Promise: a plan is data. Whoever takes its tasks, in whatever order, the result is put together in the plan's order. A
batch is a cut of one list of images, seeds and labels mixed, so that the order of the results is that of the list; its
size follows from the networks and the machine alone, never from the number of workers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch

from harness.decoders import capacity
from harness.errors import InputError
from harness.models import ModelPair, Network
from harness.models.infinity.autoencoder import infinity_layers
from harness.protocol import Request, Settings
from harness.rounding import bytes_of_a_pass, free_on_cuda, images_to_measure
from harness.wording import count_of


@dataclass(frozen=True)
class Task:
    """One batch, to be drawn by the reference once and by the decoder under every setting."""

    number: int  # place in the plan
    request: Request  # what is drawn
    settings: tuple[int, ...]  # indices of the plan's settings

    @property
    def images(self) -> int:
        """Decoded images: those of the request, once a setting."""
        return self.request.B * len(self.settings)


@dataclass(frozen=True)
class Plan:
    settings: tuple[Settings, ...]  # those of all tasks
    tasks: tuple[Task, ...]  # in the order of the result
    # by setting, the `draft_noise` of the draft that it meets (`models.pair.close_pair`); None = the pair's own, and
    # so is all of an empty tuple
    drafts: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.drafts:
            object.__setattr__(self, "drafts", (None,) * len(self.settings))

    @classmethod
    def of(
        cls, settings: Sequence[Settings], requests: Sequence[Request], drafts: tuple[float | None, ...] = ()
    ) -> Self:
        """Return the plan in which every setting, with its draft, meets every request."""
        every = tuple(range(len(settings)))
        return cls(tuple(settings), tuple(Task(k, request, every) for k, request in enumerate(requests)), drafts)

    def narrowed(self, change: Callable[[Settings], Settings | None]) -> Self:
        """Return the plan with other settings: None drops one, and those that become equal under one draft are one."""
        changed = [(change(setting), draft) for setting, draft in zip(self.settings, self.drafts, strict=True)]
        left = list(dict.fromkeys((setting, draft) for setting, draft in changed if setting is not None))
        number = {old: left.index((each, draft)) for old, (each, draft) in enumerate(changed) if each is not None}
        tasks = [
            replace(task, settings=tuple(dict.fromkeys(number[old] for old in task.settings if old in number)))
            for task in self.tasks
        ]
        settings, drafts = tuple(setting for setting, _ in left), tuple(draft for _, draft in left)
        return replace(self, settings=settings, tasks=tuple(task for task in tasks if task.settings), drafts=drafts)

    def lengthless(self) -> Self:
        """Return the plan of a decoder that reads neither draft length nor bonus."""
        return self.narrowed(lambda setting: replace(setting, draft_len="", bonus=False, policy=""))

    @property
    def images(self) -> int:
        return sum(task.images for task in self.tasks)

    @property
    def decodes(self) -> int:
        """Decoded batches: every task, once a setting."""
        return sum(len(task.settings) for task in self.tasks)

    @property
    def most(self) -> int:
        """Images of the largest batch."""
        return max(task.request.B for task in self.tasks)

    def check(self) -> None:
        """Refuse a plan that does nothing. Raises `InputError`."""
        if not self.tasks:
            raise InputError("requests", [], "name nothing to draw", "pass at least one request")


# Beyond this a GPU gains nothing, and what a killed run does twice grows.
MOST_ON_CUDA = 256
# Of the free memory: certifying takes a quarter of what is left, and allocators leave holes. Of two processes neither
# has what the other's allocator keeps.
SHARE, SHARE_OWN_PROCESS = 0.6, 0.5
LEAST_CACHE = 2**20  # bytes, where the machine does not tell
CACHES = "/sys/devices/system/cpu/cpu0/cache"


@dataclass(frozen=True)
class BatchSize:
    """A number of images, and why: one clause for the result."""

    images: int
    why: str


def default_batch(models: ModelPair, own_process: bool = False) -> BatchSize:
    """Return the batch for these networks on their device. Reads what memory is free."""
    each, device = bytes_of_an_image(models, own_process), models.device
    share, copies = (SHARE_OWN_PROCESS, bytes_of_networks(models)) if own_process else (SHARE, 0)
    if device.type == "cuda":
        free = max(0, free_on_cuda(device) - copies)
        fits = int(share * free // each)
        why = f"{free / 2**30:.0f} GiB free on {device}, {each / 2**20:.0f} MiB an image, at most {MOST_ON_CUDA}"
        return BatchSize(max(1, min(fits, MOST_ON_CUDA)), why)
    cores, cache = torch.get_num_threads(), cache_bytes() // 2  # weights and the other side need the rest
    # the widest activation of the last scale, for both guidance rows of an image: what a cache should hold
    config, last = models.target.config, models.pyramid.draws.counts[-1]
    wide = 2 * last * 4 * max(4 * config.D, config.V)
    fits = int(share * (available_bytes() - copies) // each)
    images = max(1, min(fits, max(cores, cache // wide)))
    memory = f"{cache / 2**20:.0f} MiB of cache, {wide / 2**20:.1f} MiB of activations an image"
    return BatchSize(images, f"{count_of(cores, 'thread')}, {memory}")


def bytes_of_an_image(models: ModelPair, own_process: bool = False) -> int:
    """Return what an image of a batch takes at most while it is decoded and judged, roughly."""
    pyramid, config = models.pyramid, models.target.config
    # logits, laws, numbers and their like, of both sides, by draw; inputs by position
    shown = 4 * (24 * pyramid.draws.L * config.V + 16 * pyramid.L * config.D)
    target, draft = _bytes_of_keys(models.target), _bytes_of_keys(models.draft)
    # beside the reference's keys there are the decoder's, or once more the target's, or pixels
    one_pass, pixels = bytes_of_a_pass(models, torch.float32), _bytes_of_pixels(models)
    if own_process:  # it keeps what it has while pixels are made here, and a trace travels
        return shown + 2 * target + draft + max(one_pass, pixels) + capacity(models, 1)
    return shown + target + max(target + draft + one_pass, pixels)


def bytes_of_a_run(models: ModelPair, images: int = 1, own_process: bool = False) -> int:
    """Return what decoding and judging a batch takes at most, or before it measuring rounding on a few images.

    Naming the part that made a wrong value goes through passes with other keys, and may take more.
    """
    narrow, wide = (bytes_of_a_pass(models, dtype) for dtype in (torch.float32, torch.float64))
    few, codec = images_to_measure(models), 8 * sum(weight.numel() for weight in models.vae.weights.values())
    measured = max(few * (_bytes_of_keys(models.target) + narrow), few * wide + codec)
    return max(images * bytes_of_an_image(models, own_process), measured)


def _bytes_of_keys(network: Network) -> int:
    """Return what keys and values of an image take, in two rows."""
    return 4 * network.config.depth * network.pyramid.L * network.config.D * network.dtype.itemsize


def _bytes_of_pixels(models: ModelPair) -> int:
    """Return what an image's pixels take while they are made: some six times the largest map on the way."""
    config: Any = models.vae.config
    if not hasattr(config, "multipliers"):
        return 0  # somebody's own codec, of which nothing is known
    (_, h, w), largest = models.target.config.latent, 0
    for kind, _, into, out in infinity_layers(config, "decoder"):  # VAR's attention makes no larger ones
        h, w = (2 * h, 2 * w) if kind == "up" else (h, w)
        largest = max(largest, h * w * max(into, out))
    return 6 * largest * models.vae.dtype.itemsize


def bytes_of_networks(models: ModelPair) -> int:
    """Return what the weights of a pair take, those that two networks share once."""
    weights = {id(weight): weight for weight in models.named_weights().values()}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


def memory_note(models: ModelPair, own_process: bool) -> str:
    """Say what memory an image takes at most where that is more than a quarter of what is free; else nothing.

    Nobody is refused: it is a bound, and what is free may grow.
    """
    device, need = models.device, bytes_of_a_run(models, 1, own_process)
    free = free_on_cuda(device) if device.type == "cuda" else available_bytes()
    if own_process:  # it has networks of its own
        need += bytes_of_networks(models)
    if need <= free / 4:
        return ""
    most, there = f"{need / 2**30:.1f} GiB", f"{free / 2**30:.1f} GiB free on {device}"
    return f"an image takes {most} at most while it is decoded and judged, of {there}"


def cache_bytes() -> int:
    """Return the size of the largest cache that the first core uses."""
    sizes = [LEAST_CACHE]
    for size in Path(CACHES).glob("index*/size"):
        try:
            text = size.read_text().strip()
        except OSError:
            continue
        factor = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG") or 0) * factor)
    return max(sizes)


def available_bytes() -> int:
    """Return the host memory that may be had."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 2**10


def cut_batches(request: Request, seeds: Sequence[int], size: int) -> list[Request]:
    """Cut every seed with every label of a request into batches of equal sizes, `size` at most.

    Image after image they are the seeds in order, each with all labels. The request, in "image" order, has these, and
    the sampling; its seed does not matter.
    """
    labels, ids = request.labels, request.image_ids
    assert labels is not None
    everything = [(seed, label, image) for seed in seeds for label, image in zip(labels, ids, strict=True)]
    count, batches = math.ceil(len(everything) / size), []
    for a, b in pairwise(len(everything) * k // count for k in range(count + 1)):
        of, drawn, images = (tuple(column) for column in zip(*everything[a:b], strict=True))
        mixed = of if len(set(of)) > 1 else None
        batches.append(replace(request, labels=drawn, images=images, seed=of[0], seeds=mixed, count=len(drawn)))
    return batches
