"""The line of a decoder's own code that makes the first wrong value: of mistakes whose lines are known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.decoders._factory import load_factory
from harness.decoders._in_process import search_line
from harness.judge._line import CodeLine, LineSearch
from harness.judge._recorder import rows_of
from harness.judge._search import Search
from harness.judge._wrong_decode import Wrong, WrongDecode
from harness.mutants._hunt import MUTANTS
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from tests.helpers import Layout, some, tiny
from tests.published.checkout import make
from tests.unit.judge.planted_lines import (
    CACHED,
    KINDS,
    LANES,
    LOCKSTEP,
    LOCKSTEPS,
    OTHERS,
    TEMPLATE,
    TEN,
    Planted,
    module_of,
)

MODELS = tiny(Layout((1, 2, 3, 4)))
FILTERED = {
    "top-p before top-k",
    "top-p of the rest",
    "large top-p off",
    "nucleus in few bits",
    "larger top-p",
    "positions rolled before filters",
}  # mistakes that only a filtered draw shows
TOP_K = {
    "top-k of one more",
    "top-k of one less",
    "top-k of three at most",
    "top-k of one",
}  # those that top-k alone shows
SEEDS = {"nucleus in few bits": 20, "top-k of one": 1}  # where it decides a token; leaves one that others stand for
SEVERAL = {"noise of image 0"}  # those of later images


def searched(source: str, path: Path, request: Request, **changes: Any) -> CodeLine | str:
    decoder = module_of(source, path).factory(MODELS, Settings(3))

    def decode() -> Any:
        return replace(decoder.decode(request, MODELS.noise(request)), **changes)

    return LineSearch(WrongDecode(MODELS, request, False, True, decode)).line()


def request_for(planted: Planted) -> Request:
    filters = {"top_k": 6, "top_p": 0.6} if planted.name in FILTERED else {}
    filters = {"top_k": 6} if planted.name in TOP_K else filters
    seed = SEEDS.get(planted.name, 1 + 3 * bool(filters))
    return Request((0, 1) if planted.name in SEVERAL else (0,), seed, **filters)


@pytest.mark.parametrize(
    "planted", [*TEN, *KINDS, *some(6, OTHERS), *some(5, LOCKSTEPS)], ids=lambda planted: planted.name
)
def test_the_line_of_a_mistake_is_named(planted: Planted, tmp_path: Path, record_property: Any):
    line = searched(planted.source, tmp_path / "mine.py", request_for(planted))
    assert isinstance(line, CodeLine), line
    assert line.file == str(tmp_path / "mine.py")
    assert line.text == planted.source.splitlines()[line.line - 1].strip()
    assert line.stack[0] == f"{line.file}:{line.line}, in {line.function}: {line.text}"
    in_function = line.function in {planted.function(each) for each in planted.lines}
    is_near = in_function and min(abs(line.line - each) for each in planted.lines) <= 3
    print(f"{planted.name:24} {planted.lines[0]:4} {line.line:4} {line.function:8} {line.operation}; {line.wrong}")
    calls = any(f":{each}, in" in line.caller for each in planted.lines)
    functions = {"function": in_function and not is_near, "caller": calls, "neither": not (in_function or calls)}
    assert is_near if planted.seen == "line" else functions[planted.seen]


@pytest.mark.parametrize(
    ("name", "operation"), [("buffers of bfloat16", "copy_"), ("keys and values put in as bfloat16", "to")]
)
def test_what_is_rounded_in_a_buffer_is_named_where_it_is_written(name: str, operation: str, tmp_path: Path):
    (planted,) = (each for each in LOCKSTEPS if each.name == name)
    line = searched(planted.source, tmp_path / "mine.py", Request((0, 1), 1))
    assert isinstance(line, CodeLine)
    assert (line.function, line.operation.split()[0]) == ("extend", operation)
    assert ": stop] = k" in line.text
    assert line.wrong.startswith("the rows of scale ")
    assert "place" not in line.wrong


def test_few_tokens_of_a_batch_are_put_right_where_they_were_drawn_at_once(tmp_path: Path):
    """Four of each image are no row of their own: what is drawn is one of eight."""
    source = LOCKSTEP.replace('noise.exponential(si, "token", reader)', 'noise.exponential(si, "token", reader)[:1]')
    line = searched(source, tmp_path / "mine.py", Request((0, 1), 1))
    assert isinstance(line, CodeLine)
    assert re.match(r"with the tokens of scales? .* put right at mine.py:\d+, every value is right", line.tried)


@pytest.mark.parametrize("source", [TEMPLATE, CACHED, LOCKSTEP, LANES], ids=["plain", "cached", "lockstep", "lanes"])
def test_no_line_of_a_right_decoder_is_named(source: str, tmp_path: Path):
    assert searched(source, tmp_path / "mine.py", Request((0, 1), 1)) == ""


# Of the decoder of two lanes what is replaced by what, and what the line in question holds and is said to have made.
STALE = "self.values[layer][:, :, self.fill : upto]"
IN_LANES: dict[str, tuple[tuple[tuple[str, str], ...], str, str]] = {
    "values stay as they were first written": (
        ((f"{STALE}.copy_(v)", f"{STALE}.copy_(torch.where({STALE} == 0, v, {STALE}))"),),
        "torch.where",
        "which is older than what was there",
    ),
    "one key too many, and a column of the mask": (
        (
            ("self.keys[layer][:, :, :upto]", "F.pad(self.keys[layer][:, :, :upto], (0, 0, 0, 1))"),
            ("self.values[layer][:, :, :upto]", "F.pad(self.values[layer][:, :, :upto], (0, 0, 0, 1))"),
            (
                "bias.masked_fill(blocked, -torch.inf)[None, None]",
                "F.pad(bias.masked_fill(blocked, -torch.inf), (0, 1))",
            ),
        ),
        "F.pad(bias",
        "of a wrong mask",
    ),
    "halves of the trace exchanged": (
        (("torch.cat([xc, xu])", "torch.cat([xu, xc])"),),
        "torch.cat([xu, xc])",
        "made of what is right in another place",
    ),
    "labels in another order": (
        (("labels = noise.labels(classes)", "labels = noise.labels(classes).sort(descending=True).values"),),
        ".sort(descending=True)",
        "the input of scale 0",
    ),
    "one image of four decides": (
        (("(wrong == 0).all(1)", "(wrong == 0).any(1)"),),
        "wrong = torch.stack",
        "made of drafted tokens of scale",
    ),
    "one image of four decides, and all are drawn in one row": (
        (
            ("(wrong == 0).all(1)", "(wrong == 0).any(1)"),
            ("race).argmax(-1)", "race).flatten(0, 1).argmax(-1).view(len(guided), -1)"),
        ),
        "wrong = torch.stack",
        "made of drafted tokens of scale",
    ),
}


@pytest.mark.parametrize("name", IN_LANES)
def test_the_line_of_a_mistake_in_two_lanes_is_named(name: str, tmp_path: Path):
    pairs, text, wrong = IN_LANES[name]
    source = LANES
    for old, new in pairs:
        assert old in source, old
        source = source.replace(old, new)
    line = searched(source, tmp_path / "mine.py", Request((0, 1, 2, 1), 1))
    assert isinstance(line, CodeLine), line
    assert text in line.text, line
    assert wrong in line.wrong, line


def test_tokens_of_later_scales_explain_no_value():
    theirs, right = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])
    value = torch.zeros(1)
    step: Any = SimpleNamespace(stack=("a line",), whole=[theirs, right], moves=False, inputs=[])
    stream: Any = SimpleNamespace(steps=[step], makers=lambda rows: {})
    search = Search(stream, stream, stream, weights=[], close=0.0, rejected=[(1, theirs, right)], counts=(1, 4))
    for name, scale, found in (
        ("the input", 1, None),
        ("the rows", 1, None),
        ("the input", 2, step),
        ("f_hat", 1, step),
    ):
        wrong = Wrong(name, scale, value, value, value, value)
        assert (search._compared([theirs], wrong) or [None])[0] is found, (name, scale)


def test_of_an_attention_that_returns_two_tensors_the_rows_in_question_are_followed(tmp_path: Path):
    """Outside of inference mode PyTorch's attention returns its logarithms, too."""
    old = "return self.k[layer, :, :, :stop].to(k), self.v[layer, :, :, :stop].to(v)"
    halves = "(each[layer, : len(k) // 2, :, : self.fill].repeat(2, 1, 1, 1) for each in (self.k, self.v))"
    mistake = f"k_old, v_old = {halves}\n        return torch.cat((k_old, k), 2), torch.cat((v_old, v), 2)"
    assert old in LOCKSTEP
    source = LOCKSTEP.replace("@torch.inference_mode()", "@torch.no_grad()").replace(old, mistake)
    line = searched(source, tmp_path / "mine.py", Request((0, 1), 1))
    assert isinstance(line, CodeLine), line
    assert line.function == "extend", line


