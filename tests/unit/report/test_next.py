"""After every verdict one thing to do, and the command that does it is one that can be typed."""

from __future__ import annotations

import io
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from harness.decoders._factory import OWN_DECODER
from harness.judge._verdict import Verdict
from harness.mutants.positions import OFFSET
from harness.report import plain_console, say_after, show_verification
from harness.report._next import AFTER, next_step, next_steps, repeat_step
from harness.runs._decodes import RunInterrupted
from harness.runs._records import BrokenLaw, LawsTried, QualityClaims
from harness.runs._result import Verification
from harness.speculative.sampler import build_decoder
from tests.docs.test_commands import wrong
from tests.helpers import command
from tests.unit.report.sample_runs import run

NAME = "mydecoder:factory"


def made(path: Path, factory=build_decoder, recipe: dict[str, str] | None = None, **settings) -> Verification:
    """Return a run as the command line makes it."""
    result = run(path / f"{len(list(path.iterdir()))}.db", factory, **settings)
    assert result.record is not None
    recipe = {"implementation": NAME} if recipe is None else recipe
    result.record = replace(result.record, recipe=recipe, command=("verify", "--seeds", "0:2", "--draft-len", "2"))
    return result


def after(result: Verification) -> tuple[str, str]:
    step = next_step(result)
    assert step is not None
    assert not step[1] or wrong(shlex.split(step[1])) == ""
    return step


def test_a_defect_is_mended_first_and_shown_alone(tmp_path: Path):
    result = made(tmp_path, OFFSET)
    what, line = after(result)
    assert (what, line) == ("mend what the first defect names: positions; then ask again", "")
    needs = " (IDENTICAL there: the decoder keeps something of other decodes or images; the whole run shows it)"
    only, names = "decode only the batch of the first defect", " and name the line of code"
    assert repeat_step(result) == (f"{only}{names}{needs}", f"{result.alone} --locate")
    assert wrong(shlex.split(f"{result.alone} --locate")) == ""
    for line, searched in (("not searched (about 2 min); --locate does it", False), ("x", True)):
        result.line = line
        repeat = f"{only}{names * (not searched)}{needs}", result.alone + " --locate" * (not searched)
        assert repeat_step(result) == repeat
        steps = [next_step(result), repeat]  # what is not looked at yet is looked at first
        assert next_steps(result) == (steps if searched else steps[::-1])
    task = result.plan.tasks[0]
    result.plan = replace(result.plan, tasks=(replace(task, request=task.request.only([0])),))
    assert repeat_step(result) is None  # it was decoded alone, and its line is searched
    result.line = "not searched (about 2 min); --locate does it"
    assert repeat_step(result) == ("name the line of code", f"{result.alone} --locate")
    result.record = replace(result.record, recipe=None)
    assert repeat_step(result) is None


