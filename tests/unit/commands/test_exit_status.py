"""Exit status 1 means a defect and nothing else; all other ends are one line on stderr and status 2, or 141."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import __main__ as command_line
from harness.files import write_whole
from tests.helpers import RECORDED, command
from tests.unit.commands.ended import recording, the_line

ROOT = Path(__file__).parents[3]
VARIANTS = RECORDED / "recorded-variants-cpu.safetensors"
QUICK = ("verify", "--seeds", "0", "--labels", "0", "--draft-len", "10")


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


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def test_a_disk_that_is_full_leaves_the_verdict_and_ends_with_2(tmp_path: Path):
    status, out, err = ended(*QUICK, "--json", "r.json", cwd=tmp_path, preexec_fn=limit_files)
    assert status == 2
    assert out.splitlines()[-2].startswith("IDENTICAL")
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

    monkeypatch.setattr("harness.runs.verify_decodes", broken)
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

    monkeypatch.setattr("harness.runs.verify_decodes", broken)
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
    monkeypatch.setattr("harness.report._terminal.write_whole", full)
    assert command(monkeypatch, *WRITES[name]) == 2
    captured = capsys.readouterr()
    last = [line.split()[0] for line in captured.out.splitlines() if line and not line.startswith("next: ")][-1]
    assert last in ("IDENTICAL", "1", "CAUGHT", "SURVIVED")
    assert the_line(captured.err).startswith("error: output=")
