"""Exit status 1 means a defect and nothing else; all other ends are one line on stderr and status 2, or 141.

Long, since it is one list: every way in which a command can be stopped.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness import __main__ as command_line
from harness.files import write_whole
from harness.golden import _metadata as metadata
from tests.helpers import RECORDED, command, digits, recorded

ROOT = Path(__file__).parents[3]
VARIANTS = RECORDED / "recorded-variants-cpu.safetensors"
QUICK = ("verify", "--seeds", "0", "--labels", "0", "--draft-len", "10")
DIGITS = "9" * 5000


def started(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, as a shell does."""
    options.setdefault("stdout", subprocess.PIPE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    line = [sys.executable, "-m", "harness", *arguments]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment, **options)


def ended(*arguments: str, **options: Any) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr."""
    process = started(*arguments, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def the_line(err: str) -> str:
    """Return what stderr holds: one line without control characters, of at most 500 characters."""
    assert err.endswith("\n")
    line = err[:-1]
    assert line.isprintable()
    assert len(line) <= 500
    return line


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def test_a_disk_that_is_full_leaves_the_verdict_and_ends_with_2(tmp_path: Path):
    status, out, err = ended(*QUICK, "--json", "r.json", cwd=tmp_path, preexec_fn=limit_files)
    assert status == 2
    assert out.splitlines()[-1].startswith("IDENTICAL")
    path = tmp_path / "r.json"
    rule = "cannot be written (File too large); make room there, or name another file"
    assert the_line(err) == f"error: output={path}: {rule}"
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_that_is_full_is_no_defect():
    with open("/dev/full", "w") as full:
        status, _, err = ended(*QUICK, "--quiet", stdout=full)
    assert status == 2
    assert "No space left on device" in the_line(err)


def test_a_reader_that_went_away_is_silent():
    with started(*QUICK) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(120)) == ("", 141)


@pytest.mark.parametrize("arguments", [(*QUICK, "--policy", "match:0.5"), ("golden", "check", str(VARIANTS))])
def test_a_terminal_without_greek_shows_the_result(arguments: tuple[str, ...]):
    status, out, err = ended(*arguments, env={"PYTHONIOENCODING": "ascii"})
    assert (status, err) == (0, "")
    assert out.isascii()
    assert "|d" in out  # Δ, by the letter that every terminal has
    assert "\\u" not in out


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


INPUTS: dict[str, Callable[[Path], object]] = {
    "pipe": fifo,
    "socket": unix_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": Path.mkdir,
}
READERS = {
    "draft": ("verify", "--target", "x", "--vae", "x", "--draft"),
    "golden": ("golden", "check"),
    "budgets": ("verify", "--budgets"),
    "into": ("calibrate", "--into"),
    "policies": ("scoreboard", "--speed", str(next((ROOT / "docs/measured").glob("speed-*"))), "--policies"),
    "speed": ("scoreboard", "--speed"),
}


@pytest.mark.parametrize("kind", [*INPUTS, "long"])
@pytest.mark.parametrize("name", READERS)
def test_an_input_that_is_no_file_never_blocks(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    path = Path("n" * 300 if kind == "long" else "x")
    INPUTS.get(kind, lambda path: None)(path)
    start = time.perf_counter()
    assert command(monkeypatch, *READERS[name], str(path)) == 2
    assert time.perf_counter() - start < 20
    assert the_line(capsys.readouterr().err).startswith(f"error: {name}={str(path)[:200]}")


NUMBERS = {
    "seeds": ("verify", "--seeds", DIGITS),
    "labels": ("verify", "--labels", DIGITS),
    "draft_len": ("verify", "--draft-len", DIGITS),
    "draft_len of sample": ("sample", "--draft-len", DIGITS),
    "range": ("verify", "--seeds", f"0:{DIGITS[:4000]}"),
    "seed": ("verify", "--seeds", DIGITS[:4000]),
    "batch": ("verify", "--batch", DIGITS),
    "cfg": ("verify", "--cfg", DIGITS),
    "top_k": ("verify", "--top-k", DIGITS[:4000]),
    "policy": ("verify", "--policy", f"topk-match:{DIGITS}:0.5"),
    "match": ("verify", "--policy", f"match:{DIGITS}"),
    "device": ("verify", "--device", f"cuda:{DIGITS}"),
    "batches": ("bench", "--batches", DIGITS[:30]),
    "batches of calibrate": ("calibrate", "--batches", DIGITS[:30]),
    "images": ("bench-policies", "--images", DIGITS[:30]),
    "examples": ("mutants", "--examples", DIGITS[:30]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_any_length_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *NUMBERS[name]) == 2
    assert the_line(capsys.readouterr().err).startswith("error: ")


MUTE = """
class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

