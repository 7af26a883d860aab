"""Which recordings may be compared with what runs here, and in which words the others are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.golden import _store as platform
from harness.golden._store import GENERATORS, PROBE_TOLERANCE, Recording, same_generator, unverified

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def of(**metadata: str) -> Recording:
    return Recording(Path("of-no-file"), metadata, ({"id": "a"},), {})


@pytest.mark.parametrize(
    ("metadata", "device", "said"),
    [
        ({"device": "cpu"}, CPU, ""),
        ({"device": "cpu", "dtype": "float32", "tf32": "off", "device_name": "a CPU"}, CPU, ""),
        (
            {"device": "cuda", "device_name": "a GPU", "dtype": "bfloat16"},
            CPU,
            "recorded on cuda (a GPU), whose generator draws other numbers than cpu",
        ),
        ({"device": "mps"}, CPU, "recorded on mps (no name), whose generator draws other numbers than cpu"),
        ({"device": "cpu"}, CUDA, "recorded on cpu (no name), whose generator draws other numbers than cuda"),
        (
            {"device": "cpu", "dtype": "bfloat16"},
            CPU,
            "recorded in bfloat16 with TF32 off; float32 with TF32 off is what runs here",
        ),
        (
            {"device": "cpu", "tf32": "on"},
            CPU,
            "recorded in float32 with TF32 on; float32 with TF32 off is what runs here",
        ),
    ],
)
def test_another_platform_or_precision_is_told_and_what_is_not_stated_is_the_usual_one(
    metadata: dict[str, str], device: torch.device, said: str
):
    assert unverified(of(**metadata), device) == said


@pytest.mark.parametrize(("by", "same"), [(0.8, True), (-0.8, True), (1.5, False), (-1.5, False)])
def test_every_number_of_a_generator_may_be_off_by_what_logarithms_round(
    by: float, same: bool, monkeypatch: pytest.MonkeyPatch
):
    for name, known in GENERATORS.items():
        for k in range(len(known)):
            moved = [number * (1 + by * PROBE_TOLERANCE * (i == k)) for i, number in enumerate(known)]
            drawn = {torch.device(name): moved}  # of this device, and of no other
            monkeypatch.setattr(platform, "generator_probe", drawn.__getitem__)
            assert same_generator(torch.device(name)) is same
    found = unverified(of(device=name, device_name="a GPU"), torch.device(name))
    words = f"the generator of this {name} draws other numbers than that of the recording (a GPU)"
    assert found == ("" if same else words)


def test_a_generator_that_makes_no_number_or_is_not_known_is_another(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "generator_probe", lambda device: [*GENERATORS["cpu"][:-1], float("nan")])
    assert not same_generator(CPU)
    assert not same_generator(torch.device("meta"))


def test_the_tolerance_is_far_below_what_another_seed_changes():
    """What makes it tight: of sixteen numbers drawn with another seed none lies that near."""
    E_n = torch.empty(platform.PROBE).exponential_(1, generator=torch.Generator().manual_seed(1))[:: platform.STEP]
    nearest = min(abs(new - old) / old for new, old in zip(E_n.tolist(), GENERATORS["cpu"], strict=True))
    assert nearest > 10 * PROBE_TOLERANCE