@pytest.mark.parametrize("planted", TEN[:1] + TEN[8:], ids=lambda planted: planted.name)
def test_tokens_alone_lead_to_it_too(planted: Planted, tmp_path: Path):
    line = searched(planted.source, tmp_path / "mine.py", request_for(planted), intermediates=None)
    assert isinstance(line, CodeLine)
    assert min(abs(line.line - each) for each in planted.lines) <= 3
    assert "tokens of scale" in line.wrong


def test_what_changes_nothing_in_the_reference_either_is_no_mistake(tmp_path: Path):
    """Guidance of 0 hands the conditional rows on: the filter's order is wrong, not what guides."""
    line = searched(TEN[5].source, tmp_path / "mine.py", Request((0,), 5, 0.0, 6, 0.6))
    assert isinstance(line, CodeLine), line
    assert line.function == "law"
    assert min(abs(line.line - each) for each in TEN[5].lines) <= 3


def test_what_was_drafted_and_is_not_final_is_told(tmp_path: Path):
    line = searched(TEN[1].source, tmp_path / "mine.py", Request((0,), 1))
    assert isinstance(line, CodeLine)
    assert "made of drafted tokens of scale 1 that are not the target's: compared here, read at line" in line.wrong
    assert line.text == "wrong = int((idx_l != proposal).sum())"


