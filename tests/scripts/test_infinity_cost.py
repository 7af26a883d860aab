"""What a verification of Infinity costs: the memory that is stated first is what the process then takes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from scripts import infinity_cost as script
from tests.docs.pages import ROOT

ASKED = "--sizes", "tiny", "--schedule", "1x1,2x2,4x4,8x8", "--most", "100"


def test_a_process_takes_what_was_stated_for_it():
    words = [sys.executable, "-m", "scripts.infinity_cost", *ASKED]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    stated, networks, images = map(float, re.findall(r"\d+\.\d+", done.stdout.splitlines()[1]))
    seen = float(re.findall(r"most memory: (\d+\.\d+) GiB of the process", done.stdout)[0])
    assert stated / 2 <= seen <= stated
    assert networks + images < 0.1


@pytest.mark.parametrize(("factor", "status"), [(0.4, 1), (0.9, 0), (1.1, 1)])
def test_more_than_was_stated_fails_and_so_does_less_than_half(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], factor: float, status: int
):
    def seen(device: object) -> int:
        (stated,) = re.findall(r"stated: (\S+) GiB", capsys.readouterr().out)
        return int(factor * float(stated) * 2**30)

    monkeypatch.setattr(script, "peak_bytes", seen)
    with pytest.raises(SystemExit) as ended:
        script.main(ASKED)
    assert ended.value.code == status
