"""The door of the command line: light, whole, true, and open to a project's own options."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, get_origin

import pytest
import typer.main

from harness.__main__ import app
from harness.adapters._factories import PUBLISHED_FACTORIES
from harness.commands import _options as options
from harness.commands import mutants, verify
from harness.decoders._factory import OWN_DECODER, TIMEOUT_S
from harness.decoders._runner import SERVE
from harness.golden._plan import GOLDENS
from harness.laws._conformance import LAW_CASES
from harness.models import MODES
from harness.models._pair import CLOSE_NOISE
from harness.models.var.sizes import PUBLISHED
from harness.mutants._hunt import MUTANTS, SCOPES
from harness.quality._distances import BLOCKS
from harness.quality._study import USUAL_IMAGES
from harness.rounding._budget import SHIPPED_BUDGETS
from harness.speculative._policies import TABLE, parse_policy
from tests.helpers import command

ROOT = Path(__file__).parents[3]
USUAL = {
    "--models", "--draft", "--target", "--vae", "--seeds", "--labels", "--draft-len", "--policy", "--implementation",
    "--contract", "--device", "--json", "--html", "--cfg", "--top-k", "--top-p", "--images", "--checkout",
    "--sequential", "--run", "--locate", "--certificate",
}  # fmt: skip
DOOR = """
import contextlib, io, os, sys
from harness.__main__ import main
for line in sys.stdin.read().splitlines():
    words, complete = line.split(), line.startswith("complete ")
    sys.argv = ["sdvar-harness", *([] if complete else words)]
    if complete:
        os.environ |= {"_SDVAR_HARNESS_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words) - 1),
                       "COMP_WORDS": " ".join(["sdvar-harness", *words[1:]])}
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main()
    print(line, "|", *({"torch", "numpy", "hypothesis"} & sys.modules.keys()), "|", " ".join(said.getvalue().split()))
"""
COMPLETED = {
    "complete ver": {"verify"},
    "complete verify --draft-n": {"--draft-noise"},
    "complete verify --models d": {"digits", "digits-close", "d16-d30"},
    "complete verify --policy k": {"kl:BOUND"},
    "complete verify --noise b": {"batch"},
    "complete sample --dtype b": {"bfloat16"},
    "complete verify --contract C": {"C"},
    "complete verify --implementation p": {"published:var", "published:code"},
    "complete mutants --only masks,po": {"masks,positions"},
}


def leaves(group: Any, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the commands by their words."""
    if not hasattr(group, "commands"):
        return {words: group}
    return {key: leaf for name, each in group.commands.items() for key, leaf in leaves(each, (*words, name)).items()}


COMMANDS = leaves(typer.main.get_command(app))


def test_the_door_imports_nothing_heavy_and_completes_values():
    helps = [f"{' '.join(words)} {option}" for words in COMMANDS for option in ("--help", "--help-all")]
    typos = ["verfy", "verify --seedz 3", "verify --cfg much", "--help", "--version", "golden"]
    lines = "\n".join([*helps, *typos, *COMPLETED])  # once asked for, completion is asked for to the end
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", DOOR], input=lines, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    answers = {
        line: (heavy.strip(), said) for line, heavy, said in (each.split("|", 2) for each in done.stdout.splitlines())
    }
    assert len(answers) == len(helps) + len(typos) + len(COMPLETED)
    assert all(heavy == "" and said.strip() for heavy, said in answers.values())
    for line, offered in COMPLETED.items():
        assert offered <= set(answers[f"{line} "][1].split()), line


def test_what_reads_a_number_has_the_name_that_click_reads():
    """Up to typer 0.25, which pyproject.toml allows, click does, and no command began without."""
    hints = [each for leaf in COMMANDS.values() for each in leaf.callback.__annotations__.values()]
    parsers = [each.__metadata__[0].parser for each in hints if get_origin(each) is Annotated]
    names = {parser.__name__ for parser in parsers if parser is not None}
    assert names == {"number"}


