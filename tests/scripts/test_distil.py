"""The recipe of a draft: new blocks change nothing, it learns, it goes on as if never stopped, its file is a draft."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.models import DIGITS, load_pair
from harness.protocol import Request
from scripts.distil import Apprentice, Lesson, deeper, guided_law, main, write
from tests.helpers import tiny

PAIR = tiny()
LESSON = Lesson(PAIR, entry=1, guidance=(0.0, 2.0), top_k=0, top_p=0.0, batch=8)


def losses(apprentice: Apprentice, steps: int) -> list[float]:
    return [float(loss) for _, loss in apprentice.train(steps)]


def test_new_blocks_change_nothing_until_they_have_learned():
    longer = deeper(PAIR.draft, PAIR.draft.config.depth + 2, torch.Generator().manual_seed(0))
    tokens_BL = torch.zeros(2, PAIR.pyramid.draws.L, dtype=torch.int64)
    asked, labels_B = Request((0, 1), 0, 1.5), torch.tensor([0, 1])
    with torch.no_grad():
        before, after = (guided_law(each, PAIR.vae, asked, tokens_BL, labels_B) for each in (PAIR.draft, longer))
    assert torch.equal(before, after)
    apprentice = Apprentice(replace(LESSON, models=replace(PAIR, draft=longer)), 0, 0)
    losses(apprentice, 1)
    last = f"blocks.{longer.config.depth - 1}.ada_lin.1.bias"
    assert not torch.equal(apprentice.weights[last], longer.weights[last])  # a gate that is shut still learns


def test_it_comes_nearer_to_the_targets_law():
    seen = losses(Apprentice(LESSON, 0, 0), 60)
    assert sum(seen[-10:]) < 0.5 * sum(seen[:10])


def test_the_target_itself_has_nothing_to_learn():
    same = replace(PAIR, draft=PAIR.target)
    assert losses(Apprentice(replace(LESSON, models=same), 0, 0), 1)[0] < 1e-6


@pytest.mark.parametrize("top_k", [0, 2])
def test_what_went_on_is_what_never_stopped(top_k: int):
    lesson = replace(LESSON, top_k=top_k)
    whole = Apprentice(lesson, 0, 3)
    expected = losses(whole, 6)
    first = Apprentice(lesson, 0, 3)
    seen = [float(next(steps)[1]) for steps in [first.train(6)] for _ in range(4)]
    second = Apprentice(lesson, 0, 4)
    second.go_on(first.state())
    assert seen + losses(second, 6) == expected
    for name, average in whole.average.items():
        assert torch.equal(average, second.average[name])


def test_the_file_is_a_checkpoint_of_a_draft(tmp_path: Path):
    into = tmp_path / "draft.safetensors"
    digits = load_pair(*(DIGITS / f"{name}.safetensors" for name in ("draft", "target", "vae")))
    write(digits.draft, into, torch.float32)
    again = load_pair(into, DIGITS / "target.safetensors", DIGITS / "vae.safetensors")
    assert all(torch.equal(w, again.draft.weights[name]) for name, w in digits.draft.weights.items())
    assert [each.name for each in tmp_path.iterdir()] == ["draft.safetensors"]  # nothing half-written


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--entry", "10"], "entry=10: must lie in 0..9"),
        (["--cfg", "2:1"], "cfg=2:1: must be LOW:HIGH or one value"),
        (["--dtype", "int8"], "dtype=int8: must be one of"),
        (["--dtype", "bfloat16"], "dtype=bfloat16: keeps no float32 weights"),
        (["--depth", "1"], "depth=1: is less than the 2 blocks that the draft has"),
        (["--resume"], "resume=True: nothing was kept in"),
    ],
)
def test_bad_input_is_one_line(given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "draft.safetensors"), *given])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
