"""Samplers have parts, too; a part's law names its part, and one finding hides no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from harness.adapters._factories import PUBLISHED_FACTORIES
from harness.adapters._parts_sdvar import examine_parts
from harness.judge._verdict import PartLaw, PartVerdict
from harness.rounding._measure import quick_budget
from tests.published.checkout import edited, make
from tests.unit.adapters.test_published import SMALL, TWO, settings

WRONG = (PartVerdict.BROKEN, PartVerdict.CRASHED, PartVerdict.ABSENT)


def rows_of(kind: str, checkout: Path, **options: Any) -> list[PartLaw]:
    decoder = PUBLISHED_FACTORIES[kind](SMALL, settings(checkout, **options))
    return examine_parts(decoder, TWO, quick_budget(SMALL))


def wrong(kind: str, checkout: Path, **options: Any) -> dict[str, str]:
    return {f"{row.part}: {row.law}": row.found for row in rows_of(kind, checkout, **options) if row.verdict in WRONG}


@pytest.mark.parametrize(
    ("kind", "of", "options"),
    [
        ("sdvar-test3", "sdvar", {"entry_num": 2}), ("sdvar-test3", "sdvar", {"entry_num": 0, "sd_mask": 0}),
        ("code", "code", {"exit_num": 2}), ("var", "var", {}),
    ],
)  # fmt: skip
def test_every_part_of_a_right_sampler_holds(tmp_path: Path, kind: str, of: str, options: dict[str, int]):
    rows = rows_of(kind, make(tmp_path, of), **options)
    assert [f"{row.part}: {row.found}" for row in rows if row.verdict in WRONG] == []
    words = {row.law for row in rows if row.part.startswith("sampler: ")}
    assert words == {f"sampler.{word}" for word in ("input", "mask", "cache", "head", "guidance", "draw", "f_hat")}


RUN = "hidden = target.run(whole, cond_RD, mask[:, :, :end, :end])[:, begin:end]"
CAUSAL = "torch.full((end, end), -torch.inf).triu(1)[None, None]"
FORGET = "\n                for each in target.blocks:\n                    each.attn.cached_k = 0 * each.attn.cached_k"
NEXT = "x = target.next_input(raw, si + 1, lvl_pos)\n        target"
TEST3 = [
    (("entry-raw",), (), "sampler: head: sampler.head", "the entry scale 2: the head is given the pass's raw input"),
    ((), ((RUN, RUN.replace("[:, begin:end]", "[:, begin - 1 : end - 1]")),), "sampler: head: sampler.head",
        "the entry scale 2: the head is given rows 4.. of the pass, not 5.."),
    ((), ((RUN, RUN.replace("mask[:, :, :end, :end]", "None")),), "sampler: mask: sampler.mask",
        "the entry scale 2: no mask in a pass over 14 positions, scales 0..2"),
    ((), (("                mask = {3: target", f"                mask = {CAUSAL} if 1 else {{3: target"),),
        "sampler: mask: sampler.mask", "the entry scale 2: .* entries are wrong, first position 1 does not see 2"),
    ((), ((RUN, RUN + FORGET),),
        "sampler: cache: sampler.cache", "scale 3: cached keys: .* numbers differ"),
    ((), ((RUN, f"{RUN}\n                target.caching(True)"),),
        "sampler: cache: sampler.cache", "scale 3: its pass saw 0 cached positions, not 14"),
    ((), ((NEXT, NEXT.replace("lvl_pos)", "lvl_pos.roll(1, 1))")),),
        "sampler: input: sampler.input", "scale 3.*: its position term is 1 position earlier"),
]  # fmt: skip


@pytest.mark.parametrize(("switches", "edits", "law", "said"), TEST3, ids=[f"{k}" for k in range(len(TEST3))])
def test_parts_are_not_green_on_a_wrong_sampler(tmp_path: Path, switches: Any, edits: Any, law: str, said: str):
    checkout = make(tmp_path, "sdvar", *switches) if switches else edited(tmp_path, "sdvar", *edits)
    found = wrong("sdvar-test3", checkout, entry_num=2)
    assert law in found, found
    assert re.search(said, found[law]), found[law]


def test_an_entry_scale_without_its_prefix_is_a_matter_of_the_cache(tmp_path: Path):
    found = wrong("sdvar-test3", make(tmp_path, "sdvar"), entry_num=2, sd_mask=0)
    assert found["sampler: cache: sampler.cache"].startswith(
        "the entry scale 2: its pass saw 0 cached positions, not 5"
    )


@pytest.mark.parametrize(
    ("switch", "law"),
    [
        ("flat-guidance", "sampler: guidance: sampler.guidance"),
        ("most-likely", "sampler: draw: sampler.draw"),
        ("wrong-positions", "sampler: input: sampler.input"),
    ],
)
def test_a_wrong_sequential_sampler_has_a_wrong_part(tmp_path: Path, switch: str, law: str):
    assert law in wrong("var", make(tmp_path, "var", switch))


def test_a_sampler_that_crashes_is_asked_as_far_as_it_came(tmp_path: Path):
    found = wrong("var", make(tmp_path, "var", "crashes-late", "flat-guidance"))
    assert "sampler: guidance: sampler.guidance" in found


# One finding hides no other.


def parallel(checkout: Path) -> dict[str, str]:
    return wrong("sdvar-parallel", checkout)


def test_a_wrong_shape_hides_no_wrong_number(tmp_path: Path):
    """Plant: a start token in front, and the codes of its own tokens behind it."""
    found = parallel(make(tmp_path, "sdvar", "start-token", "own-tokens"))["_build_combined_query: positions.query"]
    assert "a start token stands before the drafted scales" in found
    assert "the codes of its own tokens stand in place of the resized f_hat" in found


def test_half_a_query_is_compared_all_the_same(tmp_path: Path):
    half = ('return x.repeat(2, 1, 1) if "doubled-last" in ON else x', "return x[:B]")
    checkout = edited(tmp_path, "sdvar", half, ('1 if "position-offset" in ON', "1 if True"))
    found = parallel(checkout)["_build_combined_query: positions.query"]
    assert "the query is (2, 1, 16), not (4, 1, 16); the rest is compared from its last row on" in found
    assert "its position term is 1 position earlier" in found


def test_a_crash_in_one_window_hides_no_other(tmp_path: Path):
    head = "mask_length, current_stage, gamma):\n"
    lines = "        if current_stage == 0:\n            raise IndexError('no first window')\n"
    checkout = edited(tmp_path, "sdvar", (head, head + lines))
    switches = checkout / "models" / "switches.py"
    switches.write_text(switches.read_text().replace("frozenset([])", "frozenset(['mask-corner'])"))
    rows = {f"{row.part}: {row.law}": row for row in rows_of("sdvar-parallel", checkout)}
    row = rows["_get_attention_mask: masks.definition"]
    assert row.verdict is PartVerdict.BROKEN
    assert "IndexError: no first window" in row.found
    assert "it is the top-left corner of the whole mask" in row.found


def test_a_split_that_is_off_is_told_with_its_shape(tmp_path: Path):
    found = parallel(make(tmp_path, "sdvar", "start-token"))["_split_logits_by_stage: positions.split"]
    assert "off by 1" in found
    assert re.search(r"gets \(4, \d+\) rows, not \(4, \d+\) \(2B, l\)", found)
