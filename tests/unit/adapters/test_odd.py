"""Right code in odd dress passes, and wrong code that the adapters once took for right is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from harness import Request, Settings, Verdict, Verification
from harness.decoders._factory import load_factory
from harness.decoders._in_process import inspect_parts
from harness.judge._verdict import PartLaw, PartVerdict
from harness.reference.sequential import sample_sequential
from harness.rounding._measure import quick_budget
from tests.helpers import Layout, some, tiny, verify_here
from tests.published.checkout import edited, make

SMALL = tiny(Layout((1, 2, 3, 4)))
TWO = Request((0, 1), 0)


def settings(checkout: Path, **options: object) -> Settings:
    return Settings("", False, "", (("checkout", str(checkout)), *((n, str(v)) for n, v in options.items())))


def run(kind: str, checkout: Path, request: Request = TWO, **options: object) -> Verification:
    factory = load_factory(f"published:{kind}")
    return verify_here(SMALL, factory, [settings(checkout, **options)], [request], sequential=kind == "var")


def parts(checkout: Path, **options: str) -> dict[str, PartLaw]:
    decoder = load_factory("published:sdvar-parallel")(SMALL, settings(checkout, **options))
    rows = inspect_parts(decoder, TWO, quick_budget(SMALL))
    return {f"{row.part}: {row.law}": row for row in rows}


def broken(rows: dict[str, PartLaw]) -> dict[str, str]:
    return {name: row.found for name, row in rows.items() if row.verdict in (PartVerdict.BROKEN, PartVerdict.CRASHED)}


def test_arguments_may_be_given_by_name_in_any_order(tmp_path: Path):
    checkout = edited(
        tmp_path,
        "var",
        ("(logits, top_k=top_k, top_p=top_p, rng=rng)", "(rng=rng, top_k=top_k, logits_BlV=logits, top_p=top_p)"),
        ("(si, S, f_hat, h)", "(h_BCpp=h, f_hat=f_hat, SN=S, si=si)"),
    )
    network = checkout / "models" / "network.py"
    network.write_text(network.read_text().replace("embedding(idx_Bl)", "embedding(input=idx_Bl)"))
    result = run("var", checkout)
    assert result.verdict is Verdict.IDENTICAL, result.first_divergence


OWN_MASK = "return target.attn_bias_for_masking[:, :, begin:end, begin:end]"
MASKS = [
    (
        (OWN_MASK, f"{OWN_MASK}.nan_to_num(neginf=torch.nan)"),
        "_get_attention_mask: masks.definition",
        "is nan, not 0 or",
    ),
    ((OWN_MASK, f"{OWN_MASK}.nan_to_num(neginf=-2.0)"), "_get_attention_mask: masks.definition", "is -2, not 0 or"),
    ((OWN_MASK, f"{OWN_MASK} + 0.25"), "_get_attention_mask: masks.definition", r"first .* \(0, 0\) is 0.25, not 0 or"),
    (("own, 0.0, -torch.inf", "own, 0.0, -1.0"), "attn_bias_for_sdmasking: masks.hand-off", "is -1, not 0 or"),
    (("same, 0.0, -torch.inf", "same, 0.0, torch.nan"), "attn_bias_for_block: masks.hand-off", "is nan, not 0 or"),
]


@pytest.mark.parametrize(("edit", "law", "said"), MASKS)
def test_a_mask_that_neither_shows_nor_hides_is_wrong(tmp_path: Path, edit: tuple[str, str], law: str, said: str):
    assert re.search(said, broken(parts(edited(tmp_path, "sdvar", edit)))[law])


@pytest.mark.parametrize("fill", [-1e4, -3e38])
def test_a_mask_may_hide_with_any_large_number(tmp_path: Path, fill: float):
    hidden = f"torch.where(levels >= levels.transpose(1, 2), 0.0, {fill})"
    checkout = edited(tmp_path, "sdvar", ("-torch.inf)[None, None]", f"{fill})[None, None]"))
    network = checkout / "models" / "network.py"
    network.write_text(network.read_text().replace(hidden.replace(str(fill), "-torch.inf"), hidden))
    assert broken(parts(checkout)) == {}


def test_the_networks_own_mask_may_not_be_soft(tmp_path: Path):
    soft = ("levels.transpose(1, 2), 0.0, -torch.inf)", "levels.transpose(1, 2), 0.0, -30.0)")
    found = broken(parts(edited(tmp_path, "sdvar", soft, of="models/network.py")))
    assert "is -30, not 0 or" in found["attn_bias_for_masking: masks.definition"]


GIVEN = " = draft_model, target_model, similarity_thresh"
ELSEWHERE = (  # the object calls its threshold otherwise
    (f"self.similarity_thresh{GIVEN}", f"self.at{GIVEN}"),
    ("due = self.similarity_thresh", "due = self.at"),
)
RENAMED = (
    ("similarity_thresh=0.8)", "accept_from=0.8)"),
    (" target_model, similarity_thresh", " target_model, accept_from"),
)
BASIC = "basic_token_matching"


@pytest.mark.parametrize("options", [{}, {"similarity_thresh": "0.3"}])
def test_the_threshold_is_the_one_that_the_object_was_built_with(tmp_path: Path, options: dict[str, str]):
    assert broken(parts(edited(tmp_path, "sdvar", *ELSEWHERE), **options)) == {}


@pytest.mark.parametrize(
    ("edits", "law"), [((), None), ((("share = hits[0].mean() if", "share = hits[0].mean() if True or"),), "share")]
)
def test_without_a_known_threshold_the_share_alone_is_judged(tmp_path: Path, edits: tuple, law: str | None):
    found = broken(parts(edited(tmp_path, "sdvar", *RENAMED, *edits)))
    assert [name for name in found if BASIC in name] == ([f"{BASIC}: accept.share"] if law else [])


def test_a_threshold_of_its_own_is_named(tmp_path: Path):
    found = broken(parts(edited(tmp_path, "sdvar", ("due = self.similarity_thresh", "due = 0.5"))))
    assert "with a threshold of 0.8" in found[f"{BASIC}: accept.share"]


def test_every_part_gets_a_state_with_every_field_of_the_page(tmp_path: Path):
    names = (
        "current_stage gamma total_stages accept_count reject_count target_calls patch_nums draft_f_hat target_f_hat "
        "draft_next_token_map target_next_token_map draft_cond_BD target_cond_BD draft_lvl_pos target_lvl_pos cfg rng "
        "top_k top_p more_smooth accepted_tokens current_tokens_length"
    )
    read = f"[getattr(state, name) for name in {names.split()!r}]"
    asked = (("accepted = 0\n", f"accepted, _ = 0, {read}\n"), ("made, at = [], 0\n", f"made, at, _ = [], 0, {read}\n"))
    assert broken(parts(edited(tmp_path, "sdvar", *asked))) == {}


SHOWN = "self.vae_proxy[0].fhat_to_img(f_hat).add_(1).mul_(0.5)"
PICTURES = [
    (SHOWN.partition(".add_")[0], r"image 0 is not that of its f_hat, by up to \d.*: its pixels are -"),
    (f"{SHOWN}[:1]", r"the image is float32 \(1, 3, \d+, \d+\), not floating point \(2, 3"),
    (f"{SHOWN}.flip(0)", "image 0 is not that of its f_hat, .*: it is image 1"),
    (f"{SHOWN}.mul(255).byte()", "the image is uint8"),
    (f"{SHOWN} * torch.nan", "image 0 is not that of its f_hat, by up to inf"),
    (f"{SHOWN} + 1.5e-4", "image 0 is not that of its f_hat, by up to 0.00015"),
    (f"{SHOWN}.tolist()", "a list is returned, not an image"),
]


@pytest.mark.parametrize("kind", ["var", "sdvar"])
@pytest.mark.parametrize(("picture", "said"), some(2, PICTURES))
def test_the_image_that_is_returned_is_that_of_its_f_hat(tmp_path: Path, kind: str, picture: str, said: str):
    checkout = edited(tmp_path, kind, (SHOWN, picture), of="models/network.py")
    result = run("var" if kind == "var" else "sdvar-parallel", checkout)
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence is not None
    assert result.first_divergence.component == "image"
    assert re.search(said, result.first_divergence.detail)


@pytest.mark.parametrize(
    "picture", [f"{SHOWN} + 5e-5", f"torch.cat([{SHOWN.replace('f_hat)', 'f)')} for f in f_hat.split(2)])"]
)
def test_a_pixels_rounding_is_no_defect(tmp_path: Path, picture: str):
    checkout = edited(tmp_path, "var", (SHOWN, picture), of="models/network.py")
    assert run("var", checkout).verdict is Verdict.IDENTICAL


ONE_PASS = "logits = target.get_logits(target.run(x, state.target_cond_BD, mask), state.target_cond_BD)"
IN_PASSES = (
    "rows, at = [], 0\n"
    "        for idx in draft_tokens:\n"
    "            part, at = x[:, at : at + idx.shape[1]], at + idx.shape[1]\n"
    "            rows.append(target.get_logits(target.run(part, state.target_cond_BD), state.target_cond_BD))\n"
    "        logits = torch.cat(rows, 1)"
)


ONE_HEAD = IN_PASSES.replace("target.get_logits(target.run(part, state.target_cond_BD), state.target_cond_BD)", "0")
ONE_HEAD = ONE_HEAD.replace("append(0)", "append(target.run(part, state.target_cond_BD))")
ONE_HEAD = ONE_HEAD.replace("torch.cat(rows, 1)", "target.get_logits(torch.cat(rows, 1), state.target_cond_BD)")


@pytest.mark.parametrize("gamma", [2, 4])
@pytest.mark.parametrize("passes", [IN_PASSES, ONE_HEAD], ids=["scale-by-scale", "one-head"])
def test_a_window_may_be_verified_in_several_passes(tmp_path: Path, passes: str, gamma: int):
    result = run("sdvar-parallel", edited(tmp_path, "sdvar", (ONE_PASS, passes)), gamma=gamma, similarity_thresh=0.0)
    assert result.verdict is Verdict.CONSISTENT, result.first_divergence


def test_a_wrong_input_among_passes_is_named(tmp_path: Path):
    wrong = ('1 if "position-offset" in ON', "1 if True")
    result = run("sdvar-parallel", edited(tmp_path, "sdvar", (ONE_PASS, IN_PASSES), wrong), similarity_thresh=0.0)
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence is not None
    assert result.first_divergence.component == "positions"


FILLED = ('if "accepted-not-filled" not in ON:\n                state.accepted_tokens.append(idx)', "pass")
LAST = (
    "state.current_stage += len(kept)\n",
    "state.current_stage += len(kept)\n        state.accepted_tokens.append(MADE)\n",
)


@pytest.mark.parametrize(("made", "right"), [("list(kept)", True), ("[tuple(kept)]", True), ("list(kept[:-1])", False)])
def test_accepted_tokens_may_be_lists_of_rounds(tmp_path: Path, made: str, right: bool):
    checkout = edited(tmp_path, "sdvar", FILLED, (LAST[0], LAST[1].replace("MADE", made)))
    found = broken(parts(checkout))
    assert list(found) == ([] if right else ["update_state_with_accepted_tokens: state.tokens"])


@pytest.mark.parametrize("options", [{"sd_mask": 0}, {"sd_mask": 3}])
@pytest.mark.parametrize("entry", [2, 3])
def test_a_scale_as_long_as_a_prefix_is_not_taken_for_it(tmp_path: Path, entry: int, options: dict[str, int]):
    models = tiny(Layout((1, 4, 8, 9)))  # 1 + 16 + 64 = 81
    decoder = load_factory("published:sdvar-test3")
    made = decoder(models, settings(make(tmp_path, "sdvar"), entry_num=entry, **options))
    trace = made.decode(TWO, models.noise(TWO))
    due = sample_sequential(models.target, models.vae, TWO, models.noise(TWO), trace.tokens_BL).intermediates
    assert trace.intermediates is not None
    assert due is not None
    for si in models.pyramid:
        got, right = (each.x_RLD[:, models.pyramid.span(si)] for each in (trace.intermediates, due))
        seen = si >= entry or options["sd_mask"] == 3
        assert bool(((got - right).abs() <= 1e-4).all() if seen else got.isnan().all()), si


@pytest.mark.parametrize("put", ["sys.path.append(LIB)", "sys.path.insert(0, LIB)", "sys.path = [LIB, *sys.path]"])
def test_what_a_checkout_puts_on_the_path_is_there_for_it_alone(tmp_path: Path, put: str):
    before, path = list(sys.path), sys.path
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "only_while_decoding.py").write_text("MADE = True\n")
    line = f"import sys\n\n{put.replace('LIB', repr(str(tmp_path / 'lib')))}\nimport torch\n"
    late = ("            misbehave()\n", "            import only_while_decoding\n\n")
    checkout = edited(tmp_path, "var", ("import torch\n", line), late)
    try:
        assert run("var", checkout).verdict is Verdict.IDENTICAL
        assert sys.path is path
        assert path == before
    finally:
        sys.modules.pop("only_while_decoding", None)
        path[:], sys.path = before, path


@pytest.mark.parametrize("kind", ["var", "sdvar-parallel"])
def test_code_with_its_own_numbers_draws_its_own_labels(tmp_path: Path, kind: str):
    checkout, request = make(tmp_path, kind.partition("-")[0]), Request(None, 5, order="batch", count=3)
    options = {} if kind == "var" else {"similarity_thresh": 0.0}
    made = []
    for numbers in ("shared", "own"):
        decoder = load_factory(f"published:{kind}")(SMALL, settings(checkout, numbers=numbers, **options))
        made.append(decoder.decode(request, SMALL.noise(request)).tokens_BL)
    assert torch.equal(*made)


REBUILT = (  # the draft goes on from the target's f_hat, and nothing keeps one of its own
    (
        "x = state.draft_next_token_map\n        "
        'f_hat = state.draft_f_hat if "alias" in ON else state.draft_f_hat.clone()',
        "x, f_hat = state.draft_next_token_map, state.target_f_hat.clone()\n"
        "        if (at := state.current_stage):\n"
        '            raw = nn.functional.interpolate(f_hat, size=(draft.patch_nums[at],) * 2, mode="area")\n'
        "            x = draft.next_input(raw, at, state.draft_lvl_pos)",
    ),
    ("state.draft_f_hat = state.target_f_hat.clone()", "pass"),
    ("                state.draft_next_token_map = draft.next_input(raw, si + 1, state.draft_lvl_pos)\n", ""),
    ('target_f_hat=draft_f_hat if "alias" in ON else draft_f_hat.clone()', "target_f_hat=draft_f_hat"),
)


def test_a_decoder_without_an_f_hat_of_the_draft_is_right(tmp_path: Path):
    checkout = edited(tmp_path, "sdvar", *REBUILT)
    assert broken(parts(checkout)) == {}
    assert run("sdvar-parallel", checkout, similarity_thresh=0.0).verdict is Verdict.CONSISTENT


@pytest.mark.parametrize(("left_out", "law"), [(1, "state.sync"), (2, "state.next-input")])
def test_a_field_that_is_read_must_be_right(tmp_path: Path, left_out: int, law: str):
    assert law in " ".join(broken(parts(edited(tmp_path, "sdvar", REBUILT[left_out]))))
