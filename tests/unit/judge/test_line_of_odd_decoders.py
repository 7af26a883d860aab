"""Decoders that compute in odd ways: the search for the line neither ends early nor names what is not the decoder's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.decoders._in_process import search_line
from harness.judge._line import CodeLine, _callers
from harness.judge._recorder import Frame, Known, OperationRecorder, own_frames, recorded, rows_of
from harness.judge._stream import Stream
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from tests.helpers import Layout, some, tiny
from tests.unit.judge.planted_lines import CACHED, POSITIONS, RACE, TEMPLATE, TEN, module_of

MODELS = tiny(Layout((1, 2, 3)))
D = MODELS.target.config.D
DECODE = "        for image in self.images:\n            image.decode()\n"
INPUTS = "    def inputs(self, network,"
MADE = "            made.append(x_1lD.expand"
GRAD_OFF = "    @torch.inference_mode()\n    def decode(self, request"
POSITION_LINE = f"            x_1lD = network.embed(raw_1lC) + {POSITIONS}\n"


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def before_the_decode(*lines: str) -> tuple[str, str]:
    return DECODE, "".join(f"        {line}\n" for line in lines) + DECODE


def line_of(source: str, path: Path, models: Any = MODELS, labels: tuple[int, ...] = (0,)) -> CodeLine | str:
    return search_line(module_of(source, path).factory(models, Settings(2)), models, Request(labels, 1), False)


# What a decoder may do besides; its mistake is the offset of a position.
BESIDES = {
    "autograd": ((GRAD_OFF, "    def decode(self, request"), before_the_decode(
        "weight = torch.ones(3, requires_grad=True)", "(weight * weight).sum().backward()",
        "assert weight.grad is not None")),
    "default device": (before_the_decode("with torch.device('meta'):", "    torch.ones(2, 8, device='cpu') * 3"),),
    "float8": (before_the_decode("torch.ones(2, 8).to(torch.float8_e4m3fn)"),),
    "nested": (before_the_decode("torch.nested.nested_tensor([torch.ones(2, 8), torch.ones(3, 8)]) * 2"),),
    "quantized": (before_the_decode("torch.quantize_per_tensor(torch.ones(2, 8), 0.1, 0, torch.quint8).dequantize()"),),
    "wrapper": (before_the_decode("from torch.testing._internal.two_tensor import TwoTensor",
                                  "TwoTensor(torch.ones(2, 8), torch.ones(2, 8)) * 2"),),
    "control flow": (before_the_decode(
        "torch.cond(torch.tensor(True), lambda x: x + 1, lambda x: x - 1, (torch.ones(8),))"),),
    "other whole numbers": (before_the_decode("(torch.ones(1, 4) * 10**6).long()"),),
    "attention of vectors": (before_the_decode(
        "torch.library.custom_op('sdvar_test::attention_plan', lambda n, m: n * m, mutates_args=(),",
        "                        schema='(Tensor n, Tensor m) -> Tensor')(torch.ones(8), torch.ones(8))"),),
    "a compiler": ((INPUTS, f"    @torch.compile(backend='eager')\n{INPUTS}"),),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", some(3, list(BESIDES)))
def test_what_else_it_does_changes_nothing(name: str, tmp_path: Path):
    line = line_of(changed(TEN[0].source, *BESIDES[name]), tmp_path / "mine.py")
    assert isinstance(line, CodeLine), line
    assert (line.function, line.text) == ("inputs", changed(POSITION_LINE, (POSITIONS, TEN[0].new)).strip())


# Mistakes that were missed, or named elsewhere: the text of the line.
WRITTEN = {
    "out": "torch.add(network.embed(raw_1lC), network.start_1D, alpha=2, out=x_1lD)",
    "foreach": "torch._foreach_mul_([x_1lD], 1.01)",
    "resized": "out.copy_((1 + 2 * t) * rows_RlV[0] - 2 * t * rows_RlV[1])",
    "drawn into memory": f"idx_l[:] = {RACE.replace('E_lV', 'E_lV.flip(-1)')}",
    "of a weight": "x_1lD = network.pos_LD.softmax(-1)[None, pyramid.span(si)]",
}  # fmt: skip
GUIDED = "        return (1 + t) * rows_RlV[0] - t * rows_RlV[1]\n"
DRAWN = "        idx_l = torch.empty_like(probs_lV[:, 0], dtype=torch.long)\n        {}\n        return idx_l\n"
HOW = {
    "out": ((POSITION_LINE, f"            x_1lD = torch.empty(1, pn * pn, {D})\n            {WRITTEN['out']}\n"),),
    "foreach": ((MADE, f"            {WRITTEN['foreach']}\n{MADE}"),),
    "resized": ((GUIDED, "        out = rows_RlV[0].clone()\n        out.resize_(2 * len(out), out.shape[1]).fill_(0)\n"
                 f"        out = out[: rows_RlV.shape[1]]\n        {WRITTEN['resized']}\n        return out\n"),),
    "drawn into memory": ((f"        return {RACE}\n", DRAWN.format(WRITTEN["drawn into memory"])),),
    "of a weight": ((POSITION_LINE, f"            {WRITTEN['of a weight']}\n"),),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_in_place_is_the_line(name: str, tmp_path: Path):
    line = line_of(changed(TEMPLATE, *HOW[name]), tmp_path / "mine.py")
    assert isinstance(line, CodeLine), line
    assert line.text == WRITTEN[name]
    assert line.tried.endswith(", every value is right")


# Memory of its own, whole in every pass, which is emptied for every image.
RESET = "each.zero_()"
STATIC = changed(
    CACHED,
    (CACHED[CACHED.index("        self.layers = {}\n") : CACHED.index("class MyDecoder")], f"""\
        self.layers, self.used = {{}}, {{}}

    def reset(self) -> None:
        self.used = {{}}
        for each in (each for kv in self.layers.values() for each in kv):
            {RESET}

    def length(self) -> int:
        return self.used.get(0, 0)

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        R, H, n, c = k_RHnc.shape
        kv = self.layers.setdefault(layer, [k_RHnc.new_zeros(R, H, {MODELS.pyramid.L}, c) for _ in range(2)])
        at = self.used.get(layer, 0)
        kv[0][:, :, at : at + n], kv[1][:, :, at : at + n] = k_RHnc, v_RHnc
        self.used[layer] = at + n
        return kv[0], kv[1]

    def cut(self, n: int) -> None:
        self.used = {{layer: min(used, n) for layer, used in self.used.items()}}