def test_a_decode_that_leaves_scales_undrawn_is_not_searched(tmp_path: Path):
    undrawn_BL = torch.full((1, MODELS.pyramid.L), -1)
    said = searched(TEMPLATE, tmp_path / "mydecoder.py", Request((0,)), tokens_BL=undrawn_BL)
    assert said == f"not searched: token outside 0..{MODELS.target.config.V - 1}"


def test_what_was_tried_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    offset, halves = (searched(TEN[n].source, tmp_path / "mine.py", Request((0,), 1)) for n in (0, 2))
    assert isinstance(offset, CodeLine)
    place = f"mine.py:{TEN[0].lines[0]}"
    assert offset.tried == f"with the input of scales 1 to 3 put right at {place}, every value is right"
    monkeypatch.setattr("harness.judge._wrong_decode.MOST_REPLACED", 2)
    line = searched(TEN[0].source, tmp_path / "mine.py", Request((0,), 1))
    assert isinstance(line, CodeLine)
    said = f"with the input of scales 1 and 2 put right at {place}, the first wrong value is the input of scale 3 (by "
    assert line.tried.startswith(said)
    assert isinstance(halves, CodeLine)
    assert halves.tried == "not replaced: the guided logits of scale 0: right for another scale, half or image"


def test_what_no_operation_made_is_said(tmp_path: Path):
    tokens_BL = torch.full((1, MODELS.pyramid.L), 7)
    line = searched(TEMPLATE, tmp_path / "mine.py", Request((0,), 1), tokens_BL=tokens_BL, intermediates=None)
    assert str(line).startswith("no operation of the decoder was seen to make ")


GIVEN = TEMPLATE.replace(
    'si: int) -> Tensor:\n        """Return guided', 'si: int, cfg: float) -> Tensor:\n        """Return guided'
)
GIVEN = GIVEN.replace("t = self.request.cfg *", "t = cfg *").replace(
    "x_RnD, si), si)", "x_RnD, si), si, self.request.cfg)"
)
KEPT = "            idx_l = torch.where(keep, proposal, idx_l)\n"
ABOVE = {
    "a number that is not the request's": (
        GIVEN.replace("self.guide(rows_RlV, si)", "self.guide(rows_RlV, si, self.request.cfg + 0.1)"),
        "guided_lV = self.guide(rows_RlV, si, self.request.cfg + 0.1)",
        "with cfg=1.6, computed at mine.py:",
    ),
    "a mask that hides nothing": (
        TEMPLATE.replace('.masked_fill(hidden_from, float("-inf"))', "").replace(
            "        h_RnD = network.hidden(", "\n\n\n\n        h_RnD = network.hidden("
        ),
        "mask_nn = torch.zeros(n, n, device=x_RnD.device, dtype=x_RnD.dtype)",
        "of a wrong mask",
    ),
    "a mask that takes the draft's": (
        TEMPLATE.replace(
            "            self.tokens.append(idx_l)\n",
            "            keep = (idx_l == proposal).any() | (proposal >= 0).all()\n"
            + KEPT
            + "            self.tokens.append(idx_l)\n",
        ),
        "keep = (idx_l == proposal).any() | (proposal >= 0).all()",
        "that are not the target's: chosen by this",
    ),
}


@pytest.mark.parametrize(("source", "text", "wrong"), ABOVE.values(), ids=ABOVE)
def test_who_asked_for_a_wrong_value_is_named(source: str, text: str, wrong: str, tmp_path: Path):
    line = searched(source, tmp_path / "mine.py", Request((0,), 1))
    assert isinstance(line, CodeLine), line
    assert (line.text, line.stack[0].partition(": ")[2]) == (text, text)
    assert wrong in line.wrong


