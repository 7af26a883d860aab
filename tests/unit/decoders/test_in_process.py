"""A decoder in this process: whatever it raises is its own defect, and whoever stops the harness is obeyed."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import ModuleType

import pytest

from harness.decoders._factory import Limits, OutOfTimeError, build_by_factory, load_factory
from harness.decoders._in_process import run_in_process
from harness.decoders._runner import OwnProcess
from harness.errors import InputError, StopSignal
from harness.judge._verdict import Judgement
from harness.models._pair import ModelPair
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.protocol._trace import Trace
from harness.protocol.noise import SeededNoise
from harness.signals import interruptible
from tests.helpers import Layout, hearing, tiny

MODELS, REQUEST = tiny(Layout((1, 2))), Request((0,), 3)


class Leave(BaseException):
    """What somebody ends his own program by."""


class Raises:
    """A decoder that ends by an exception, and whose trace so far does, too."""

    contract = "token-identical"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        raise self.error.with_traceback(None)

    def so_far(self) -> Trace:
        raise self.error.with_traceback(None)


class Interrupted(Raises):
    """A decoder that somebody presses Ctrl-C in."""

    def __init__(self) -> None:
        super().__init__(AssertionError("nobody heard the signal"))

    def decode(self, request: Request, noise: SeededNoise) -> Trace:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        raise self.error


def leaves(models: ModelPair, settings: Settings) -> Raises:
    return Raises(Leave("for today"))


OWN = [Leave("for today"), GeneratorExit(), KeyboardInterrupt(), SystemExit(3), ValueError("no")]


def component(decoder: Raises) -> str:
    judgement = run_in_process(decoder, MODELS, REQUEST)
    assert isinstance(judgement, Judgement)
    return judgement.defects[0].component


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
def test_whatever_a_decoder_raises_is_its_crash(error: BaseException):
    judgement = run_in_process(Raises(error), MODELS, REQUEST)
    assert isinstance(judgement, Judgement)
    (defect,) = judgement.defects
    assert defect.component == "crash"
    assert defect.detail.startswith(f"{type(error).__name__}: ")
    assert "in decode, test_in_process.py" in defect.detail


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
def test_whatever_a_factory_raises_is_bad_input(error: BaseException):
    def factory(models: ModelPair, settings: Settings) -> Raises:
        raise error.with_traceback(None)

    said = rf"failed to build a decoder \({type(error).__name__}: .* in factory, test_in_process\.py:\d+\)"
    with pytest.raises(InputError, match=said):
        build_by_factory(factory, MODELS, Settings(1))


def takes_one(models: ModelPair) -> None: ...


def takes_three(models: ModelPair, settings: Settings, *, gamma: int) -> None: ...


def takes_what_it_says(models: ModelPair, settings: Settings) -> None:
    takes_one(models, settings)  # type: ignore[call-arg]


def test_a_factory_of_other_arguments_is_named_as_it_is_typed():
    for factory, why in ((takes_one, "2 were given"), (takes_three, "argument: 'gamma'")):
        said = rf"cannot be called with two arguments \(.*{why}\); write factory\(models, settings\)"
        with pytest.raises(InputError, match=rf"implementation={__name__}:{factory.__name__}: {said}$"):
            build_by_factory(factory, MODELS, Settings(1))

    def narrow(*given: object) -> None:
        takes_one(*given)  # type: ignore[arg-type]

    narrow.__signature__ = signature(takes_one)  # type: ignore[attr-defined]  # says that it takes one, and takes two
    with pytest.raises(InputError, match=r"failed to build a decoder \(TypeError: .* in narrow"):
        build_by_factory(narrow, MODELS, Settings(1))
    with pytest.raises(InputError, match=r"failed to build a decoder \(TypeError: .* in takes_what_it_says"):
        build_by_factory(takes_what_it_says, MODELS, Settings(1))


def test_a_module_without_a_name_is_told_what_it_defines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = (
        "from math import sqrt\nclass Cache: ...\ndef guide(rows): ...\nclass Spec:\n"
        "    def __init__(self, models, settings, size=1): ...\ndef build(models, settings): ...\n_x = 1\n"
        "class Table(dict):\n    __getattr__ = dict.__getitem__\n    def __call__(self, models, settings): ...\n"
        "table = Table()\n"
        "from functools import wraps\ndef on_pair(f):\n    @wraps(f)\n"
        "    def build(models, settings): return f((models, settings))\n    return build\n"
        "@on_pair\ndef paired(pair): ...\n"
    )
    (tmp_path / "specdec.py").write_text(code)
    (tmp_path / "hollow.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError) as caught:
        load_factory("specdec")
    rule = "names a module, not a factory in it"
    offered = " or ".join(f"specdec:{name}" for name in ("build", "Spec", "Table", "table", "paired"))
    assert str(caught.value) == f"implementation=specdec: {rule}; pass {offered}"
    with pytest.raises(InputError, match=f"implementation=hollow:: {rule}; hollow defines no factory"):
        load_factory("hollow:")
    for typed, meant in (("specdec:biuld", "specdec:build"), ("specdec:Spc", "specdec:Spec")):
        with pytest.raises(InputError, match=f"module specdec has no {typed[8:]}; pass {meant}$"):
            load_factory(typed)
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind")
    monkeypatch.setitem(sys.modules, "pk", ModuleType("pk"))
    sys.modules["pk"].__path__ = [str(tmp_path)]
    for typed, said in (
        ("specdec.factory", "pass --implementation specdec:factory$"),
        ("no.", "pass --implementation harness:build_decoder$"),
        ("no.module:", "pass --implementation harness:build_decoder$"),
        ("pk.broken", "cannot be imported .*nothing_of_the_kind"),
    ):
        with pytest.raises(InputError, match=said):
            load_factory(typed)
    for typed, meant in (("specdec.py", "specdec:factory"), ("a/specdec.py:build", "a.specdec:build")):
        with pytest.raises(InputError, match=f"is a file, not a module; pass {meant}$"):
            load_factory(typed)
    for typed, meant in (
        ("./specdec:build", "specdec:build"),
        ("../a/b", "b:factory in the folder ../a"),
        ("a/b/:f", "a.b:f"),
        ("/x:f", "x:f in the folder /"),
    ):
        with pytest.raises(InputError, match=f"is a path, not a module; pass {meant}$"):
            load_factory(typed)


def test_networks_can_be_keys():
    assert len({MODELS: 1, MODELS.target: 2, MODELS.vae: 3, MODELS.vae.quantizer: 4}) == 4
    assert replace(MODELS) != MODELS


def test_in_a_process_of_its_own_it_is_a_crash_too():
    own = OwnProcess("tests.unit.decoders.test_in_process:leaves", MODELS, [Settings(1)], 1, Limits(60.0))
    try:
        judgement = own.decode(0, REQUEST)
    finally:
        own.close()
    assert isinstance(judgement, Judgement)
    assert (judgement.defects[0].component, judgement.defects[0].detail[:6]) == ("crash", "Leave:")


@pytest.mark.parametrize("handled", [False, True])
def test_ctrl_c_stops_the_harness_whoever_handles_it(handled: bool):
    with hearing():
        before = signal.getsignal(signal.SIGINT)
        with interruptible() if handled else nullcontext(), pytest.raises(StopSignal) as stop:
            run_in_process(Interrupted(), MODELS, REQUEST)
        assert signal.getsignal(signal.SIGINT) is before
    assert stop.value.status == 130


def test_a_stop_passes_through_and_time_that_is_over_is_the_process():
    with pytest.raises(StopSignal):
        run_in_process(Raises(StopSignal(15)), MODELS, REQUEST)
    assert component(Raises(OutOfTimeError("no answer within 1 s"))) == "process"

    def factory(models: ModelPair, settings: Settings) -> Raises:
        raise OutOfTimeError("no answer within 1 s")

    with pytest.raises(OutOfTimeError):  # the law that builds the decoder ran out of it
        build_by_factory(factory, MODELS, Settings(1))