CACHES = NoCache(), NoCache()


"""),
    ("        self.caches = NoCache(), NoCache()\n", "        self.caches = CACHES\n"),
    ("            image.decode()\n", "            CACHES[0].reset(), CACHES[1].reset()\n            image.decode()\n"),
    ("mask_nK = torch.zeros(n - begin, K + n - begin,", f"mask_nK = torch.zeros(n - begin, {MODELS.pyramid.L},"),
    ("        mask_nK[:, K:] = mask_nK[:, K:].masked", "        mask_nK[:, K + n - begin :] = float('-inf')\n"
     "        mask_nK[:, K : K + n - begin] = mask_nK[:, K : K + n - begin].masked"),
)  # fmt: skip
FINAL = "cache.cut(pyramid.begin(len(self.tokens))"


@pytest.mark.parametrize("mistake", ["", " - (self.b > 0)"])
def test_who_empties_a_cache_for_another_image_is_not_named(mistake: str, tmp_path: Path):
    line = line_of(changed(STATIC, (FINAL, FINAL + mistake)), tmp_path / "mine.py", labels=(0, 1))
    assert bool(line) is bool(mistake)
    assert isinstance(line, str) or line.text != RESET


def test_numbers_that_are_written_a_thousand_times_are_followed():
    """As where every token of a large scale is written by itself: the draw of the last ones is named."""

    def draw() -> None:
        idx_l = torch.arange(16.0).view(2, 8).argmax(-1)
        for _ in range(1100):
            idx_l[:1] = idx_l[:1].clone()

    recorder = OperationRecorder([])
    recorded(recorder, draw)
    stream = Stream(recorder.steps, [], (), Known((), 0.0))
    (first, *_), *_ = stream.drawn(torch.tensor([7, 7]), torch.tensor([True, True]), {(2, 0)})
    assert recorder.steps[first].name == "argmax"


def test_numbers_from_outside_pytorch_are_told(tmp_path: Path):
    numpy = "torch.from_numpy(network.lvl_SD[si].numpy() + network.pos_LD[: pn * pn].numpy())"
    line = line_of(changed(TEMPLATE, (POSITIONS, numpy)), tmp_path / "mine.py")
    assert isinstance(line, CodeLine), line
    assert "made of what no operation here computed" in line.wrong


GRADS = pytest.mark.parametrize("grad", [torch.inference_mode, torch.no_grad, torch.enable_grad])


@GRADS
def test_operations_are_called_as_they_are_written(grad: Callable[[], Any]):
    recorder = OperationRecorder([])
    with grad():
        recorded(recorder, lambda: torch.tensor([[1, 2]])[:].view(2).to(torch.float64))
    assert list(map(str, recorder.steps)) == [
        "torch.tensor -> (1, 2)",
        "slice (1, 2) -> (1, 2)",
        "view (1, 2) -> (2,)",
        "to (2,) -> (2,)",
    ]


FROM_PYTHON = {
    "an index": ("config.classes], device", "config.classes - 1], device", "self.label_R = torch.tensor([label,"),
    "tokens": (f"return {RACE}", f"return torch.tensor({RACE}.tolist()[::-1])", "return torch.tensor("),
}


@GRADS
@pytest.mark.parametrize("name", FROM_PYTHON)
def test_numbers_of_python_are_followed_to_where_they_became_a_tensor(
    name: str, grad: Callable[[], Any], tmp_path: Path
):
    old, new, text = FROM_PYTHON[name]
    source = changed(TEMPLATE, (old, new), (GRAD_OFF, f"    @torch.{grad.__name__}()\n    def decode(self, request"))
    line = line_of(source, tmp_path / "mine.py")
    assert isinstance(line, CodeLine), line
    assert line.text.startswith(text)
    assert line.operation.startswith("torch.tensor -> (")


# A helper that draft and target call, and the target's call; what is wrong in the one or in the other.
HELPER, HELPS = "def guided(cond, uncond, t):\n    return (1 + t) * cond - t * uncond\n\n\n", "(1 + t) * cond - t"
RAMP = "self.request.cfg * self.models.pyramid.ramp(si)"
ASKED = f"guided_lV = guided(rows_RlV[0], rows_RlV[1], {RAMP})"
OF_DRAFT = f"rows_RlV = self.rows(self.models.draft, x_RnD, si)\n            {ASKED}"
SHARED = changed(
    TEMPLATE,
    ("class NoCache:", f"{HELPER}class NoCache:"),
    ("guided_lV = self.guide(rows_RlV, si)", ASKED),
    ("guided_lV = self.guide(self.rows(self.models.draft, x_RnD, si), si)", OF_DRAFT),
)
SWAPPED = SHARED.replace("(rows_RlV[0], rows_RlV[1]", "(rows_RlV[1], rows_RlV[0]"), "guided(rows_RlV[1], rows_RlV[0]"
IN_HELPER = changed(SHARED, (HELPS, "(1 + t) * cond + t")), ASKED
THROUGH = (
    changed(TEMPLATE, ("return guided_lV.softmax(-1)", "return (guided_lV / 0.9).softmax(-1)")),
    "idx_l = self.draw(",
)


@pytest.mark.parametrize(("source", "text"), [IN_HELPER, THROUGH], ids=["helper", "through"])
def test_who_called_what_others_call_too_is_named(source: str, text: str, tmp_path: Path):
    line = line_of(source, tmp_path / "mine.py")
    assert isinstance(line, CodeLine), line
    place, _, function = line.caller.partition(", in ")
    file, _, number = place.partition(":")
    assert (file, function) == ("mine.py", "verify")
    assert text in source.splitlines()[int(number) - 1]
    assert str(line).startswith(f"mine.py:{line.line}, in {line.function} (reached from {line.caller}): {line.text} (")


def test_who_hands_the_halves_on_the_wrong_way_round_is_named(tmp_path: Path):
    line = line_of(SWAPPED[0], tmp_path / "mine.py")
    assert isinstance(line, CodeLine), line
    assert (line.function, SWAPPED[1] in line.text) == ("verify", True)


def test_the_innermost_of_several_callers_is_named_and_every_one_that_made_the_same():
    def stack(function: str, *above: tuple[int, str]) -> tuple[Frame, ...]:
        return (Frame("a.py", 1, function), *(Frame("a.py", *each) for each in above))

    stacks = [stack("helper", (line, "law"), (30 + line, "verify"), (50, "decode")) for line in (10, 11)]
    stacks += [stack("<lambda>", (line, "one"), (60, "other")) for line in (5, 6)]
    steps = [SimpleNamespace(stack=stack) for stack in stacks]
    assert _callers(stacks[:1], steps) == ["a.py:10, in law"]
    assert _callers(stacks[:2], steps) == ["a.py:10, in law", "a.py:11, in law"]
    assert _callers(stacks[2:], steps) == []  # a function without a name lies where it is called, most often


def test_who_called_what_nobody_else_calls_is_not_named(tmp_path: Path):
    line = line_of(TEN[9].source, tmp_path / "mine.py")
    assert isinstance(line, CodeLine), line
    assert (line.function, line.caller) == ("verify", "")
    assert str(line).startswith(f"mine.py:{line.line}, in verify: {line.text} (")


def test_a_decode_in_a_thread_is_told(tmp_path: Path):
    thread = "run = threading.Thread(target=torch.inference_mode()(image.decode)); run.start(); run.join()"
    threaded = ("image.decode()\n", f"{thread}\n"), ("import torch\n", "import threading\n\nimport torch\n")
    source = changed(TEN[0].source, *threaded)
    said = str(line_of(source, tmp_path / "mine.py"))
    assert said.startswith("no operation of the decoder was seen to make the input of scale 1 by ")
    assert said.endswith("; those of other threads are not")


def test_values_of_another_structure_are_no_mistake(tmp_path: Path):
    """Sums in another order, which the reference has not: they lead to what is right, and the mistake comes after."""
    others = """\
        t = self.request.cfg * self.models.pyramid.ramp(si)
        gap = rows_RlV[0] - rows_RlV[1]



        gap = gap.roll(1, -1) if si == 1 else gap
        return rows_RlV[0] + t * gap