# Planted bugs, what is asked of them, and of the line a piece of its text and what is said.
ONE, THREE = (Request((0,), 1), Settings(2)), (Request((0, 1, 2), 1), Settings(3, bonus=True))
# of both images tokens are wrong, but not at the same positions: what is exchanged is right for nobody else then
TWO_IMAGES = Request((0, 1), 2), Settings(2)
OTHER_SEED = Request((0,), 2), Settings(2)
HANDED_ON = {
    "one row of a window": ("randomness.redrawn", ONE, "other.exponential(si,", "tokens of scale 1"),
    "right tokens of another scale": ("positions.backwards", ONE, "window_BnX.split(sizes[::-1]", "in another place"),
    "an index": ("batch.interleaved", THREE, "window.rows_R = torch.tensor(", "by an index of another place"),
    "turned round": ("state.kept-early", ONE, "f_hat_SBCPP.roll(1, 0)", "right in another place"),
    "once more": ("state.twice", ONE, "PARTS.accumulate(once,", "which was right before"),
    "older keys": ("state.stale", ONE, "[:, row, :, old] = before[", "older than what was there"),
    "a mask of no window": ("masks.cached-only", ONE, "return torch.where(allowed_nK,", "of a wrong mask"),
    "what changes nothing": ("randomness.greedy-last", ONE, "torch.ones(noise.request.B", "by what changes nothing"),
    "the target's draw, not the draft's": ("randomness.product", ONE, "probs_BnV * E_BnV", "token of scale 0"),
    "a draw of ranks": ("randomness.sorted-race", ONE, "probs_BnV.sort(dim=-1, descending=True)", "tokens of scale"),
    "numbers of another place": ("batch.growing", TWO_IMAGES, "numbers.roll(B - 1, 1)", "right in another place"),
    "what was made before, once more": (
        "randomness.wrong-scale",
        OTHER_SEED,
        "return before.repeat(",
        "right in another place",
    ),
    "one token of several images": ("sensitivity.seed", THREE, "decoder.decode(other, own)", "1 token of scale 0"),
}


@pytest.mark.parametrize("known", [True, False])
def test_a_value_is_called_right_elsewhere_where_the_reference_has_it_alone(known: bool):
    made, due = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    wrong: Any = SimpleNamespace(is_tokens=False, actual=made, expected=due)
    step = SimpleNamespace(stack=("a line",), outputs=[rows_of(made)], inputs=[], name="add")
    streams: Any = (
        SimpleNamespace(is_known=lambda rows: torch.full((len(rows.hash_N),), known), makers=lambda rows: {}),
        SimpleNamespace(steps=[step]),
    )
    found = Search(*streams, right=streams[0], weights=[], close=0.0, rejected=[], counts=(1,)).elsewhere(wrong)
    assert found == (step, ", made of what is right in another place" * known)


@pytest.mark.parametrize(("id", "case", "text", "wrong"), HANDED_ON.values(), ids=HANDED_ON)
def test_who_handed_a_value_on_is_named(id: str, case: tuple[Request, Settings], text: str, wrong: str):
    request, settings = case
    mutant = next(each for each in MUTANTS if each.id == id)
    line = search_line(mutant(MODELS, settings), MODELS, request, False)
    assert isinstance(line, CodeLine), line
    assert text in line.text
    assert wrong in line.wrong


# Switches of the stand-in, and of models/var.py what the innermost frame holds.
REPORTED = {
    "alias": "in draft_generate_batch: f_hat, raw = draft.vae_quant_proxy[0].get_next_autoregressive_input(",
    "doubled-last": "in _build_combined_query: half = state.target_next_token_map[:B]",
    "mask-corner": "in _get_attention_mask: return target.attn_bias_for_masking[:, :, :mask_length, :mask_length]",
    "position-offset": "in _build_combined_query: pos = state.target_lvl_pos.roll(at, 1)",
    "own-tokens": "in _build_combined_query: h = target.vae_quant_proxy[0].embedding(draft_tokens[k + 1])",
    "caches-emptied": "in target_verify_batch: logits = target.get_logits(target.run(",
}


@pytest.mark.parametrize("mistake", REPORTED)
def test_the_line_of_a_mistake_of_the_report_is_named(mistake: str, tmp_path: Path):
    options = {"checkout": str(make(tmp_path, "sdvar", "addparam-th", mistake)), "gamma": "2"}
    settings = Settings(options=tuple((options | {"similarity_threshold": "0.0"}).items()))
    decoder = load_factory("published:sdvar-parallel")(MODELS, settings)
    line = search_line(decoder, MODELS, Request((0,), 1), False)
    assert isinstance(line, CodeLine), line
    assert REPORTED[mistake] in next(each for each in line.stack if "models/var.py:" in each)