def shown(result: Verification) -> str:
    """Return what the terminal shows of a run."""
    console = Console(file=io.StringIO(), width=500, soft_wrap=True, markup=False, highlight=False)
    show_verification(result, console, False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def crashes(models, settings):
    """A decoder that raises."""
    raise_in_decode = SimpleNamespace(contract="token-identical", decode=lambda request, noise: [][len([0])])
    return raise_in_decode


def miscounts(models, settings):
    inner = build_decoder(models, settings)

    def decode(request, noise):
        trace = inner.decode(request, noise)
        return replace(trace, target_rows=[0] * request.B)

    return SimpleNamespace(decode=decode, contract="token-identical")


def skips(models, settings):
    """A decoder of contract C whose target computes scale 1 otherwise."""
    decoder = build_decoder(models, replace(settings, policy="match:0.5"))

    def decode(request, noise):
        trace = decoder.decode(request, noise)
        rows_RLV = trace.shown.rows_RLV.clone()
        rows_RLV[:, 1:] *= 1.5
        return replace(trace, intermediates=replace(trace.shown, rows_RLV=rows_RLV))

    return SimpleNamespace(contract="quality-preserving", decode=decode)


def test_a_lossy_decoder_is_told_of_the_option_for_what_it_leaves_out_and_what_the_search_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = made(tmp_path, skips)
    option = (
        ", or, if it leaves work out on purpose from scale 1 on, say so: --may-differ-from 1 (docs/accelerators.md)"
    )
    assert option in after(result)[0]
    assert "search for what is wrong took" not in shown(result)
    monkeypatch.setattr("harness.report._terminal.LONG_S", 0.0)
    cost = r"the search for what is wrong took \d+ s, image after image; --fail-fast stops at the first batch"
    assert re.search(cost, shown(result))
    assert not re.search(cost, shown(made(tmp_path)))
    assert result.record is not None
    result.record = replace(result.record, terms=replace(result.record.terms, may_differ_from=2))
    assert "--may-differ-from" not in after(result)[0]
    assert "--may-differ-from" not in after(made(tmp_path, OFFSET))[0]  # claims the tokens


def test_of_a_crash_the_file_and_line_are_mended_and_its_batch_is_repeated(tmp_path: Path):
    result = made(tmp_path, crashes)
    assert result.first_divergence is not None
    assert result.first_divergence.component == "crash"
    assert re.fullmatch(
        r"mend test_next\.py:\d+, where it raises, or let so_far\(\) .*; then ask again", after(result)[0]
    )
    repeat = repeat_step(result)
    assert repeat is not None
    assert repeat[0].startswith("decode only the batch of the first defect (IDENTICAL there:")
    assert repeat[1] == result.alone
    assert "--locate" not in repeat[1]


def test_no_line_is_asked_of_what_no_tensor_shows(tmp_path: Path):
    result = made(tmp_path, miscounts)
    assert result.first_divergence is not None
    assert result.first_divergence.component == "counts"
    assert "--locate" not in str(repeat_step(result))


def test_a_broken_law_replays_itself_and_a_lost_quality_is_a_choice(tmp_path: Path):
    result = made(tmp_path)
    result.take_laws(LawsTried(2, 68, (BrokenLaw("draw", "law streams.once: one number decides twice; replay", 3),)))
    assert "draw (its line ends in the call that replays the case)" in after(result)[0]
    assert "\nstreams.once: " not in shown(result)  # the first defect's line says it
    laws = tuple(BrokenLaw("draw", f"law streams.n{n}: wrong; replay", 3) for n in range(8))
    for count, more in ((2, []), (6, []), (8, ["and 2 more: --json has all"])):
        several = made(tmp_path)
        several.take_laws(LawsTried(2, 68, laws[:count]))
        lines = shown(several).splitlines()
        start = lines.index(next(line for line in lines if line.startswith("laws, in 2 cases each"))) + 1
        named = [f"streams.n{n}: wrong; replay" for n in range(min(count, 6))] + more
        assert lines[start : start + len(named)] == named
        assert lines[start + len(named)].startswith("first defect: ")
    result = made(tmp_path, policy="match:0.5")
    result.take_quality(QualityClaims(("loss 0.3 of 0.1",)))
    assert result.verdict is Verdict.DEFECT
    assert after(result)[0].startswith("choose a stricter rule of acceptance")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({}, ""),
        ({"implementation": NAME, "timeout": "9.0"}, " --implementation mydecoder:factory --timeout 9.0"),
        ({"graphs": "", "device": "cuda"}, " --device cuda"),
        ({"models": "digits-close"}, " --models digits-close --cover"),
        ({"dtype": "bfloat16"}, " --dtype bfloat16 --cover"),
    ],
)
def test_what_was_not_exercised_is_asked_by_the_design(recipe: dict[str, str], words: str, tmp_path: Path):
    assert after(made(tmp_path, recipe=recipe)) == ("ask what was not exercised", f"sdvar-harness verify{words}")


def reads_options(models, settings):
    """The own decoder by a factory that reads its options."""
    return settings.options and build_decoder(models, settings)


def test_policy_and_options_of_a_factory_are_asked_again(tmp_path: Path):
    line = after(made(tmp_path, reads_options, policy="match:0.5", recipe={}, options=(("a", "b c"),)))[1]
    assert line == "sdvar-harness verify --option 'a=b c' --policy match:0.5"


def test_after_the_design_the_own_decoder_makes_room_for_yours_and_yours_for_tests(tmp_path: Path):
    for recipe, line in (({}, "sdvar-harness init mydecoder.py"), (None, f"pytest --sdvar-implementation {NAME}")):
        result = made(tmp_path, recipe=recipe)
        result.covers = True
        assert after(result)[1] == line
    result = made(tmp_path, policy="match:0.5")
    result.covers = True
    assert after(result)[1].endswith(" --policy match:0.5 --contract C --max-loss 0.1")
    checked_out = made(tmp_path, options=(("checkout", "/somewhere"),))
    checked_out.covers = True
    assert after(checked_out)[0].endswith("docs/pytest.md asks published code in your tests")


def test_an_inconclusive_design_and_a_stopped_run_say_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = made(tmp_path)
    result.covers, result.reasons = True, ["never exercised: a bonus scale"]
    assert after(result)[0].startswith("let it do what it refuses or declines, or ask a part")
    result = made(tmp_path)
    result.stopped = 2
    asked = f"sdvar-harness {' '.join(result.record.command)} --run run-2.db"
    monkeypatch.chdir(tmp_path)
    Path("run.db").touch()
    assert after(result) == ("ask again so that it can be stopped (after a stop add --resume)", asked)
    result.record = replace(result.record, command=("verify", "--seeds", "0:2", "--run", "a b.db"))
    assert after(result) == ("go on where it stopped", "sdvar-harness verify --seeds 0:2 --run 'a b.db' --resume")
    result.record, result.is_kept = replace(result.record, command=("verify",)), True  # by a table of pyproject.toml
    assert after(result) == ("go on where it stopped", "sdvar-harness verify --resume")
    for words in (("verify", "--run=a.db", "--resume"), ("verify", "--resume", "--run", "a.db")):
        result.record = replace(result.record, command=words)
        assert after(result)[1] == f"sdvar-harness {' '.join(words)}"