class Rude(Exception):
    def __str__(self):
        return "[/b] \\x1b[31m \\udcff " + "x" * 10**5

class Decoder:
    contract = "token-identical"
    def decode(self, request, noise):
        raise {error}

def factory(models, settings):
    {build}
    return Decoder()

def __getattr__(name):
    raise {late}
"""


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a module of decoders; return the name of its factory."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def write(name: str, error: str = "Mute()", build: str = "pass", late: str = "AttributeError(name)") -> str:
        (tmp_path / f"{name}.py").write_text(MUTE.format(error=error, build=build, late=late))
        return f"{name}:factory"

    return write


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            {"name": "mute_build", "build": "raise Mute()"},
            "failed to build a decoder (Mute: Mute in factory, mute_build.py:",
        ),
        ({"name": "rude_build", "build": "raise Rude()"}, "failed to build a decoder (Rude: [/b] \\x1b[31m \\udcff x"),
        ({"name": "mute_late", "late": "Mute()"}, "cannot be imported (Mute: Mute)"),
    ],
)
def test_an_error_that_cannot_be_shown_is_one_line(
    module: dict[str, str], said: str, decoder: Callable[..., str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    name = decoder(**module)
    name = name.replace("factory", "absent") if "late" in module else name
    assert command(monkeypatch, *QUICK, "--implementation", name) == 2
    assert said in the_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "said"), [("Mute()", "(Mute: Mute in decode,"), ("Rude()", "(Rude: [/b] \\x1b[31m ")]
)
def test_a_decoder_whose_error_cannot_be_shown_is_a_defect(
    error: str, said: str, decoder: Callable[..., str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    name = decoder(f"decode_{error[:4].lower()}", error)
    assert command(monkeypatch, *QUICK, "--implementation", name, "--json", "r.json") == 1
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("first defect: "))
    assert said in line
    assert line.isprintable()
    assert len(line) <= 2000
    assert json.loads(Path("r.json").read_text())["verdict"] == "DEFECT"


def test_a_decoder_that_changes_folder_moves_no_report(
    decoder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    budgets = Path("budgets.json")
    budgets.write_text((ROOT / "harness/rounding/budgets.json").read_text())
    name = decoder("wanderer", build=f"import os; os.chdir({str(elsewhere)!r})")
    arguments = (*QUICK, "--implementation", name, "--json", "r.json", "--budgets", str(budgets))
    assert command(monkeypatch, *arguments) == 1
    assert (tmp_path / "r.json").exists()
    assert "stored" in json.loads((tmp_path / "r.json").read_text())["budget"]["source"]
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("loud", [False, True])
def test_a_bug_of_the_harness_is_called_one(
    loud: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: object) -> None:
        raise LookupError("\x1b[31m" + "x" * 1000)

    monkeypatch.setattr("harness.verification.verify_decodes", broken)
    monkeypatch.setenv(command_line.TRACEBACK, str(int(loud)))
    assert command(monkeypatch, *QUICK) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines) > 1, "Traceback" in lines[0]) == (loud, loud)
    said = the_line(lines[-1] + "\n")
    assert said.startswith("error: a bug of the harness: LookupError: \\x1b[31mxxx")
    assert " in _decoded, harness/verification.py:" in said
    assert said.endswith("SDVAR_HARNESS_TRACEBACK=1 shows the traceback")


class Odd(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Odd(), 2, "a bug of the harness: Odd: Odd in "),
        (SystemExit(1), 2, "a bug of the harness: SystemExit: 1 in "),
        (MemoryError(), 2, "out of memory (MemoryError); "),
        (OSError(5, "Input/output error", "disk"), 2, "Input/output error: 'disk'"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_every_way_of_stopping_has_its_status(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("harness.verification.verify_decodes", broken)
    assert command(monkeypatch, *QUICK) == status
    err = capsys.readouterr().err
    assert said in the_line(err) if said else err == ""


WRITES = {
    "verify": (*QUICK, "--json", "out"),
    "golden": ("golden", "check", "recording", "--json", "out"),
    "mutants": ("mutants", "--only", "masks.corner", "--laws", "first", "--examples", "2", "--json", "out"),
}


@pytest.mark.parametrize("name", WRITES)
def test_the_verdict_is_printed_before_the_report_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(path: Path, content: bytes) -> None:
        path.unlink(missing_ok=True)
        write_whole(path / "nowhere", content)

    monkeypatch.chdir(tmp_path)
    recording(Path("recording"), {})
    monkeypatch.setattr("harness.files.write_whole", full)
    assert command(monkeypatch, *WRITES[name]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].split()[0] in ("IDENTICAL", "1", "CAUGHT", "SURVIVED")
    assert the_line(captured.err).startswith("error: output=")


def recording(path: Path, changes: dict[str, object]) -> None:
    """Write one case of a recording of other sizes than it has."""
    tensors, metadata = recorded("variants-cpu")
    case = next(case for case in json.loads(metadata["cases"]) if case["id"] == "shared-adaln-0")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("shared-adaln-0/")}
    save_file(kept, path, {**metadata, "cases": json.dumps([{**case, **changes}])})


ABSURD: dict[str, dict[str, object]] = {
    "V": {"V": 10**12},
    "D": {"D": 10**9},
    "depth": {"depth": 10**12},
    "draft_depth": {"draft_depth": 10**12},
    "classes": {"classes": 10**12},
    "patch_nums": {"patch_nums": list(range(1, 10**6 + 1))},
    "side": {"patch_nums": [1, 10**6]},
    "infinite side": {"patch_nums": [1, float("inf")]},
    "φ": {"phi": f"{10**12} shared"},
    "vae_mult": {"vae_mult": [1] * 40},
    "weights": {"D": 2**14, "depth": 128, "H": 2**8},
    "count": {"labels": None, "count": 10**12},
    "cfg": {"cfg": 10**400},
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_sizes_in_metadata_are_refused_before_memory_is_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    recording(tmp_path / "absurd", ABSURD[name])
    digits()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(torch, "empty", None)  # nothing of any size is made
    assert command(monkeypatch, "golden", "check", str(tmp_path / "absurd")) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    assert the_line(capsys.readouterr().err).startswith("error: case shared-adaln-0: ")


@pytest.mark.parametrize("whole", [False, True])
def test_absurd_sizes_in_a_header_are_refused_before_memory_is_taken(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    size = 4 * 10**12
    header = json.dumps({"a/tokens": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "absurd"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    if whole:
        os.truncate(path, 8 + len(header) + size)  # a hole: it takes no room on the disk
    assert command(monkeypatch, "golden", "check", str(path)) == 2
    said = the_line(capsys.readouterr().err)
    assert ("more than the 1073741824 of any recording" if whole else "is cut short: ") in said


def test_the_limits_leave_room_for_every_recording():
    pair, largest = digits(), 1
    for name in ("cpu", "variants-cpu"):
        tensors, _ = recorded(name)
        largest = max(largest, *(tensor.numel() for tensor in tensors.values()))
    metadata.check_batch(40, pair.pyramid, pair.target.config, pair.vae.config.downsampling)
    assert 10 * largest < metadata.MOST_NUMBERS
    with pytest.raises(Exception, match="must make tensors of at most"):
        metadata.check_batch(10**4, pair.pyramid, pair.target.config, pair.vae.config.downsampling)


def test_a_picture_without_matplotlib_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("harness.bench.measure_policies", partial(pytest.fail, "worked"))
    assert command(monkeypatch, "bench-policies", "--picture", str(tmp_path / "p.svg")) == 2
    assert "is drawn by matplotlib, which is not installed" in the_line(capsys.readouterr().err)


def test_the_json_of_a_golden_check_is_no_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "recording"
    recording(path, {})
    before = path.read_bytes()
    assert command(monkeypatch, "golden", "check", str(path), "--json", str(path)) == 2
    assert "is the file of --file" in the_line(capsys.readouterr().err)
    assert path.read_bytes() == before


def test_goldens_that_are_missing_are_a_defect_and_a_folder_that_is_not_there_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command(monkeypatch, "golden", "check", "--folder", str(tmp_path)) == 1
    assert "golden is missing: restore or record it" in capsys.readouterr().out
    for action in ("check", "diff"):
        assert command(monkeypatch, "golden", action, "--folder", str(tmp_path / "nowhere")) == 2
        said = the_line(capsys.readouterr().err)
        assert "nowhere: is no folder that is there; pass --folder DIR, where goldens lie" in said
