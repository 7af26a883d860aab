"""Signals end a command whenever they come; and what `--quiet` promises: no output is heard, and no error is lost."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

from harness import __main__ as program
from harness.errors import StopSignal
from harness.signals import SIGNALS, interruptible, keep_standard_open, last_signal, silence
from tests.helpers import hearing

ROOT = str(Path(__file__).parents[2])


def loud() -> None:
    print("python says")
    print("python complains", file=sys.stderr)
    os.write(1, b"C says\n")
    os.write(2, b"C complains\n")
    subprocess.run(["echo", "a child says"], check=True)
    warnings.warn("a warning", stacklevel=1)


def test_nothing_is_heard_from_any_level(capfd: pytest.CaptureFixture[str]):
    print("before")
    with silence():
        loud()
    print("after")
    heard = capfd.readouterr()
    assert heard.out == "before\nafter\n"
    assert heard.err == ""


def test_it_is_asked_for(capfd: pytest.CaptureFixture[str]):
    with silence(False), pytest.warns(UserWarning, match="a warning"):
        loud()
    heard = capfd.readouterr()
    assert {"python says", "C says", "a child says"} <= set(heard.out.splitlines())
    assert "C complains" in heard.err


def test_an_error_passes_through_and_the_streams_come_back(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(KeyError), silence():
        {}["a"]
    os.write(1, b"heard\n")
    assert capfd.readouterr().out == "heard\n"


def test_closed_streams_are_no_error():
    said = (
        "import os, sys; sys.stdout.flush(); os.close(1)\n"
        "from harness.signals import silence\n"
        "with silence(): print('x')\n"
        "os.write(2, b'done')"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("done"), done.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_stops_the_harness(number: signal.Signals):
    with hearing(number), interruptible(), pytest.raises(StopSignal) as stop:
        signal.raise_signal(number)
    assert (stop.value.status, last_signal()) == (128 + number, number)


@pytest.mark.parametrize("number", SIGNALS)
def test_who_was_started_deaf_stays_so(number: signal.Signals):
    """As behind `nohup`, and in a shell's background: Unix says so."""
    with hearing(number):
        signal.signal(number, signal.SIG_IGN)
        with interruptible():
            signal.raise_signal(number)
        assert (signal.getsignal(number), last_signal()) == (signal.SIG_IGN, 0)


def test_a_signal_that_a_destructor_swallows_comes_again():
    class Loud:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def drop() -> None:
        Loud()
        time.sleep(10)

    with hearing(signal.SIGTERM), interruptible(), pytest.raises(StopSignal) as stop:
        drop()
    assert stop.value.status == 143


def test_one_that_comes_while_a_module_is_imported_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Libraries import under `except:`, and go on without what was not there."""
    text = (
        "import signal\ntry: signal.raise_signal(15)\nexcept BaseException: raise SystemExit('swallowed') from None\n"
    )
    (tmp_path / "swallows_signals.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def load() -> None:
        importlib.import_module("swallows_signals")
        time.sleep(10)

    with hearing(signal.SIGTERM), interruptible(), pytest.raises(StopSignal) as stop:
        load()
    assert stop.value.status == 143


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_went_on_after_a_signal_says_so_by_its_status(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
):
    """A library swallowed it, or it came while the last module was imported, and waited when all was done."""

    def app(**named: object) -> int:
        with suppress(BaseException):
            signal.raise_signal(number)
        return 0

    monkeypatch.setattr(program, "app", app)
    with hearing(number), pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 128 + number


def started(*words: str, after_s: float) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": ROOT}
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, *words], env=environment, stdout=pipe, stderr=pipe)
    time.sleep(after_s)
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("imported", ["harness.version", "typer"])
def test_a_command_that_is_still_imported_ends_without_a_word(number: signal.Signals, status: int, imported: str):
    code = f"""
import os, signal, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "{imported}": os.kill(os.getpid(), {number})
signal.signal({number}, signal.default_int_handler)
sys.argv = ["sdvar-harness", "--version"]
sys.meta_path.insert(0, Finder)
import harness.__main__
"""
    command = started("-c", code, after_s=0.0)
    assert (command.communicate(), command.returncode) == ((b"", b""), status)


@pytest.mark.parametrize("command", ["parts", "calibrate", "verify"])
def test_every_command_says_which_signal_ended_it(command: str):
    """A second after its start it imports PyTorch, and later it loads and measures."""
    process = started("-m", "harness", command, after_s=1.5)
    process.send_signal(signal.SIGTERM)
    assert (process.communicate()[1], process.returncode) == (b"", 143)


def test_standard_streams_that_are_closed_are_opened():
    code = "import os\nfor n in (0, 1, 2): os.close(n)\n" + (
        "from harness.signals import keep_standard_open\nkeep_standard_open()\nos._exit(os.open('/dev/null', 0))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ROOT}, check=False).returncode
        == 3
    )
    keep_standard_open()  # nothing to do
