"""The recipe of a draft: a pruned target, it learns, it goes on as if never stopped, its file is a draft."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.errors import InputError
from harness.models import DIGITS, load_pair
from harness.models.var.transformer import Transformer
from harness.protocol import Request
from scripts import distil
from scripts.distil import Apprentice, Lesson, blocks_of, guided_law, main, pruned, write
from tests.helpers import tiny

PAIR = tiny()
LESSON = Lesson(PAIR, entry=1, guidance=(0.0, 2.0), top_k=0, top_p=0.0, batch=8)


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distil, "POOL", 2)
    monkeypatch.setattr(distil, "USES", 2)
    monkeypatch.setattr(distil, "ROUND", 4)


def losses(apprentice: Apprentice, steps: int) -> list[float]:
    return [float(loss) for _, loss, _ in apprentice.train(steps)]


def law_of(network: Transformer) -> Tensor:
    tokens_BL = torch.arange(2 * PAIR.pyramid.draws.L).view(2, -1) % PAIR.target.config.V
    with torch.no_grad():
        return guided_law(network, PAIR.vae, Request((0, 1), 0, 1.5), tokens_BL, torch.tensor([0, 1]))


def test_a_pruned_target_has_the_blocks_that_are_kept_and_their_mean_modulation():
    target = PAIR.target
    alike = {name: target.weights[name.replace("1.ada_lin", "0.ada_lin")] for name in target.weights}
    uniform = replace(target, weights=alike)
    assert target.config.depth == 2
    torch.testing.assert_close(law_of(pruned(uniform, (0, 1))), law_of(uniform))  # nothing is lost
    first = {n: w for n, w in alike.items() if not n.startswith("blocks.1")}
    alone = replace(target, config=replace(target.config, depth=1), weights=first)
    torch.testing.assert_close(law_of(pruned(uniform, (0,))), law_of(alone))
    last = pruned(target, (1,))
    assert torch.equal(last.weights["blocks.0.attn.proj.weight"], target.weights["blocks.1.attn.proj.weight"])
    assert last.config.shared_adaln
    with pytest.raises(
        InputError, match=r"^keep=0: takes a target whose blocks have modulations of their own; drop it$"
    ):
        blocks_of("0", last)


def test_along_its_own_images_it_is_the_law_of_the_draft_that_is_asked_for():
    """KL(q ‖ p) along what q has drawn, from a third of the time on in half of the batches."""
    apprentice = Apprentice(LESSON, 0)
    assert [drawn for _, _, drawn in apprentice.train(4)] == [False] * 4
    assert sum(drawn for _, _, drawn in Apprentice(LESSON, 0).train(12)) == 4  # of steps 4..11 half
    batch = apprentice.batch(own=True)
    with torch.no_grad():
        q_BlV = apprentice.law(apprentice.draft(), batch.request, batch.tokens_BL).log_softmax(-1)
        expected = (q_BlV.exp() * (q_BlV - batch.wanted_BlV)).sum(-1).mean()
        assert torch.equal(apprentice.loss(batch), expected)
        other = apprentice.loss(batch._replace(own=False))
    p_BlV = batch.wanted_BlV
    assert torch.equal(other, (p_BlV.exp() * (p_BlV - q_BlV)).sum(-1).mean())


def test_a_draft_of_all_scales_draws_its_own_images_alone():
    """As `docs/draft.md` trains for speculation; images of which the target had drawn a scale would be others."""
    lesson = replace(LESSON, entry=0)
    assert sum(drawn for _, _, drawn in Apprentice(lesson, 0).train(12)) == 4
    request = lesson.request(torch.Generator().manual_seed(0))
    own_BL, targets_BL = (Apprentice(lesson, 0).images(request, own) for own in (True, False))
    drafts = replace(lesson, models=replace(PAIR, target=PAIR.draft))
    assert torch.equal(own_BL, Apprentice(drafts, 0).images(request, own=False))
    assert not torch.equal(own_BL, targets_BL)


def test_it_comes_nearer_to_the_targets_law():
    seen = losses(Apprentice(LESSON, 0), 60)
    assert sum(seen[-10:]) < 0.5 * sum(seen[:10])


def test_the_target_itself_has_nothing_to_learn():
    same = replace(PAIR, draft=PAIR.target)
    assert losses(Apprentice(replace(LESSON, models=same), 0), 1)[0] < 1e-6


@pytest.mark.parametrize("top_k", [0, 2])
def test_what_went_on_is_what_never_stopped(top_k: int):
    lesson = replace(LESSON, top_k=top_k)
    whole = Apprentice(lesson, 3)
    expected = losses(whole, 12)
    first = Apprentice(lesson, 3)
    seen = [float(next(steps)[1]) for steps in [first.train(12)] for _ in range(8)]
    second = Apprentice(lesson, 4)
    second.go_on(first.state())
    assert seen + losses(second, 12) == expected
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
        (["--keep", "0,4"], "keep=0,4: must be ascending blocks of the target, 0..3"),
        (["--keep", "1,0"], "keep=1,0: must be ascending blocks"),
        (["--keep", "a"], "keep=a: must be ascending blocks"),
        (["--resume"], "resume=True: nothing was kept in"),
    ],
)
def test_bad_input_is_one_line(given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "draft.safetensors"), *given])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