@pytest.mark.parametrize("words", ["--help", "--version", "verify --help", "verify --nope"])
def test_the_door_opens_at_once(words: str):
    """0.2 to 0.4 s of CPU where nothing else runs; with PyTorch it was 2.1 s."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "harness", *words.split()], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.2


def test_what_the_door_says_is_what_the_rooms_say():
    assert (options.OWN, options.CLOSE, options.TIMEOUT_S) == (OWN_DECODER, CLOSE_NOISE, TIMEOUT_S)
    assert options.DECODER_PROCESS == SERVE
    assert (options.QUALITY_IMAGES, options.BLOCKS) == (USUAL_IMAGES, BLOCKS)
    assert (options.BUDGETS, options.GOLDENS) == (SHIPPED_BUDGETS, GOLDENS)
    assert set(options.DTYPES) == set(MODES)
    forms = [":".join((row.policy.name, *(number.word for number in row.numbers))) for row in TABLE if not row.bench]
    assert list(options.POLICIES) == forms
    assert all(parse_policy(policy) for policy in options.STUDIED)
    assert set(options.PUBLISHED) == set(PUBLISHED_FACTORIES)
    assert {size for pair in options.SIZES for size in pair.split("-")} == set(PUBLISHED)
    assert (verify.LAW_CASES, mutants.SCOPES) == (LAW_CASES, SCOPES)
    assert set(mutants.FAMILIES) == {mutant.family for mutant in MUTANTS}


def help_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    assert command(monkeypatch, *words) == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def spelled(words: tuple[str, ...]) -> set[str]:
    """Return the options of a command as they are typed, those of every command left out."""
    leaf = COMMANDS[words]
    return {each.opts[0] for each in leaf.params if each.opts[0].startswith("--")} - {"--help", "--help-all"}


def test_the_help_of_verify_shows_the_usual_options_and_help_all_every_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    usual, whole = (help_of(monkeypatch, capsys, "verify", option) for option in ("--help", "--help-all"))
    every = spelled(("verify",))
    assert len(every) == 64
    assert {option for option in every if f" {option} " in usual.partition("$")[0]} == USUAL
    assert all(f" {option} " in whole for option in every)
    titles = (
        options.NETWORKS, options.DRAWN, options.DECODED, options.TESTED, options.JUDGED, options.PLACE, options.WRITTEN
    )  # fmt: skip
    assert all(f"╭─ {title} ─" in whole for title in titles)
    assert f"Acceptance rule: {', '.join(options.POLICIES)}." in usual


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_stands_in_the_help_with_three_examples_that_can_be_typed(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    option = "--help-all" if "--help-all" in {each.opts[0] for each in COMMANDS[words].params} else "--help"
    whole = help_of(monkeypatch, capsys, *words, option)
    assert all(f" {each} " in whole for each in spelled(words))
    examples = COMMANDS[words].callback.__dict__["examples"]
    assert len(set(examples)) == 3
    for example in examples:
        assert f"$ sdvar-harness {example}" in whole
        typed = shlex.split(example)
        assert tuple(typed[: len(words)]) == words
        COMMANDS[words].make_context("", typed[len(words) :])  # raises for what cannot be typed


def test_the_defaults_of_a_grid_are_said_to_be_those(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Without any of these options the covering design has values of its own."""
    whole = help_of(monkeypatch, capsys, "verify", "--help-all")
    assert "Seeds, each with every label: 0,3 or the range 0:4, without 4. [default: (0:4 in a grid)]" in whole
    assert whole.count("in a grid)]") == 10
    assert "[default: 0:4]" in help_of(monkeypatch, capsys, "sample", "--help")


TABLE_OF = """
[tool.sdvar-harness]
device = "cpu"
cfg = 3

[tool.sdvar-harness.verify]
draft-len = 10
labels = "0"
images = "7"
{more}

[tool.sdvar-harness.golden.check]
only = "no-such-case"
"""


def test_a_project_keeps_options_in_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As if they were typed: a grid is decoded, since something is asked for."""
    (tmp_path / "pyproject.toml").write_text(TABLE_OF.format(more="seeds = 3"))
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    assert command(monkeypatch, "verify", "--cfg", "2", "--json", "r.json") == 0
    assert "1 decode, 680 draws compared" in capsys.readouterr().out
    said = help_of(monkeypatch, capsys, "verify", "--help")
    assert "Seeds, each with every label: 0,3 or the range 0:4, without 4. [default: 3]" in said
    assert command(monkeypatch, "golden", "check") == 2
    assert "only=no-such-case: fits no case" in capsys.readouterr().err
    (tmp_path / "inside" / "pyproject.toml").write_text("[tool.other]\n")
    assert "[default: 3]" in help_of(monkeypatch, capsys, "verify", "--help")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("sedes = 3", "tool.sdvar-harness.verify.sedes=3: is no option of verify ("),
        ("seeds = [1, 2]", "tool.sdvar-harness.verify.seeds=[1, 2]: must be a text; "),
        ("quiet = 1", "tool.sdvar-harness.verify.quiet=1: must be true or false; "),
        ("top-k = true", "tool.sdvar-harness.verify.top-k=True: must be a whole number; "),
        ('option = ["a=1", 2]', "tool.sdvar-harness.verify.option=['a=1', 2]: must be a list of texts; "),
        (
            '[tool.sdvar-harness.verfy]\nseeds = "0"',
            "tool.sdvar-harness.verfy={'seeds': '0'}: is no option of any",
        ),
        ("seeds = ", "pyproject.toml="),
    ],
)
def test_a_table_that_cannot_be_meant_is_one_line(
    more: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "pyproject.toml").write_text(TABLE_OF.format(more=more))
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "verify") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}"), error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool]\nsdvar-harness = 3", "tool.sdvar-harness=3: must be a table ("),
        ("[[tool.sdvar-harness]]\nseeds = 3", "tool.sdvar-harness=[{'seeds': 3}]: must be a table ("),
        ("tool = 3", "No such option: --nope"),  # somebody else's business
        ("tool = []", "No such option: --nope"),
    ],
)
def test_what_is_no_table_is_one_line(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "verify", "--nope") == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--implementation", "a:b", "--device", "cpu"], "harness.decoders._child:serve cpu ['/tmp'] False"),
        (["--implementation", "a:b", "--in-process"], ""),  # and where there will be none, or not beside this one
        (["--implementation", "a:b", "--workers", "2"], ""),
        (["--implementation", "a:b", "--cluster", "tcp://x:1"], ""),
        ([], ""),
    ],
)
def test_a_decoders_process_starts_before_this_one_loads_anything(words: list[str], said: str):
    code = f"""
import sys
from harness.commands import verify
def ahead(*words): print(*words, "torch" in sys.modules)
verify.started_ahead, verify._verified = ahead, lambda *records: 0
sys.argv = {["sdvar-harness", "verify", "--allow-write", "/tmp", *words]!r}
import harness.__main__
harness.__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), "Traceback" in done.stderr) == (said, False)
