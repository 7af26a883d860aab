"""An option that a factory was given and never reads is refused; whoever reads it, in whatever way, is built."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from harness.decoders._factory import Limits, build_by_factory, load_factory
from harness.decoders._runner import OwnProcess
from harness.errors import InputError
from harness.protocol import Settings
from tests.helpers import Layout, command, tiny

MODELS = tiny(Layout((1, 2)))
TYPED = (("checkout", "/somewhere"), ("gamma", "4"))


def built_after(read: Callable[[Settings], object], options: tuple[tuple[str, str], ...] = TYPED) -> list[object]:
    """Return what a factory reads of its settings, once it has built its decoder."""
    seen = []

    def factory(models, settings):
        seen.append(read(settings))
        return SimpleNamespace(contract="token-identical", decode=lambda request, noise: None)

    build_by_factory(factory, MODELS, Settings(3, options=options))
    return seen


class Keeper:
    """A decoder that keeps its settings."""

    contract = "token-identical"

    def __init__(self, models, settings):
        self.settings = settings

    def decode(self, request, noise):
        return self.settings.option("gamma")


class Slotted(Keeper):
    __slots__ = ("settings",)


def nested(models, settings):
    return SimpleNamespace(contract="token-identical", decode=print, config=SimpleNamespace(settings=settings))


def closure(models, settings):
    return SimpleNamespace(contract="token-identical", decode=lambda request, noise: settings.option("gamma"))


def by_name(settings: Settings) -> tuple[str, ...]:
    return settings.option("checkout"), settings.option("gamma"), settings.option("steps", "7")


def test_who_reads_an_option_is_built_and_gets_equal_settings():
    assert built_after(by_name) == [("/somewhere", "4", "7")]
    for read in (
        lambda settings: dict(settings.options)["gamma"] == "4",
        lambda settings: replace(settings, draft_len=2) == Settings(2, options=TYPED),
        lambda settings: vars(settings)["options"] == TYPED,
        lambda settings: pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == Settings(3, options=TYPED),
        lambda settings: isinstance(settings, Settings) and settings.options == TYPED,
    ):
        assert built_after(read) == [True]
    assert built_after(lambda settings: settings.draft_len, ()) == [3]
    for keeps in (Keeper, Slotted, nested, closure):  # may read them in `decode`
        build_by_factory(keeps, MODELS, Settings(3, options=TYPED))
    assert built_after(lambda settings: settings.option("gamma")) == ["4"]  # a checkout may be that of its own code


UNREAD = "was not read by the factory under these settings, where it reads"


@pytest.mark.parametrize(
    ("options", "read", "given", "known"),
    [
        ((*TYPED, ("gama", "5")), by_name, "option=gama=5", "gamma, steps"),
        ((("init.depth", "5"),), by_name, "option=init.depth=5", "gamma, steps"),
        ((("stub.wandb", "a.py"),), lambda settings: settings.draft_len, "stub=wandb=a.py", "no option"),
        ((("tree", "3"),), lambda settings: settings.bonus and settings.option("tree"), "option=tree=3", "no option"),
    ],
)
def test_what_the_factory_does_not_read_is_refused(options, read, given: str, known: str):
    with pytest.raises(InputError) as refused:
        built_after(read, options)
    remedy = "see how it is spelt, drop it, or read it whatever the settings are: settings.option(NAME)"
    assert str(refused.value) == f"{given}: {UNREAD} {known}; {remedy}"


def test_a_decoder_in_a_process_of_its_own_is_refused_alike():
    options = (("file", "a"), ("flie", "b"))
    with pytest.raises(InputError, match=f"option=flie=b: {UNREAD}"):
        OwnProcess("tests.unit.decoders.test_options_read:reads", MODELS, [Settings(1, options=options)], 1, Limits())


def reads(models, settings):
    """A factory with one option."""
    settings.option("file")
    return SimpleNamespace(contract="token-identical", decode=print)


@pytest.mark.parametrize("words", [("verify", "--seeds", "0", "--labels", "0", "--draft-len", "2"), ("parts",)])
def test_commands_end_as_bad_input(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    line = (*words, "--implementation", "tests.unit.decoders.test_options_read:reads", "--option", "gama=2")
    assert command(monkeypatch, *line) == 2
    assert f"option=gama=2: {UNREAD} file; " in capsys.readouterr().err


def test_a_module_without_a_factory_offers_the_one_that_is_called_so_first(tmp_path, monkeypatch: pytest.MonkeyPatch):
    takes_two = "(models, settings): ..."
    kind = "class Kind:\n    def __init__(self, models, settings): ...\n"
    wrapped = "import torch\n@torch.no_grad()\ndef wrapped(tokens): ...\n"  # may take two, as far as it says
    raises = "@property\n    def __class__(self): raise SystemExit(5)\n    __module__ = __class__"
    odd = f"class Odd:\n    {raises}\nodd = Odd()\n"
    raises = raises.replace("__class__", "__signature__").partition("    __module__")[0]
    odd += f"class Silent:\n    {raises}    def __call__(self, *given): ...\nsilent = Silent()\ndel Silent\n"
    last = f"def factory{takes_two}\nfrom functools import partial\nset_up = partial(factory)\n"
    text = f"{wrapped}{odd}def above{takes_two}\n{kind}def helper(tokens): ...\n{last}"
    (tmp_path / "offered.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    offers = " or ".join(f"offered:{word}" for word in ("factory", "above", "silent", "Kind", "set_up", "wrapped"))
    with pytest.raises(InputError, match=f"pass {offers}$"):
        load_factory("offered")
