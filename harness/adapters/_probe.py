"""What the parts of a checkout are asked, and what is right: plain runs of the reference along random tokens.

Promise: every part is asked in a state that is right, whatever the other parts do, and compared with `reference/`
alone; the first wrong number of a law is reported with its rows, positions and size, and the first of every other kind.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from harness.adapters._checkout import crash_of, on_device
from harness.adapters._published import Published, Sampler
from harness.adapters._recorder import Recorder, SharedNumbers
from harness.errors import InputError
from harness.judge import INPUT_ULPS, Broken, PartLaw, PartVerdict, require
from harness.models.network import Network
from harness.protocol import Intermediates, Request, ScalePyramid
from harness.reference import accumulate, guidance_labels, sample_sequential, scale_input
from harness.rounding import Budget
from harness.wording import count_of

MOST_FIRSTS = 6  # first scales of windows; more tell nothing new
HIDDEN = -1e4  # an additive mask may hold any large negative number for -inf
MOST_FOUND = 3  # findings of a law that are told, each of another kind
OPTIONAL = ("verbose", "similarity_threshold")  # parameters that only some checkouts have


class PartNoted(Exception):  # noqa: N818
    """Raised inside a question about a part: what it is, where that is no mistake."""


@dataclass(frozen=True)
class PartQuestion:
    """A law of a part; `test` raises `Broken` where it is broken."""

    part: str
    law: str
    statement: str
    test: Callable[..., None]  # it gets the probe, and one of the cases
    cases: Callable[[Probe], Iterable[object]] | None = None  # each is looked at aside; None = `test` finds its own


@dataclass(frozen=True)
class ProbeWindow:
    """Scales first..first+count-1, which a part is asked about; its text is how messages call them."""

    first: int
    count: int

    @property
    def scales(self) -> range:
        return range(self.first, self.first + self.count)

    def __str__(self) -> str:
        return f"scales {self.first}..{self.first + self.count - 1}"


@dataclass(frozen=True)
class ProbeSide:
    """One network as the harness knows it, as the checkout built it, and the reference's run along the tokens."""

    network: Network
    module: Any
    run: Intermediates
    labels_R: Tensor
    kv: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # of every block, all positions, once they are known

    @property
    def cond_RD(self) -> Tensor:
        return self.network.weights["class_emb.weight"][self.labels_R]

    def input(self, raw_BlC: Tensor | None, si: int) -> Tensor:
        return scale_input(self.network, self.network.condition(self.labels_R), raw_BlC, si)

    def caching(self, enable: bool) -> None:
        """Switch the cache of every block on or off, which empties it."""
        for block in self.module.blocks:
            block.attn.kv_caching(enable)

    def forward(self, x_RnD: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the module's own blocks and head over n positions; return logits_RnV."""
        x_RnD, cond_RD = x_RnD.clone(), self.cond_RD  # code may write into what it is given
        shared = self.module.shared_ada_lin(cond_RD)
        for block in self.module.blocks:
            x_RnD = block(x=x_RnD, cond_BD=shared, attn_bias=mask)
        logits: Tensor = self.module.get_logits(x_RnD, cond_RD)
        return logits

    def fill_cache(self, done: int) -> None:
        """Switch the module's cache on and let it hold `done` scales. Effects: the first time, one pass a scale."""
        blocks, pyramid = self.module.blocks, self.network.pyramid
        if not self.kv:
            self.caching(True)
            for si in pyramid:
                self.forward(self.run.x_RLD[:, pyramid.span(si)])
            self.kv.extend((block.attn.cached_k.clone(), block.attn.cached_v.clone()) for block in blocks)
        self.caching(True)
        if length := pyramid.begin(done):
            for block, (k_RHLc, v_RHLc) in zip(blocks, self.kv, strict=True):
                block.attn.cached_k, block.attn.cached_v = k_RHLc[:, :, :length].clone(), v_RHLc[:, :, :length].clone()


@dataclass
class Probe:
    decoder: Sampler
    request: Request  # labels and guidance
    budget: Budget
    tokens_BL: Tensor  # that were made final, or are drafted: uniform over the codebook
    draft: ProbeSide
    target: ProbeSide
    rows: list[PartLaw] = field(default_factory=list)  # what was found so far
    _found: dict[str, tuple[PartVerdict, str]] = field(default_factory=dict)  # by the law that is asked, by kind

    @classmethod
    def of(cls, decoder: Sampler, request: Request, budget: Budget) -> Probe:
        """Draw tokens and run the reference along them."""
        models, generator = decoder.code.models, torch.Generator().manual_seed(request.seed)
        tokens_BL = torch.randint(models.target.config.V, (request.B, models.pyramid.L), generator=generator)
        return cls.along(decoder, request, budget, tokens_BL.to(models.device))

    @classmethod
    def along(cls, decoder: Sampler, request: Request, budget: Budget, tokens_BL: Tensor) -> Probe:
        code, models, sides = decoder.code, decoder.code.models, list[ProbeSide]()
        for network, module in ((models.draft, code.draft), (models.target, code.target)):
            run = sample_sequential(network, models.vae, request, models.noise(request), tokens_BL)
            classes = network.config.classes
            labels_R = guidance_labels(models.noise(request).labels(classes), classes)
            sides.append(ProbeSide(network, module, run.shown, labels_R))
        return cls(decoder, request, budget, tokens_BL, draft=sides[0], target=sides[1])

    @property
    def code(self) -> Published:
        return self.decoder.code

    @property
    def sdvar(self) -> Any:
        """The checkout's SDVAR object; None where it has none."""
        return self.decoder.sdvar

    @property
    def pyramid(self) -> ScalePyramid:
        return self.code.models.pyramid

    def windows(self) -> list[ProbeWindow]:
        """Return windows of one to three scales, on large pyramids from some scales only."""
        S = self.pyramid.S
        firsts = range(S) if S <= MOST_FIRSTS else sorted({0, 1, 2, S // 2, S - 2, S - 1})
        return [ProbeWindow(first, count) for first in firsts for count in (1, 2, 3) if first + count <= S]

    def drafted(self, window: ProbeWindow) -> list[Tensor]:
        return [self.tokens_BL[:, self.pyramid.span(si)].clone() for si in window.scales]

    def f_hat(self, done: int) -> Tensor:
        f_hat_SBCPP = self.target.run.f_hat_SBCPP
        return f_hat_SBCPP[done - 1].clone() if done else torch.zeros_like(f_hat_SBCPP[0])

    def f_hats_along(self, first: int, tokens: Iterable[Tensor]) -> list[Tensor]:
        """Return f_hat before and after every scale from `first` on with these tokens."""
        quantizer, f_hats = self.code.models.vqvae.quantizer, [self.f_hat(first)]
        for si, idx in enumerate(tokens, first):
            codes = quantizer.codes(idx, self.pyramid.patch_nums[si])
            f_hats.append(accumulate(f_hats[-1], codes, si, quantizer, self.pyramid))
        return f_hats

    def input_error(self, x: Tensor) -> float:
        relative = max(2 * self.budget.f_hat, INPUT_ULPS[torch.float32] * torch.finfo(torch.float32).eps)
        return relative * max(1.0, float(x.abs().max()))

    def begin_state(self, count: int) -> Any:
        """Return the object's own state before the first scale, for windows of `count`."""
        request = self.request
        label_B = torch.tensor(request.labels, device=self.code.models.device)
        return self.sdvar._initialize_inference_state(request.B, label_B, request.seed, request.cfg, count)

    def state_at(self, window: ProbeWindow) -> Any:
        """Return the object's own state, made right at the window's first scale; a plain one where it builds none."""
        request, pyramid, first, device = self.request, self.pyramid, window.first, self.code.models.device
        try:
            state = self.begin_state(window.count)
        except Exception:  # that method has laws of its own
            state = SimpleNamespace()
        state.current_stage, state.gamma, state.total_stages = first, window.count, pyramid.S
        state.patch_nums, state.cfg = pyramid.patch_nums, request.cfg
        state.accept_count = state.reject_count = state.target_calls = state.top_k = 0
        state.top_p, state.more_smooth = 0.0, False
        state.accepted_tokens, state.current_tokens_length = self.drafted(ProbeWindow(0, first)), pyramid.begin(first)
        state.rng = getattr(state, "rng", None) or torch.Generator(device=device).manual_seed(request.seed)
        lvl = torch.tensor(pyramid.levels(), device=device)
        for name, side in (("draft", self.draft), ("target", self.target)):
            setattr(state, f"{name}_f_hat", self.f_hat(first))
            setattr(state, f"{name}_next_token_map", side.run.x_RLD[:, pyramid.span(first)].clone())
            setattr(state, f"{name}_cond_BD", side.cond_RD)
            setattr(state, f"{name}_lvl_pos", (side.network.lvl_SD[lvl] + side.network.pos_LD)[None].clone())
            side.fill_cache(first)
        return state

    def running(self, recorder: Recorder) -> AbstractContextManager[SharedNumbers | None]:
        return self.code.running(recorder, self.request, self.code.models.noise(self.request))

    def draft_from(self, state: Any) -> tuple[list[Tensor], Recorder]:
        recorder = Recorder(self.pyramid)
        with self.running(recorder):
            tokens = call_by_known_names(self.sdvar.draft_generate_batch, state=state, B=self.request.B, verbose=False)
        return list(tokens), recorder

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Look at one of many cases of a law: what is wrong with it is kept, and hides nothing of the others."""
        try:
            yield
        except (PartNoted, InputError):
            raise
        except Broken as wrong:
            self._keep(PartVerdict.BROKEN, str(wrong))
        except Exception as error:
            if self.code.card_asked(error) is not None:
                raise
            self._keep(PartVerdict.CRASHED, crash_of(error, self.code.checkout.folder))

    def finds(self, law: Callable[[Probe], None]) -> bool:
        """Tell whether a law finds anything, without keeping it."""
        kept, self._found = self._found, {}
        try:
            with self.aside():
                law(self)
            return bool(self._found)
        finally:
            self._found = kept

    def _keep(self, verdict: PartVerdict, said: str) -> None:
        """Keep the first finding of a kind: those that differ in numbers alone are one."""
        self._found.setdefault(re.sub(r"\d[\d.e+-]*|inf|nan", "#", said), (verdict, said))

    def ask(self, questions: Iterable[PartQuestion], found: Callable[[str], object]) -> None:
        """Ask laws, part by part; of a part that is not found (None) there is one row. Effects: on `rows`."""
        for part, laws in groupby(questions, lambda question: question.part):
            if (code := found(part)) is not None:
                place = _place_of(code)
                self.rows += [replace(self._answer(each), place=place) for each in laws]
                continue
            missing = f"models/var.py has no {part}"
            self.rows.append(PartLaw(part, "parts.there", "The part is there.", PartVerdict.ABSENT, missing))

    def _answer(self, question: PartQuestion) -> PartLaw:
        """Ask one law; whatever the code does, there is a row."""
        self._found = {}
        try:
            with self.code.checkout.active(), on_device(self.code.models.device), torch.no_grad(), self.aside():
                if question.cases is None:
                    question.test(self)
                else:
                    for case in question.cases(self):
                        with self.aside():
                            question.test(self, case)
            found, self._found = list(self._found.values()), {}
            clauses = [clause for _, clause in found]
            if len(clauses) > MOST_FOUND:
                clauses[MOST_FOUND:] = [count_of(len(clauses) - MOST_FOUND, "other finding")]
            # one that is broken says more than one that crashes
            kinds = (PartVerdict.BROKEN, PartVerdict.CRASHED)
            verdict = next((kind for kind in kinds if kind in dict(found)), PartVerdict.HELD)
            said = "; ".join(clauses)
        except PartNoted as noted:
            verdict, said = PartVerdict.TOLD, str(noted)
        except InputError as refused:  # what cannot be asked is no mistake of the part
            verdict, said = PartVerdict.ABSENT, f"not asked: {refused}"
        except Exception as error:  # the one that `aside` lets through
            where = self.code.card_asked(error)
            said = f"not asked: it wants a GPU by itself ({where}); pass --device cuda, on a machine that has one"
            verdict = PartVerdict.ABSENT
        return PartLaw(question.part, question.law, question.statement, verdict, said)


def _place_of(code: object) -> str:
    """Return file and line where a function begins; nothing of what is none."""
    code = getattr(inspect.unwrap(code) if callable(code) else code, "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if isinstance(code, CodeType) else ""


def call_by_known_names(method: Any, **arguments: Any) -> Any:
    """Call a method by the names that it knows; one that takes any, by those of every checkout."""
    parameters = inspect.signature(method).parameters
    known = set(parameters)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):  # a wrapper, say
        known |= {name for name in arguments if name not in OPTIONAL}
    return method(**{name: value for name, value in arguments.items() if name in known})


def require_tensor(value: object, shape: Sequence[int], what: str) -> Tensor:
    """Return a tensor of a shape, or raise `Broken` with what stands there."""
    if not isinstance(value, Tensor):
        raise Broken(f"{what} is a {type(value).__name__}, not a tensor")
    require(tuple(value.shape) == tuple(shape), f"{what} is {tuple(value.shape)}, not {tuple(shape)}")
    return value


def require_close(
    actual: Tensor, expected: Tensor, error: float, what: str, why: Mapping[str, Tensor] | None = None
) -> None:
    """Raise `Broken` where tensors differ by more than `error`; `why`: clauses of what else the code's may equal."""
    far = (actual.double() - expected.double()).abs()
    if bool((far <= error).all()):  # NaN compares False
        return
    largest, count = float(far.nan_to_num(torch.inf).max()), int((~(far <= error)).sum())
    said = f"{what}: {count} of {far.numel()} numbers differ, by up to {largest:.3g} (rounding explains {error:.2g})"
    for clause, other in (why or {}).items():
        if other.shape == actual.shape and bool(((actual - other).abs() <= 2 * error).all()):
            raise Broken(f"{said}: {clause}")
    raise Broken(said)


def require_sight(mask_nm: Tensor, what: str) -> Tensor:
    """Return who sees whom by a mask (n, m), boolean or additive; raise `Broken` at an entry that says neither."""
    mask_nm = mask_nm.cpu()
    if mask_nm.dtype is torch.bool:
        return mask_nm
    neither = torch.nonzero(~((mask_nm == 0) | (mask_nm <= HIDDEN))).tolist()  # NaN compares False
    if neither:
        row, column = neither[0]
        said = f"{len(neither)} entries neither show nor hide, first (row, column) {(row, column)}"
        raise Broken(f"{what}: {said} is {float(mask_nm[row, column]):g}, not 0 or {HIDDEN:g} and less")
    return mask_nm == 0
