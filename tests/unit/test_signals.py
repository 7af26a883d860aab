"""What `--quiet` promises: nothing of a decoder's, from Python or from below it, and no error is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from harness.signals import silence


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
