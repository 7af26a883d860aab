"""What is typed, checked and made into objects: networks, requests, decoders, lists of numbers.

Promise: an option turns into checked objects or one `InputError`. It imports what commands work with, so that commands
import it where they begin to work.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch

from harness.commands._options import Images, Mode, Networks, Pair, UnderTest, files_of
from harness.decoders import OWN_DECODER, is_own_decoder, parse_factory_options
from harness.errors import InputError
from harness.models import CLOSE_NOISE, DIGITS, ModelPair, close_pair, load_digits, load_pair, parse_mode, random_pair
from harness.models.infinity.checkpoint import load_digits_bits, load_infinity, load_texts, parse_schedule
from harness.models.infinity.transformer import infinity_config
from harness.numerals import MOST_NUMBERS, whole, wholes
from harness.protocol import NoiseOrder, Request, ScaleGuidance
from harness.report import plain_console, say
from harness.rounding import set_precision
from harness.runs import BatchSize, cut_batches, default_batch


def load_models(networks: Pair, mode: Mode, quiet: bool = False, decoder: str = OWN_DECODER) -> ModelPair:
    """Load the networks onto the device; say what was taken. Effects: `set_precision`. Raises `InputError`.

    What the law of networks rounds, only somebody's `decoder` is judged with: the harness's own does without.
    """
    device = find_device(mode.device)
    for name, word in (("dtype", mode.dtype), ("draft_dtype", mode.draft_dtype or mode.dtype)):
        parse_mode(name, word)
    set_precision(mode.tf32)
    named = not networks.given_files()
    noise = networks.draft_noise if isinstance(networks, Networks) else None
    if named and noise is None and networks.models == "digits-close":
        noise = CLOSE_NOISE
    for name in ("patch_nums", "heads", "schedule") if named else ():
        if text := getattr(networks, name):
            rule, remedy = "says what a checkpoint file does not tell", "drop it, or pass --draft, --target and --vae"
            raise InputError(name, text, rule, remedy)
    if named:
        shipped: dict[str, Callable[[], ModelPair]] = {
            "digits": load_digits, "digits-close": load_digits, "digits-code": partial(load_digits, "digits-code"),
            "digits-bits": load_digits_bits,
        }  # fmt: skip
        load = shipped.get(networks.models)
        if load is None and (near := get_close_matches(networks.models, shipped, 1)):
            rule = f"is none of {', '.join(shipped)}, nor DRAFT-TARGET of published sizes"
            raise InputError("models", networks.models, rule, f"pass --models {near[0]}")
        pair = load() if load else random_pair(networks.models, device)
    else:
        pair = _from_files(networks)
    for line in () if quiet else pair.taken:
        say(plain_console(), f"loaded: {line}")
    pair = pair if noise is None else close_pair(pair, noise)
    return (pair.unrounded() if is_own_decoder(decoder) else pair).in_mode(device, mode.dtype, mode.draft_dtype)


def _from_files(networks: Pair) -> ModelPair:
    if networks.models != "digits":
        rule = "is one choice of networks, three checkpoint files are another"
        raise InputError("models", networks.models, rule, "drop one of them")
    sides = integers("patch_nums", networks.patch_nums, "1,2,3,4") if networks.patch_nums else None
    heads = counts("heads", networks.heads, "16") if networks.heads else ()
    given = networks.given_files()
    if networks.schedule and "draft" not in given and "target" in given:
        given["draft"] = given["target"]
    for name, path in files_of(networks).items():
        if path is not None and not os.path.exists(path):  # a name that is too long is none
            raise InputError(name, str(path), "no such file", "see how it is spelt")
    draft_alone = given.keys() == {"draft"} and not networks.schedule
    if draft_alone:  # another draft of the target that ships
        given |= {name: str(DIGITS / f"{name}.safetensors") for name in ("target", "vae")}
    for name in ("draft", "target", "vae"):
        if name not in given:
            raise InputError(name, None, "own checkpoints come as three files", f"pass --{name} FILE")
    if networks.schedule:
        schedule = parse_schedule(networks.schedule)
        if sides or len(heads) > 1:
            name, rule = ("patch_nums", "are VAR's") if sides else ("heads", "must be one number")
            raise InputError(name, getattr(networks, name), rule, "drop it")
        told = replace(schedule, heads=heads[0] if heads else 0)
        return load_infinity(given["draft"], given["target"], given["vae"], told)
    name = "digits, another draft" if draft_alone else "custom"
    return load_pair(given["draft"], given["target"], given["vae"], name, sides, heads)


def find_device(text: str) -> torch.device:
    """Return the device. Raises `InputError` for one that is not there."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise InputError("device", text, "is not a device", "pass --device cpu") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError("device", text, "must be cpu or cuda", "pass --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError("device", text, f"is not there ({count} CUDA devices found)", "pass --device cpu")
    return device


def factory_options(
    name: str, checkout: Path | None, given: list[str] | None, stubs: list[str] | None = None
) -> tuple[tuple[str, str], ...]:
    """Return (name, value) pairs for a decoder's factory, checkout and stubs among them. Raises `InputError`."""
    pairs = parse_factory_options(checkout, given or (), stubs=stubs or ())
    if name == OWN_DECODER and pairs:
        rule = "the harness's own decoder takes --policy, --draft-len and --bonus"
        raise InputError("option", pairs[0][0], rule, "drop it, or pass --implementation package.module:factory")
    return pairs


def options_tested(tested: UnderTest) -> tuple[tuple[str, str], ...]:
    """Return (name, value) pairs for the factory of the decoder under test. Raises `InputError`."""
    return factory_options(tested.implementation, tested.checkout, tested.option, tested.stub)


