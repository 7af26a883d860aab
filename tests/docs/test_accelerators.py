"""Every command of docs/accelerators.md ends and says as the page has it, with the file that it shows."""

from __future__ import annotations

from pathlib import Path

from tests.docs.pages import ROOT, blocks, run, says, told

PAGE = ROOT / "docs" / "accelerators.md"


def test_every_command_does_as_it_says(tmp_path: Path):
    (source,) = blocks(PAGE, "python")
    (tmp_path / "pruned.py").write_text(source)
    for one in told(PAGE):
        done = run(one.line, tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode == one.status, f"{one.line}\n{said[-3000:]}"
        assert not says(said, one.output), f"{one.line}\n{said[-3000:]}"