def test_a_stopped_run_whose_file_pyproject_names_goes_on_by_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    result = made(tmp_path)
    assert result.record is not None
    result.record = replace(result.record, command=("verify",))
    same = replace(result, is_kept=True)
    assert (same == result, repr(same) == repr(result)) == (True, True)

    def stopped(*given: object, **named: object) -> None:
        result.stopped = 2
        raise RunInterrupted(result, 2)

    monkeypatch.setattr("harness.verification.answer_question", stopped)
    monkeypatch.chdir(tmp_path)
    for table, step in (("", "ask again so that it can be stopped"), ('run = "kept.db"', "go on where it stopped: ")):
        Path("pyproject.toml").write_text(f"[tool.sdvar-harness.verify]\n{table}\n")
        assert command(monkeypatch, "verify") == 130
        assert f"next: {step}" in capsys.readouterr().out


def test_without_a_command_line_a_right_decoder_is_done(tmp_path: Path):
    result = made(tmp_path)
    result.record = replace(result.record, recipe=None)
    assert next_step(result) is None


def test_quiet_leaves_the_verdict_and_verbose_adds_how_it_was_judged(monkeypatch: pytest.MonkeyPatch, capsys):
    words = ("verify", "--seeds", "0", "--labels", "0", "--draft-len", "2")
    said = []
    for more in ("--quiet", "--verbose"):
        assert command(monkeypatch, *words, more) == 0
        said.append(capsys.readouterr().out.splitlines())
    assert [line.split()[0] for line in said[0]] == ["IDENTICAL"]
    names = ["error budget", "judging", "batches of 1 image (1 thread", "compared with the reference", "covered"]
    assert [line.startswith(name) for name, line in zip(names, said[1][6:11], strict=True)] == [True] * 5
    assert said[1][-2] == re.sub(r"--cover asks them; (?=--json)", "", said[0][0]) != said[0][0]
    assert said[1][-1] == "next: ask what was not exercised: sdvar-harness verify"
    assert OWN_DECODER not in said[1][-1]


def test_a_request_is_repeated_to_the_last_digit_or_not_at_all(tmp_path: Path):
    result = made(tmp_path, OFFSET)
    tasks = result.plan.tasks

    def asked(**other: object) -> str:
        changed = tuple(replace(task, request=replace(task.request, **other)) for task in tasks)  # type: ignore[arg-type]
        result.plan = replace(result.plan, tasks=changed)
        return result.alone

    assert "--cfg -0.5772156649015329 --top-p 0.30000000000000004" in asked(cfg=-0.5772156649015329, top_p=0.1 + 0.2)
    assert "--cfg 4 " in asked(cfg=4.0)
    assert asked(more_smooth=True) == asked(filters=((2, 0.5),) * 2) == ""  # no option asks these


def test_every_command_with_a_verdict_says_what_to_do_after_each_of_its_statuses(capsys: pytest.CaptureFixture[str]):
    for name, steps in AFTER.items():
        assert set(steps) <= {0, 1, 3}
        assert {0, 1} <= set(steps)
        for status, step in steps.items():
            say_after(plain_console(), name, status, quiet=False)
            assert capsys.readouterr().out == f"next: {step.format(verify='sdvar-harness verify', more='')}\n"
    say_after(plain_console(), "replay", 0, False, "sdvar-harness verify --implementation a:b")
    assert capsys.readouterr().out == "next: ask the whole question again: sdvar-harness verify --implementation a:b\n"
    say_after(plain_console(), "parts", 1, quiet=True)
    say_after(plain_console(), "mutants", 130, quiet=False)
    assert capsys.readouterr().out == ""


def test_what_a_step_names_is_there():
    """Commands and options that a step names exist; so do its pages."""
    root = Path(__file__).parents[3]
    said = " ".join(step for steps in AFTER.values() for step in steps.values())
    for page in re.findall(r"[\w/.-]+\.md", said):
        assert (root / page).is_file()
    known = {option for command in (root / "docs" / "commands.md", *(root / "docs").glob("*.md"))
             for option in re.findall(r"--[a-z-]+", command.read_text())}  # fmt: skip
    assert set(re.findall(r"--[a-z-]+", said)) <= known
