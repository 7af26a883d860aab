"""Which recordings may be compared with what runs here.

Promise: a recording of another platform class, another precision, or of a generator that draws other numbers than the
one here is UNVERIFIED with the reason; it is never compared with the nearest.

Source: design §6; the recordings' README.
"""

import math
from functools import cache

import torch

from harness.golden._store import Recording

# A CUDA generator's numbers depend on the launch grid, so on the number of multiprocessors: a probe must be larger than
# one grid (132 multiprocessors · 2048 threads). Numbers drawn with seed 0, every 2^17-th.
PROBE, STEP = 2**21, 2**17
# The logarithm behind an exponential number may differ by an ulp between processors; another stream differs at once.
PROBE_TOLERANCE = 1e-4
GENERATORS: dict[str, tuple[float, ...]] = {
    "cpu": (
        3.508326, 0.383564, 1.299690, 2.089565, 0.318601, 0.457038, 0.674067, 0.141105,
        0.789668, 1.934182, 0.859956, 1.851389, 0.404168, 0.768247, 2.536858, 0.815972,
    ),
    "cuda": (  # NVIDIA H200
        0.918677, 1.530842, 0.231286, 0.012668, 1.183342, 0.492712, 0.350267, 1.396694,
        0.603170, 0.360105, 0.782868, 0.178262, 0.215079, 1.413700, 0.519997, 0.152155,
    ),
}  # fmt: skip


def unverified(recording: Recording, device: torch.device) -> str:
    """Return why a recording cannot be judged on `device`, by the metadata of both; empty when it can."""
    name = recording.metadata.get("device_name", "no name")
    if recording.platform != device.type:
        return f"recorded on {recording.platform} ({name}), whose generator draws other numbers than {device.type}"
    dtype, tf32 = recording.metadata.get("dtype", "float32"), recording.metadata.get("tf32", "off")
    if (dtype, tf32) != ("float32", "off"):
        return f"recorded in {dtype} with TF32 {tf32}; float32 with TF32 off is what runs here"
    if not same_generator(device):
        return f"the generator of this {device.type} draws other numbers than that of the recording ({name})"
    return ""


def same_generator(device: torch.device) -> bool:
    """Return whether the device's generator draws the numbers that this class of recordings was made with."""
    known = GENERATORS.get(device.type)
    return known is not None and all(
        math.isclose(here, there, rel_tol=PROBE_TOLERANCE) for here, there in zip(probe(device), known, strict=True)
    )


@cache
def probe(device: torch.device) -> tuple[float, ...]:
    """Return sixteen numbers of a large draw with seed 0."""
    generator = torch.Generator(device=device).manual_seed(0)
    E_n = torch.empty(PROBE, device=device).exponential_(1, generator=generator)
    return tuple(E_n[::STEP].tolist())
