"""How far rounding alone may move a correct decoder's numbers: the record that the judge reads, and the file of them.

Promise: a budget is stated before guidance, for one mode of one target; what it allows at a scale of a request follows
from that request's guidance and nothing else. A stored entry holds for one set of weights, one device, dtype and mode;
what it states is positive, finite and no more than its dtype can explain of the networks that it is used for, so that
no file can turn a bug into a tie. How it is measured: `measure`.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Self

import torch

from harness.errors import InputError
from harness.files import check_readable, compact, write_whole
from harness.models import AUTOCAST, ModelPair, mode_name
from harness.protocol import Guidance, growth
from harness.provenance import device_name
from harness.rounding._precision import precision


@dataclass(frozen=True)
class Allowance:
    """Largest distance of a correct decoder from float64 at one scale of one request, absolute."""

    logits: float  # of guided logits, any one of them
    # of guided logits, root mean square over one scale of one image. In bfloat16 the largest error is far from the
    # usual one, and only the mean tells a wrong mask from rounding
    logits_rms: float
    f_hat: float  # of f_hat
    source: str  # how it was measured


# Other seeds, labels, batch sizes and processors of the same kind round a little differently: fresh images on the
# machines of the stored entries stayed within 1.4 times what is stored (tests/unit/rounding, tests/gpu).
BUDGET_MARGIN = 2.0


@dataclass(frozen=True)
class Errors:
    """Largest errors of the reference against float64; one rounding of the largest number met is the least."""

    rows: float  # of the logits of a guidance row before guidance, any one of them
    rows_rms: float  # root mean square of it over one scale of one row
    f_hat: float  # of f_hat


@dataclass(frozen=True)
class Budget(Errors):
    """Largest distance of a correct decoder from float64 before guidance, absolute."""

    source: str  # how it was measured

    @classmethod
    def of(cls, errors: Errors, source: str) -> Self:
        """Return the budget of errors that were measured: `BUDGET_MARGIN` times as much."""
        return cls(BUDGET_MARGIN * errors.rows, BUDGET_MARGIN * errors.rows_rms, BUDGET_MARGIN * errors.f_hat, source)

    def guided(self, guidance: Guidance, ramp: float, si: int = 0) -> Allowance:
        """Return what guidance makes of it at scale `si`, whose si/(S-1) is `ramp`."""
        factor = growth(guidance, ramp, si)
        return Allowance(factor * self.rows, factor * self.rows_rms, self.f_hat, self.source)


EXACT = "exact"
COMPILED = " compiled"  # after the products: a compiler joins kernels, and so rounds elsewhere
Mode = tuple[str, str, str, str, str]  # models, weights, device, dtype, products
SHIPPED_BUDGETS = Path(str(files("harness.rounding") / "budgets.json"))
# One rounding of the largest number met is the least that an error may be; float32 has 24 bits.
ROUNDING = 2.0**-23
# The most that an error may be, in roundings of the largest logit, or of the largest f_hat (at least 1). Sums of some
# thousand terms round at every step in float32, while TF32 and the narrow dtypes round the operands of products alone
# and add in float32. The shipped entries reach 27 (float32), 1.9 (TF32, bfloat16), 2.3 (float16), 2.0 (f_hat): 6 times
# less or better.
MOST_ROWS = {"float32": 256.0, "TF32": 16.0, "bfloat16": 16.0, "float16": 16.0}
MOST_F_HAT = 16.0
EPS = {"float32": ROUNDING, "TF32": 2.0**-10, "bfloat16": 2.0**-7, "float16": 2.0**-10}


@dataclass(frozen=True)
class BudgetEntry:
    """What rounding did, at worst."""

    models: str  # name of the pair
    weights: str  # fingerprint of the target's and the quantiser's weights in this dtype; "random" for a random pair
    device: str  # cpu, or the name of the GPU
    dtype: str  # of the transformers: the name of their mode
    # of float32 numbers: exact, TF32, or mixed where products and convolutions differ; whether blocks are compiled
    products: str
    rows: float  # largest error of a logit before guidance, over every window of scales in one pass
    rows_rms: float  # largest root mean square of it over one scale of one guidance row
    f_hat: float  # largest error of f_hat
    windows: int  # measured windows
    images: int  # measured images
    versions: dict[str, str]  # of what measured it
    reason: str = ""  # why it replaced a smaller one; empty for a first measurement

    @property
    def mode(self) -> Mode:
        return self.models, self.weights, self.device, self.dtype, self.products

    def budget(self) -> Budget:
        """Return the budget of this mode: `BUDGET_MARGIN` times the errors."""
        products = "" if self.products == EXACT else f" {self.products}"
        mode = f"{self.device}, {self.dtype}{products}, {self.windows} windows"
        source = f"{BUDGET_MARGIN:g} × the reference's largest error against float64, stored ({mode})"
        return Budget.of(Errors(self.rows, self.rows_rms, self.f_hat), source)

    def check_explained(self, logit: float, f_hat: float) -> None:
        """Refuse an entry that its dtype cannot explain of networks with this largest logit before guidance and f_hat.

        Raises `InputError` for an error above `MOST_ROWS` or `MOST_F_HAT` roundings, or a mean above the largest.
        """
        sums, own = "float32" if self.products.removesuffix(COMPILED) == EXACT else "TF32", self.dtype
        if own.startswith(AUTOCAST):  # the quantiser's, too
            sums = own = own.removeprefix(AUTOCAST)
        rows = max(sums, own, key=lambda word: EPS.get(word, 0.0))  # whichever rounds more
        most = MOST_ROWS[rows] * EPS[rows] * logit
        limits = {"rows": most, "rows_rms": min(most, self.rows), "f_hat": MOST_F_HAT * EPS[sums] * max(1.0, f_hat)}
        for name, limit in limits.items():
            if not getattr(self, name) <= limit:
                what, value = f"budget ({', '.join(self.mode)}) {name}", f"{getattr(self, name):.3g}"
                rule = f"must be at most {limit:.3g}, all that rounding explains"
                raise InputError(what, value, rule, "restore the file, or calibrate again")


def mode_of(models: ModelPair) -> Mode:
    """Return what an entry for these networks must hold for. Reads the process-wide TF32 settings.

    Raises `InputError` inside a torch.autocast of the caller's: only a decoder of its own process would be outside.
    """
    device, now = models.device, precision()
    if torch.is_autocast_enabled(device.type):
        rule = "is around the harness, where networks have a mode of their own"
        raise InputError("torch.autocast", "on", rule, f"leave it, and pass models.in_mode('{device}', '{AUTOCAST}…')")
    dtype = mode_name(models.target)
    products = {(False, False): EXACT, (True, True): "TF32"}.get((now["tf32_matmul"], now["tf32_convolution"]), "mixed")
    # a CPU has no TF32, and float64 is not rounded to it; a narrow network's head and quantiser are float32
    in_effect = device.type == "cuda" and dtype != "float64"
    compiled = COMPILED if getattr(models.target, "compiled", False) else ""
    return models.name, _fingerprint(models), device_name(device), dtype, (products if in_effect else EXACT) + compiled


def _fingerprint(models: ModelPair) -> str:
    """Return a digest of what rounding depends on: every weight of the target, and the quantiser's."""
    if models.random:
        return "random"  # drawn on the device, so another one every time; their rounding is that of their law
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted({**models.target.weights, **models.vae.quantizer.tensors}.items()):
        wide = weight.detach().double()
        # moments weighted by position: cheap on a GPU, and every number counts
        ramp = torch.linspace(1, 2, wide.numel(), dtype=torch.float64, device=wide.device)
        moments = torch.stack((wide.flatten() @ ramp, wide.square().flatten() @ ramp))
        digest.update(f"{name} {tuple(weight.shape)} {[f'{moment:.7g}' for moment in moments.tolist()]}".encode())
    return digest.hexdigest()


