"""What verdicts, contracts, tensors and components mean, for somebody who meets them for the first time."""

import tomllib
from pathlib import Path

from harness.judge import Verdict

WORDS: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
MEANS, VERDICTS, COMPARED, COMPONENTS = (WORDS[name] for name in ("contracts", "verdicts", "compared", "components"))
TONE = dict.fromkeys(Verdict, "good") | {Verdict.DEFECT: "bad", Verdict.INCONCLUSIVE: "open"}
MARKS = {  # letter of a mark -> class, what it means, what so many of them are
    "=": ("agree", "agrees with the reference", "agree"),
    "t": ("tie", "tie: rounding decides", "tied"),
    "x": ("wrong", "wrong", "wrong"),
    ".": ("unclaimed", "another one than the reference's, which is not claimed", "others"),
}


def contracts(claimed: str) -> list[str]:
    """Return what the claimed contracts mean; `claimed` as in `Verification.contract`."""
    return [text for name, text in MEANS.items() if name in claimed]
