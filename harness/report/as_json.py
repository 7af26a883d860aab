"""A verification as JSON: stable keys that scripts depend on (design §7)."""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from itertools import chain

import numpy
import torch

from harness.precision import precision
from harness.verification import SettingResult, Verification


def versions() -> dict[str, str]:
    """Return the versions of what decides a result."""
    return {
        "harness": _own_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def _own_version() -> str:
    try:
        return version("sdvar-harness")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "not installed"


def as_json(result: Verification) -> bytes:
    """Return the result as indented UTF-8 JSON; counts are totals over settings, lists run over settings and images."""
    settings = [_setting(setting) for setting in result.settings]
    first = result.first_divergence

    def joined(name: str) -> list[object]:
        return list(chain.from_iterable(getattr(setting, name) for setting in result.settings))

    def total(name: str) -> int:
        return sum(setting.total(name) for setting in result.settings)

    document = {
        "contract": result.contract,
        "verdict": result.verdict.value,
        "images": total("images"),
        "draws": total("draws"),
        "identical": total("identical"),
        "ties": total("ties"),
        "defects": total("defects") + len(result.early),
        "first_divergence": first.as_dict() if first else None,
        "inconclusive": result.inconclusive,
        "target_calls": joined("target_calls"),
        "target_rows": joined("target_rows"),
        "rounds": joined("rounds"),
        "accepted_scales": joined("accepted_scales"),
        "device": str(result.device),
        "dtype": str(result.dtype).removeprefix("torch."),
        "precision": precision(),
        "models": result.models,
        "budget": vars(result.budget) if result.budget else None,
        "versions": versions(),
        "settings": settings,
    }
    return compact(document)


def compact(document: object) -> bytes:
    """Return indented UTF-8 JSON with every list of plain values on one line. NaN is refused."""
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    # A JSON string holds no raw line break, so only layout is joined.
    text = re.sub(r"\[\s*\n[^\[\]{}]*\]", lambda match: re.sub(r"\s*\n\s*", " ", match[0]), text)
    return (text + "\n").encode()


def _setting(setting: SettingResult) -> dict[str, object]:
    return {
        "setting": vars(setting.settings),
        "contract": setting.contract,
        "verdict": setting.verdict.value,
        **{name: setting.total(name) for name in ("images", "draws", "identical", "ties", "defects")},
        "ties_listed": [tie.as_dict() for judgement in setting.judgements for tie in judgement.ties],
        "defects_listed": [d.as_dict() for judgement in setting.judgements for d in judgement.defects[:20]],
        "target_calls": setting.target_calls,
        "target_rows": setting.target_rows,
        "rounds": setting.rounds,
        "accepted_scales": setting.accepted_scales,
        "distances": [vars(distance) for distance in setting.distances],
        "seconds": setting.seconds,
        "reference_seconds": setting.reference_seconds,
    }