def load_budgets(store: Path) -> list[BudgetEntry]:
    """Read a file of entries; none where there is no file. Raises `InputError` for a file of anything else."""
    if not store.exists():
        return []
    check_readable(store, "budgets", "pass a file of `sdvar-harness calibrate`")  # a pipe would wait for ever
    try:
        entries = [BudgetEntry(**values) for values in json.loads(store.read_text())["entries"]]
        good = all(isinstance(word, str) for entry in entries for word in entry.mode)
        errors = [number for entry in entries for number in (entry.rows, entry.rows_rms, entry.f_hat)]
        # a whole number of a thousand digits raises `OverflowError` here: nobody can compute with it
        good = good and all(isinstance(n, int | float) and math.isfinite(n) and n > 0 for n in errors)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        good = False
    if not good:
        rule = "must hold entries of `sdvar-harness calibrate` with positive, finite errors"
        raise InputError("budgets", str(store), rule, "restore it, or delete it and calibrate again")
    return entries


def save_budget(entry: BudgetEntry, store: Path, reason: str = "") -> None:
    """Add an entry to a file, or replace that of its mode. Raises `InputError` for a wider one without a reason."""
    entries = load_budgets(store)
    old = next((other for other in entries if other.mode == entry.mode), None)
    if old is not None and entry.images < old.images and not reason:
        rule = f"has {entry.images} images where the stored one has {old.images}"
        raise InputError("budget", entry.models, rule, 'measure as many, or pass --reason "…"')
    errors = ("rows", "rows_rms", "f_hat")
    if old is not None and not reason and any(getattr(entry, name) > getattr(old, name) for name in errors):
        rule = f"must not widen the stored one without a reason (logits {old.rows:.3g} -> {entry.rows:.3g})"
        raise InputError("budget", entry.models, rule, 'find out why, or pass --reason "…"')
    others = [other for other in entries if other is not old]
    ordered = sorted([*others, replace(entry, reason=reason if old is not None else "")], key=lambda e: e.mode)
    write_whole(store, compact({"entries": [asdict(e) for e in ordered]}))
