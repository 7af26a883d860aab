"""A right loop, right parts and a right checkout written otherwise than the stand-in; and a wrong one beside each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness import Verdict
from harness.decoders._factory import load_factory
from harness.errors import InputError
from harness.judge._verdict import PartVerdict
from tests.published.checkout import edited, make
from tests.unit.adapters.test_odd import BASIC, LAST, SMALL, TWO, broken, parts, run, settings

HERE = "    def cut(self, state):"
FINISH = """    def finish(self, idx, state, B):
        si, S, quantizer = state.current_stage, state.total_stages, self.target_model.vae_quant_proxy[0]
        codes = self.target_model.codes(idx, state.patch_nums[si])
        state.target_f_hat, raw = quantizer.get_next_autoregressive_input(si, S, state.target_f_hat, codes)
        state.draft_f_hat = state.target_f_hat.clone()
        if si < S - 1:
            state.draft_next_token_map = self.draft_model.next_input(raw, si + 1, state.draft_lvl_pos)
            state.target_next_token_map = self.target_model.next_input(raw, si + 1, state.target_lvl_pos)
        state.accepted_tokens.append(idx)
        state.current_stage += 1
        self.cut(state)

"""
BY_THE_LOOP = (
    ("tokens, accepted = [own[:, :, 0]], 1\n", "self.finish(own[:, :, 0], state, B)\n                continue\n"),
    (HERE, FINISH + HERE),
)
TWICE = ("state.draft_f_hat = state.target_f_hat.clone()\n        if si", "state.target_f_hat.add_(1)\n        if si")


@pytest.mark.parametrize("gamma", [2, 3])
def test_the_loop_itself_may_finish_a_rejected_scale(tmp_path: Path, gamma: int):
    checkout = edited(tmp_path, "sdvar", *BY_THE_LOOP)
    result = run("sdvar-parallel", checkout, gamma=gamma, similarity_thresh=0.9)
    assert result.verdict is Verdict.CONSISTENT, result.first_divergence


def test_a_loop_that_spoils_f_hat_is_named(tmp_path: Path):
    result = run("sdvar-parallel", edited(tmp_path, "sdvar", *BY_THE_LOOP, TWICE), similarity_thresh=0.9)
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence is not None
    assert result.first_divergence.component in ("f_hat", "query")


SPLIT = "pieces = self._split_logits_by_stage(logits, draft_tokens, B, state)"


@pytest.mark.parametrize(("rows", "right"), [("logits", True), ("logits.roll(1, 1)", False)])
def test_logits_may_be_split_without_the_method(tmp_path: Path, rows: str, right: bool):
    own = f"pieces = {rows}.split([idx.shape[1] for idx in draft_tokens], 1)"
    result = run("sdvar-parallel", edited(tmp_path, "sdvar", (SPLIT, own)), similarity_thresh=0.0)
    assert result.verdict is (Verdict.CONSISTENT if right else Verdict.DEFECT), result.first_divergence


KEPT = "            accepted += 1\n        return accepted"
CALLED = "accepted = self.basic_token_matching(tokens, logits, state, B, *more)"
RESULTS = [
    ("accepted, [0.5]", CALLED.replace("accepted =", "accepted, _ =")),
    ("__import__('numpy').int64(accepted)", CALLED),
]


@pytest.mark.parametrize(("result", "called"), RESULTS, ids=["with-its-shares", "numpy"])
def test_a_count_of_scales_may_come_otherwise(tmp_path: Path, result: str, called: str):
    edits = ((KEPT, KEPT.replace("return accepted", f"return {result}")), (CALLED, called))
    checkout = edited(tmp_path, "sdvar", *edits)
    decoder = load_factory("published:sdvar-parallel")(SMALL, settings(checkout, similarity_thresh=0.0))
    assert [turn.accepted for turn in decoder.decode(TWO, SMALL.noise(TWO)).rounds[0]] == [2, 2]
    if "numpy" in result:
        assert broken(parts(checkout)) == {}


DEQUE = (
    ("return made\n\n    def _build", "return __import__('collections').deque(made)\n\n    def _build"),
    ("enumerate(draft_tokens[:-1])", "enumerate(list(draft_tokens)[:-1])"),
    ("kept = draft_tokens[:accept_length]", "kept = list(draft_tokens)[:accept_length]"),
)


def test_drafted_tokens_may_be_a_deque(tmp_path: Path):
    result = run("sdvar-parallel", edited(tmp_path, "sdvar", *DEQUE), similarity_thresh=0.9)
    assert result.verdict is Verdict.CONSISTENT, result.first_divergence


WRAPPER = "def timed(f):\n    return lambda *args, **kwargs: f(*args, **kwargs)\n\n\nclass SDVAR(nn.Module)"
TIMED = [
    ("class SDVAR(nn.Module)", WRAPPER),
    *(
        (f"    def {name}(self", f"    @timed\n    def {name}(self")
        for name in ("draft_generate_batch", "basic_token_matching", "_split_logits_by_stage")
    ),
]
NO_MASK = (
    ("        begin, end = (\n", "        if gamma == 1:\n            return None\n        begin, end = (\n"),
    ("        if cached is not None:", "        if cached is not None and mask is not None:"),
    ("if mask.shape[-2]", "if mask is not None and mask.shape[-2]"),
)
SCRATCH = (  # the last drafted scale stays out of the draft's f_hat, which every update puts right
    ('state.draft_f_hat if "alias" in ON else state.draft_f_hat.clone()', "state.draft_f_hat"),
    ("if si == S - 1:\n                break", "if si == last - 1:\n                break"),
    (LAST[0], f"state.draft_f_hat = state.target_f_hat.clone()\n        {LAST[0]}"),
)


@pytest.mark.parametrize("edits", [(*TIMED, *NO_MASK), SCRATCH], ids=["wrapped, no mask of one scale", "scratch"])
def test_right_parts_may_be_written_otherwise(tmp_path: Path, edits: tuple):
    assert broken(parts(edited(tmp_path, "sdvar", *edits))) == {}


def test_an_f_hat_that_nothing_puts_right_is_named(tmp_path: Path):
    spoilt = ('if "alias" not in ON and not', 'if "alias" in ON and not')
    found = broken(parts(edited(tmp_path, "sdvar", *SCRATCH[:2], spoilt)))
    assert "it holds 1 of 2 drafted scales" in found["draft_generate_batch: draft.state"]


def asking(tmp_path: Path, asked: str) -> Path:
    """Return a checkout that asks for the device by a call."""
    given = ("import torch\n", "import dist\nfrom dist import get_device\nimport torch\n")
    zeros = ("x.new_zeros(B, self.Cvae, P, P)", f"torch.zeros(B, self.Cvae, P, P, device={asked})")
    checkout = edited(tmp_path, "var", given, zeros)
    (checkout / "dist.py").write_text('def get_device():\n    return "meta"\n')
    return checkout


@pytest.mark.parametrize("asked", ["dist.get_device()", "get_device()"])
def test_a_decode_that_asks_for_the_device_gets_that_of_the_weights(tmp_path: Path, asked: str):
    assert run("var", asking(tmp_path, asked)).verdict is Verdict.IDENTICAL


def test_a_decode_that_asks_for_it_wrongly_is_wrong(tmp_path: Path):
    found = run("var", asking(tmp_path, "get_device(0)")).first_divergence
    assert (found.component, "takes 0 positional arguments" in found.detail) == ("crash", True)


def test_what_a_checkout_does_to_its_output_and_its_seed_stays_with_it(tmp_path: Path):
    before = torch.get_rng_state()
    wrapped = "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')"
    told = "            sys.stdout.reconfigure(encoding='utf-8')\n            print('✅', file=OUT, flush=True)\n"
    head = f"import io\nimport sys\nOUT = sys.stdout\n{wrapped}\nimport torch\ntorch.manual_seed(3)\n"
    checkout = edited(tmp_path, "var", ("import torch\n", head), ("            misbehave()\n", told))
    assert run("var", checkout).verdict is Verdict.IDENTICAL
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU gives it one")
def test_code_that_wants_a_gpu_by_itself_is_refused_in_a_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"device=cpu: the code asks for a GPU by itself .*cuda"):
        run("sdvar-test3", make(tmp_path, "sdvar"), sd_mask=1)
    waits = ("        accepted = 0\n", "        accepted = 0\n        torch.cuda.synchronize()\n")
    rows = parts(edited(tmp_path, "sdvar", waits))
    assert rows[f"{BASIC}: accept.share"].verdict == PartVerdict.ABSENT
    assert "pass --device cuda" in rows[f"{BASIC}: accept.share"].found


def test_inference_mode_changes_nothing(tmp_path: Path):
    checkout = edited(tmp_path, "sdvar", ("@torch.no_grad()", "@torch.inference_mode()"))
    assert run("sdvar-parallel", checkout, similarity_thresh=0.9).verdict is Verdict.CONSISTENT
