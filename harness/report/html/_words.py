"""What verdicts, contracts, tensors and components mean to a newcomer, and what sections and tables are called."""

import tomllib
from pathlib import Path
from typing import Any

from harness.judge import Verdict


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


WORDS: dict[str, dict[str, str]] = _read("words.toml")
PAGES = _read("pages.toml")
MEANS, VERDICTS, COMPARED, COMPONENTS = (WORDS[name] for name in ("contracts", "verdicts", "compared", "components"))
TONE = dict.fromkeys(Verdict, "good") | {Verdict.DEFECT: "bad", Verdict.INCONCLUSIVE: "open"}
MARKS: dict[str, tuple[str, str, str]] = {mark: tuple(words) for mark, words in PAGES["marks"].items()}