"""
    at = TEMPLATE.index("        t = self.request.cfg")
    end = TEMPLATE.index("    def law(")
    line = line_of(f"{TEMPLATE[:at]}{others}\n{TEMPLATE[end:]}", tmp_path / "mine.py")
    assert isinstance(line, CodeLine), line
    assert line.text == "gap = gap.roll(1, -1) if si == 1 else gap"


def test_rounding_under_autocast_is_no_wrong_value(tmp_path: Path):
    models = MODELS.in_mode("cpu", "autocast-bfloat16")
    assert line_of(TEMPLATE, tmp_path / "mine.py", models) == ""


def test_frames_of_callers_and_of_libraries_are_not_the_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = tmp_path / "site-packages" / "library"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("def twice(x):\n    return x * 2\n")
    (tmp_path / "harness_mine.py").write_text("import library\n\n\ndef go(x):\n    return library.twice(x)\n")
    monkeypatch.syspath_prepend(str(library.parent))
    monkeypatch.syspath_prepend(str(tmp_path))
    import harness_mine

    recorder = OperationRecorder([])
    recorded(recorder, lambda: harness_mine.go(torch.ones(2, 8)))
    (stack,) = {step.stack for step in recorder.steps if step.name == "mul"}
    assert [Path(frame.file).name for frame in stack] == ["harness_mine.py", Path(__file__).name]
    assert own_frames.__module__ in sys.modules


def test_zeros_are_at_no_place_what_is_due():
    due = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    rows, all_rows = rows_of(due), rows_of(torch.cat((torch.zeros(1, 16), due * (1 + 1e-6))))
    assert rows is not None and all_rows is not None
    known = Known([rows], 1e-4)
    assert known.has(all_rows).tolist() == [True, True, True]
    assert known.nonzero(all_rows) == [1, 2]


def test_what_was_left_in_memory_is_nobodys_value():
    """A buffer takes the memory of what was freed before: of right values, say, of the decode that was judged."""
    left = torch.full((5, 31), 7.0)
    del left
    recorder = OperationRecorder([])
    buffers = recorded(recorder, lambda: [torch.empty(5, 31), torch.empty_like(torch.ones(2, 8)), torch.empty(0)])
    assert not any(bool(each.any()) for each in buffers)
    assert [step.outputs for step in recorder.steps if "empty" in step.name] == [[], [], []]
