"""Mistakes planted in copies of the decoder that `init` writes, plain or with a cache, and the changed lines."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import harness.commands

TEMPLATE = (Path(harness.commands.__file__).parent / "mydecoder.txt").read_text()
# The template with a cache of an image's own, as its docstring says.
CACHED = TEMPLATE
for old, new in (
    (
        "    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:\n"
        "        return k_RHnc, v_RHnc\n",
        """\
    def __init__(self) -> None:
        self.layers = {}

    def length(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, k_RHnc: Tensor, v_RHnc: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            k_old, v_old = self.layers[layer]
            k_RHnc, v_RHnc = torch.cat((k_old, k_RHnc), 2), torch.cat((v_old, v_RHnc), 2)
        self.layers[layer] = k_RHnc, v_RHnc
        return k_RHnc, v_RHnc

    def cut(self, n: int) -> None:
        self.layers = {layer: (k[:, :, :n], v[:, :, :n]) for layer, (k, v) in self.layers.items()}
""",
    ),
    ("self.rounds: list[Round] = []\n", "self.rounds: list[Round] = []\n        self.caches = NoCache(), NoCache()\n"),
    (
        "            accepted += 1\n",
        "            accepted += 1\n"
        "        for cache in self.caches:\n"
        "            cache.cut(pyramid.begin(len(self.tokens)))\n",
    ),
    (
        TEMPLATE[TEMPLATE.index("        level_n = ") : TEMPLATE.index("    def guide")],
        """\
        cache, begin = self.caches[network is self.models.target], pyramid.begin(first)
        new_RnD, K = x_RnD[:, begin:], cache.length()
        level_n = torch.tensor(pyramid.levels()[begin:n], device=x_RnD.device)
        hidden_from = level_n[:, None] < level_n[None, :]  # a scale sees itself and earlier ones
        mask_nK = torch.zeros(n - begin, K + n - begin, device=x_RnD.device, dtype=x_RnD.dtype)
        mask_nK[:, K:] = mask_nK[:, K:].masked_fill(hidden_from, float("-inf"))
        return network.logits(network.hidden(new_RnD, condition, cache, mask_nK[None, None]), condition)

""",
    ),
    ("target_rows=pyramid.end(last)", "target_rows=pyramid.end(last) - pyramid.begin(first)"),
):
    assert old in CACHED, old
    CACHED = CACHED.replace(old, new)
# The same, whose mask knows the scale of every cached row.
BY_LEVEL = CACHED
for old, new in (
    (
        "        self.layers = {}\n\n",
        "        self.layers = {}\n        self.level_K = torch.zeros(0, dtype=torch.int64)\n\n",
    ),
    (
        "        self.layers = {layer: (k[:, :, :n]",
        "        self.level_K = self.level_K[:n]\n        self.layers = {layer: (k[:, :, :n]",
    ),
    (
        CACHED[CACHED.index("        hidden_from") : CACHED.index("        return network.logits(network.hidden")],
        """\
        cache.level_K = torch.cat((cache.level_K, level_n))
        hidden_nK = level_n[:, None] < cache.level_K
        mask_nK = torch.zeros(hidden_nK.shape, dtype=x_RnD.dtype).masked_fill(hidden_nK, float("-inf"))
""",
    ),
):
    assert old in BY_LEVEL, old
    BY_LEVEL = BY_LEVEL.replace(old, new)
FILTERS = TEMPLATE[TEMPLATE.index("        if top_k:\n") : TEMPLATE.index("        return guided_lV.softmax(-1)")]
TOP_P = FILTERS.index("        if top_p:\n")


@dataclass(frozen=True)
class Planted:
    """A mistake: one piece of the text replaced by another."""

    name: str
    old: str
    new: str
    seen: str = "line"  # what is named right: the line (within 3), its function or its caller alone, or neither
    text: str = TEMPLATE

    @property
    def source(self) -> str:
        """The module with the mistake."""
        assert self.old in self.text, self.name
        return self.text.replace(self.old, self.new, 1)

    @property
    def lines(self) -> list[int]:
        """The changed lines."""
        pairs = zip(self.text.splitlines(), self.source.splitlines(), strict=False)
        return [number for number, (before, after) in enumerate(pairs, 1) if before != after]

    def function(self, line: int) -> str:
        """The function that a line lies in."""
        every = (each for each in ast.walk(ast.parse(self.source)) if isinstance(each, ast.FunctionDef))
        around = (each for each in every if each.lineno <= line <= (each.end_lineno or line))
        return max(around, key=lambda each: each.lineno).name


def module_of(source: str, path: Path) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


POSITIONS = "network.lvl_SD[si] + network.pos_LD[pyramid.span(si)]"
RACE = "torch.where(probs_lV > 0, probs_lV / E_lV, -1.0).argmax(-1)"
RANKS = (
    "probs_lV.argsort(-1, descending=True).gather(-1, "
    "(probs_lV.sort(-1, descending=True).values / E_lV).argmax(-1)[:, None])[:, 0]"
)
NUMBERS = "reader)[self.b]"
CONDITION = "network.condition(self.label_R), x_RnD.shape[1]"
CUT = "            cache.cut(pyramid.begin(len(self.tokens)))\n"
LAST_OWN = f"idx_l = {RACE}; idx_l[-1:] = (probs_lV[-1:] / probs_lV[:1].roll(7, -1)).argmax(-1); return idx_l"
EMPTIED = f"{CUT.strip()}; cache.layers[0][0][:, :, -1:] = 0"
TEN = (
    Planted("position offset", POSITIONS, "network.lvl_SD[si] + network.pos_LD[: pn * pn]"),
    Planted("cache not rolled back", CUT, "            pass\n", "function", CACHED),
    Planted("halves swapped", "rows_RlV[0] - t * rows_RlV[1]", "rows_RlV[1] - t * rows_RlV[0]"),
    Planted("wrong residual", "f_hat = f_hat + quantizer", "f_hat = quantizer"),
    Planted("phi forgotten", "quantizer.phi(h, si, pyramid.S)", "h"),
    Planted("top-p before top-k", FILTERS, FILTERS[TOP_P:] + FILTERS[:TOP_P]),
    Planted("wrong noise", '(si, "token", reader)', '(si, "correct", reader)'),
    Planted("scale embedding", POSITIONS, "network.lvl_SD[si - 1] + network.pos_LD[pyramid.span(si)]"),
    Planted("wrong level", "level_n[:, None] < level_n[None, :]", "level_n[:, None] <= level_n[None, :]"),
    Planted("draft accepted", "self.tokens.append(idx_l)", "self.tokens.append(proposal)"),
)
OTHERS = (
    Planted("no break", "            if wrong:\n", "            if wrong > 3:\n"),
    Planted("ramp forgotten", "self.request.cfg * self.models.pyramid.ramp(si)", "self.request.cfg"),
    Planted("bilinear", "bicubic", "bilinear"),
    Planted("nearest", 'mode="area"', 'mode="nearest"'),
    Planted("greedy", RACE, "probs_lV.argmax(-1)"),
    Planted("noise of image 0", "reader)[self.b]", "reader)[0]"),
    Planted("factor of 1.001", "x_1lD = network", "x_1lD = 1.001 * network"),
    Planted("rows from the beginning", "h_RnD[:, pyramid.begin(first) :]", "h_RnD[:, : n - pyramid.begin(first)]"),
    Planted("same label twice", "classes], device", "classes - 1], device"),
    Planted("mask transposed", "masked_fill(hidden_from", "masked_fill(hidden_from.T", text=CACHED),
    Planted("values not cut", "v[:, :, :n]", "v[:, :, -n:]", "neither", CACHED),
    Planted("cut one later", "begin(len(self.tokens)))", "begin(len(self.tokens)) + 1)", "function", CACHED),
    Planted("offset, cached", POSITIONS, "network.lvl_SD[si] + network.pos_LD[: pn * pn]", text=CACHED),
    Planted("guidance value", "t = self.request.cfg", "t = (self.request.cfg + 0.1)"),
    Planted("no level", "network.lvl_SD[si] + ", ""),
    Planted("no start", "network.start_1D + ", ""),
    Planted("input transposed", ".flatten(2).mT", ".mT.flatten(2).mT"),
    Planted("corners aligned", 'mode="bicubic"', 'mode="bicubic", align_corners=True'),
    Planted("phi of another scale", "phi(h, si,", "phi(h, max(si - 1, 0),"),
    Planted("codes flipped", "codes(idx_l[None],", "codes(idx_l[None].flip(1),"),
    Planted("temperature", "return guided_lV.softmax(-1)", "return (guided_lV / 0.9).softmax(-1)"),
    Planted("race by difference", "probs_lV / E_lV", "probs_lV - E_lV"),
    Planted("mask too weak", 'masked_fill(hidden_from, float("-inf"))', "masked_fill(hidden_from, -1.0)"),
    Planted("mask of positions", "torch.tensor(pyramid.levels()[:n],", "torch.arange(n,"),
    Planted("f_hat of the draft", "self.f_hat(self.tokens))", "self.f_hat([*self.tokens[:-1], proposal]))"),
    Planted("half a position", "x_1lD.expand(2, -1, -1)", "torch.cat((x_1lD, x_1lD - network.pos_LD[:1]))"),
    Planted("top-p of the rest", "<= 1 - top_p", "<= top_p"),
    Planted("f_hat of ones", "f_hat = torch.zeros(", "f_hat = torch.ones("),
    Planted("noise flipped", "reader)[self.b]", "reader)[self.b].flip(0)"),
    Planted("halves rolled", "self.tokens + drafted[:-1])", "self.tokens + drafted[:-1]).roll(1, 0)"),
    Planted("numbers of ranks", f"return {RACE}", f"return {RANKS}"),
    Planted("no numbers at the last scale", NUMBERS, f"{NUMBERS} if si < 3 else torch.ones_like(guided_lV)"),
    Planted("race by product", "probs_lV / E_lV", "probs_lV * E_lV"),
    Planted("condition of the draft", CONDITION, CONDITION.replace("network.", "self.models.draft.", 1)),
    Planted("keys for values", "(v_old, v_RHnc)", "(k_old, v_RHnc)", "neither", CACHED),
)
SOFTMAX, CUT_UP = "return guided_lV.softmax(-1)", "torch.cat((guided_lV[1:], guided_lV[:1]))"
KINDS = (
    Planted("last token of other numbers", f"return {RACE}", LAST_OWN),
    Planted("large top-p off", "        if top_p:", "        if 0 < top_p < 0.5:"),
    Planted("nucleus in few bits", "softmax(-1).cumsum(-1)", "softmax(-1).bfloat16().cumsum(-1)"),
    Planted("keys in few bits", "= k_RHnc, v_RHnc\n", "= k_RHnc.bfloat16().to(k_RHnc), v_RHnc\n", text=CACHED),
    Planted("keys emptied", CUT.strip(), EMPTIED, text=CACHED),
    Planted("top-k of one more", "topk(top_k)", "topk(top_k + 1)"),
    Planted("top-k of one less", "topk(top_k)", "topk(top_k - 1)"),
    Planted("top-k of three at most", "        if top_k:", "        if top_k := min(top_k, 3):"),
    Planted("larger top-p", "<= 1 - top_p", "<= 1 - (top_p + 0.02)"),
    Planted(
        "positions rolled before filters",
        "top_k, top_p = self.request.filter(si)",
        "guided_lV, (top_k, top_p) = guided_lV.roll(1, 0), self.request.filter(si)",
        "function",
    ),
    Planted("positions rolled after filters", SOFTMAX, f"{SOFTMAX}.roll(1, 0)"),
    Planted("positions flipped before softmax", SOFTMAX, SOFTMAX.replace("_lV", "_lV.flip(0)")),
    Planted("positions taken in another order", SOFTMAX, SOFTMAX.replace("_lV", "_lV[[*range(1, len(guided_lV)), 0]]")),
    Planted("positions put together in another order", SOFTMAX, SOFTMAX.replace("guided_lV", CUT_UP)),
    Planted("top-k of one", "topk(top_k)", "topk(1)"),
)
LANES = (Path(__file__).parent / "lanes_decoder.py").read_text()
LOCKSTEP = (Path(__file__).parent / "lockstep_decoder.py").read_text()
BUFFERS, LABELS, COLUMNS = "zeros(shape, dtype=net.dtype)", "torch.cat([labels_B, null_B])", "self.levels[None, :end]"
BREAK = "                    break\n"
LOCKSTEPS = (
    Planted(
        "keys and values put in as bfloat16",
        ": stop] = k\n        self.v[layer, :, :, self.fill : stop] = v\n",
        ": stop] = k.bfloat16()\n        self.v[layer, :, :, self.fill : stop] = v.bfloat16()\n",
        text=LOCKSTEP,
    ),
    Planted("buffers of bfloat16", BUFFERS, "zeros(shape, dtype=torch.bfloat16)", "neither", LOCKSTEP),
    Planted(
        "rejected scale added, too", BREAK, f"{BREAK[:-6]}f_hat = add(f_hat, guess, si); break\n", "caller", LOCKSTEP
    ),
    Planted("labels of halves exchanged", LABELS, "torch.cat([null_B, labels_B])", text=LOCKSTEP),
    Planted("level of columns one too high", COLUMNS, f"{COLUMNS} + (begin > 0)", text=LOCKSTEP),
    Planted("levels from 1", "pyramid.levels())", "[max(si, 1) for si in pyramid.levels()])", text=LOCKSTEP),
    Planted(
        "position by the cache",
        "net.pos_LD[self.pyramid.span(si)]",
        "net.pos_LD[self.kv.fill :][: pn * pn]",
        text=LOCKSTEP,
    ),
    Planted("level of the scale before", "net.lvl_SD[si] +", "net.lvl_SD[si - 1] +", text=LOCKSTEP),
    Planted("phi of five scales", "phi(h, si, pyramid.S)", "phi(h, si, pyramid.S + 1)", text=LOCKSTEP),
    Planted(
        "guidance of the first scale",
        "guided(logits[:, part], si)",
        "guided(logits[:, part], first)",
        "caller",
        LOCKSTEP,
    ),
    Planted("map of the draft", "f_hat = add(f_hat, idx, si)", "f_hat = add(f_hat, guess, si)", text=LOCKSTEP),
    Planted("tokens of the draft", "kept.append((idx,", "kept.append((guess,", text=LOCKSTEP),
)