def writable_folders(given: list[str] | None) -> tuple[str, ...]:
    """Return the folders that a decoder's process may write to. Raises `InputError` for one that is not there."""
    for folder in given or ():
        if not Path(folder).is_dir():
            raise InputError("allow_write", folder, "is not a folder", "make it first")
    return tuple(given or ())


def requests_for(models: ModelPair, images: Images) -> list[Request]:
    """Return the batches of every seed: all its labels together, or `batch` at a time. Raises `InputError`."""
    seeds, whole = _drawn(models, images)
    assert whole.labels is not None
    step = images.batch or whole.B
    spans = [slice(begin, begin + step) for begin in range(0, whole.B, step)]
    return [
        replace(whole, labels=whole.labels[span], images=whole.image_ids[span], seed=seed)
        for seed in seeds
        for span in spans
    ]


def timed_requests(batches: str, seeds: str, classes: int) -> list[list[Request]]:
    """Return a request a seed for every batch size; labels and addresses differ by seed. Raises `InputError`."""
    requests = []
    for size in counts("batches", batches, "1,8"):
        addresses = [(seed, tuple(range(seed * size, (seed + 1) * size))) for seed in _seeds(seeds)]
        requests.append(
            [Request(tuple(each % classes for each in images), seed, images=images) for seed, images in addresses]
        )
    return requests


def batches_for(models: ModelPair, images: Images, apart: bool) -> tuple[list[Request], str]:
    """Return the batches of all seeds, mixed, and why they are that large, where a decoder runs `apart`."""
    if images.noise == "batch":
        return requests_for(models, images), "the published order draws for whole batches"
    seeds, whole = _drawn(models, images)
    size = BatchSize(images.batch, "as asked for") if images.batch else default_batch(models, apart)
    return cut_batches(whole, seeds, size.images), size.why


def _drawn(models: ModelPair, images: Images) -> tuple[tuple[int, ...], Request]:
    """Return the seeds, and the request for every label under one of them. Raises `InputError`."""
    seeds, classes = _seeds(images.seeds), models.target.config.classes
    texts, negative = load_texts(images.texts) if images.texts is not None else (models.texts, ())
    if not texts and "texts" in models.target.config.reads:
        raise InputError("texts", None, "Infinity draws from encoded texts", "pass --texts FILE.safetensors")
    labels = labels_for(images.labels, len(texts) or classes)
    ids = integers("images", images.addresses, "0,5") if images.addresses else tuple(range(len(labels)))
    if images.batch < 0:
        raise InputError("batch", images.batch, "must be 0 or more", "pass --batch 0 for the usual one")
    if min(ids) < 0:
        raise InputError("images", images.addresses, "must all be 0 or more", "drop it")
    order: NoiseOrder = images.noise  # type: ignore[assignment]  # checked by Request
    request = Request(labels, 0, images.cfg, images.top_k, images.top_p, order=order, images=ids)
    if texts or negative:
        S, places = models.pyramid.S, _places(images.places)
        guidance = ScaleGuidance((images.cfg,) * S, () if images.tau == 1 else (images.tau,) * S, places)
        request = replace(request, texts=texts, negative_texts=negative, scale_guidance=guidance)
    request.check_for(models.target.config)
    if texts or negative:
        infinity_config(models.target).check_request(request)
    for seed in (min(seeds), max(seeds)):
        replace(request, seed=seed)
    return seeds, request


def _seeds(text: str) -> tuple[int, ...]:
    """Parse seeds. Raises `InputError` as `integers` does, and for one that is named twice."""
    seeds = integers("seeds", text, "0:4")
    if len(set(seeds)) < len(seeds):
        raise InputError("seeds", text, "names a seed twice, whose images would count twice", "name it once")
    return seeds


def _places(text: str) -> tuple[int, ...]:
    try:
        return tuple(whole(each) for each in text.split(","))
    except ValueError:
        raise InputError("places", text, "must read 0,-5", "pass --places=0, or --places=-5") from None


def classes_of(models: ModelPair) -> int:
    """Return how many classes labels number. Raises `InputError` where there are none."""
    if models.conditions:
        return models.conditions
    rule = "draws from texts, which this command does not take"
    raise InputError("family", models.target.config.family, rule, "use sdvar-harness verify --texts FILE")


def labels_for(text: str, count: int) -> tuple[int, ...]:
    """Return the labels in turn, all of them `count`. Raises `InputError` for another form."""
    return tuple(range(count)) if text == "all" else integers("labels", text, "0,1")


def integers(name: str, text: str, example: str) -> tuple[int, ...]:
    """Parse ``0,3,5`` or a half-open range ``0:4``. Raises `InputError` for another form, or nothing named."""
    remedy = f"pass --{name.replace('_', '-')} {example}"
    try:
        numbers = wholes(text)
    except ValueError as error:
        rule = str(error) if "more than" in str(error) else "must read 0,3,5 or 0:4"
        raise InputError(name, text, rule, remedy) from None
    if not numbers:
        raise InputError(name, text, "names nothing", remedy)
    return numbers


def counts(name: str, text: str, example: str) -> tuple[int, ...]:
    """Parse numbers of images. Raises `InputError` as `integers` does, and for one below 1 or beyond all memory."""
    numbers = integers(name, text, example)
    if min(numbers) < 1:
        raise InputError(name, text, "must all be at least 1", f"pass --{name} {example}")
    check_most(name, max(numbers), example)
    return numbers


def check_most(name: str, number: int, example: str) -> None:
    """Refuse a number of things that no machine holds. Raises `InputError`."""
    if number > MOST_NUMBERS:
        raise InputError(name, number, f"must be {MOST_NUMBERS} at most", f"pass --{name} {example}")
