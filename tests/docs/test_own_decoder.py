"""Python that pages show runs as it is written there: a decoder of contract B, and a file for `evidence`."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

import harness
from harness.commands.init import TEMPLATE
from harness.laws import Case, check
from harness.laws._law import Violation
from tests.docs.pages import ROOT, blocks
from tests.helpers import command

DRAW = "    def draw("
(SAMPLED,) = (text for text in blocks(ROOT / "docs" / "own-decoder.md", "python") if text.startswith("def draw("))


def sampled(folder: Path, example: str) -> ModuleType:
    """Return what the page makes of the decoder that `init` writes."""
    head, rest = TEMPLATE.read_text().split(DRAW)
    tail = rest[rest.index("    def f_hat(") :]
    text = head + textwrap.indent(example, "    ") + "\n" + tail
    text = text.replace('contract = "token-identical"', 'contract = "distribution-identical"')
    text = text.replace(
        "self.models, self.length = decoder", "self.drafted = {}\n        self.models, self.length = decoder"
    )
    path = folder / "sampled_decoder.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_of_contract_b_keeps_the_law_and_a_bug_in_it_does_not(tmp_path: Path):
    assert len(SAMPLED.splitlines()) < 17
    assert check("acceptance.distribution", sampled(tmp_path, SAMPLED).factory, Case())
    inverted = SAMPLED.replace("self.b]\n    keep_l = u_l * q_lV", "self.b]\n    keep_l = u_l * 2 * q_lV")
    assert inverted != SAMPLED
    with pytest.raises(Violation, match="do not follow the target's joint law"):
        check("acceptance.distribution", sampled(tmp_path, inverted).factory, Case())


def test_tokens_of_a_decoder_of_ones_own_are_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (script,) = (text for text in blocks(ROOT / "docs" / "evidence.md", "python") if "mydecoder" in text)
    module = ModuleType("mydecoder")
    module.factory = harness.build_decoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mydecoder", module)
    monkeypatch.chdir(tmp_path)
    exec(compile(script.replace("range(10)", "range(2)"), "evidence.md", "exec"), {})
    assert command(monkeypatch, "evidence", "mine.safetensors") == 3
    assert "2 images prove little" in capsys.readouterr().out
