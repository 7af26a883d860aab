"""The command line: `sdvar-harness`, also as `python -m harness`.

Promise: the exit status is the command's verdict, and 1 a defect and nothing else. Whatever stops a command prints one
line on stderr and exits with 2: bad input, an output that could not be written, a bug of the harness. A reader that
went away is no error (141, silent).
"""

# what is closed must be open before the rest is imported
import sys

from harness.signals import keep_standard_open

if __name__ == "__main__" or sys.argv[0].endswith("sdvar-harness"):  # and no test's import
    keep_standard_open()

import io
import os
import traceback
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from harness.commands.bench import bench
from harness.commands.bisect import bisect
from harness.commands.calibrate import calibrate
from harness.commands.check import check_file
from harness.commands.doctor import doctor
from harness.commands.evidence import evidence
from harness.commands.exactness import exactness
from harness.commands.golden import app as golden
from harness.commands.init import init
from harness.commands.mutants import mutants
from harness.commands.parts import parts
from harness.commands.quality import quality
from harness.commands.records import add, project_options
from harness.commands.replay import replay
from harness.commands.report import report
from harness.commands.sample import sample
from harness.commands.verify import verify
from harness.errors import HarnessError, InputError, NonFiniteError, one_line, shortened, text_of
from harness.provenance import versions
from harness.signals import each_warning_once, interruptible, last_signal
from harness.wording import READABLE

DEFECT, BAD, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141  # the last two as a shell counts SIGINT and SIGPIPE
MOST = 500  # characters of a line on stderr
COMPLETE, COMPLETIONS = "_SDVAR_HARNESS_COMPLETE", ("--show-completion", "--install-completion")
TRACEBACK = "SDVAR_HARNESS_TRACEBACK"

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sdvar-{', '.join(f'{name} {version}' for name, version in versions().items())}")
        raise typer.Exit


@app.callback()
def everything(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the versions that decide a result."),
    ] = False,
) -> None:
    """Verify speculative decoding of VAR image models."""
    try:
        here = Path.cwd()
    except OSError as error:
        rule = f"is the current folder, and not there any more ({error.strerror})"
        raise InputError("folder", ".", rule, "change to one that is") from None
    context.default_map = project_options(context.command, here)


for each in (verify, replay, bisect, report, sample, evidence, parts, init, doctor, bench, exactness, calibrate):
    add(app, each)
app.add_typer(golden, name="golden")
add(app, check_file, "check")
for each in (mutants, quality):
    add(app, each)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=READABLE)  # a terminal that knows no Δ shows a d
    completing = COMPLETE in os.environ or any(word.partition("=")[0] in COMPLETIONS for word in sys.argv[1:2])
    try:
        with interruptible(), each_warning_once():
            status = app(standalone_mode=False, prog_name="sdvar-harness")
        status = status if isinstance(status, int) else 0
        # typer knows one signal, and libraries swallow them; one that comes while a last module is imported waits
        status = 128 + last_signal() if last_signal() else status
        if sys.stdout is not None:
            sys.stdout.flush()  # here, and not while Python shuts down
    except BaseException as error:
        if completing and isinstance(error, SystemExit):
            sys.exit(error.code)  # typer's way to end
        status, line = stopped(error, last_signal())
        _say(line)
    sys.exit(status)


def stopped(error: BaseException, number: int = 0) -> tuple[int, str]:
    """Return exit status and line of what stopped a command; empty: nothing is said. `number`: of its signal."""
    if number:  # whatever has become of it on the way, an error of the code that it came in, too
        return 128 + number, ""
    # rich and typer make a `SystemExit` of it
    if isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError):
        return CLOSED_PIPE, ""
    if isinstance(error, NonFiniteError):
        return DEFECT, f"DEFECT {error}"
    if isinstance(error, HarnessError):
        return BAD, f"error: {text_of(error)}"
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return INTERRUPTED, ""
    if hasattr(error, "format_message"):  # a usage error of typer, which has no public class in every version
        context, option = getattr(error, "ctx", None), getattr(error, "option_name", "")
        near = getattr(error, "possibilities", None)
        if context and option and option[:2] != "--":  # of -seeds the first letter alone
            option = next((word.partition("=")[0] for word in sys.argv if word.startswith(option)), option)
            known = [name for each in context.command.params for name in each.opts] + ["--help"]
            near = get_close_matches(f"-{option}", known, 1)
        # of a misspelt option typer sorts what is near by the alphabet; of a command it names that in the message
        message = getattr(error, "message", "") if near else error.format_message()
        if option and near:
            message = f"No such option: {option}; did you mean {near[0]}?"
        if context and "unexpected extra argument" in message:
            flags = {name for each in context.command.params if getattr(each, "is_flag", False) for name in each.opts}
            extra = message.rpartition("(")[2].rstrip(").").split()
            given = next((pair for pair in pairwise(sys.argv) if pair[0] in flags and pair[1] in extra), None)
            message = "{} is a flag and takes no value: drop {}".format(*given) if given else message
        of = context.command_path if context else "sdvar-harness"
        every = "-all" if context and any(each.name == "help_all" for each in context.command.params) else ""
        said = _cut(message.removesuffix("."))  # empty: the help was printed
        return BAD, f"error: {said}; see {of} --help{every}" if said else ""
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exception(error)
    torch = sys.modules.get("torch")  # a device lacks memory, too; nothing is imported to find out
    if isinstance(error, MemoryError if torch is None else (MemoryError, torch.OutOfMemoryError)):
        return BAD, f"error: out of memory ({_cut(text_of(error))}); pass fewer images per batch, or a smaller dtype"
    if isinstance(error, OSError):
        return BAD, f"error: the system refused ({_cut(text_of(error))}); see that its files and the output can be used"
    # the last place in the harness that it went through
    package, frames = Path(__file__).parent, traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    last = (own or frames)[-1]
    path = Path(last.filename)
    where = f"{last.name}, {path.relative_to(package.parent) if own else path.name}:{last.lineno}"
    said = f"{type(error).__name__}: {_cut(text_of(error))}"
    return BAD, f"error: a bug of the harness: {said} in {where}; {TRACEBACK}=1 shows the traceback"


def _cut(text: str) -> str:
    return shortened(one_line(text), MOST - 200)


def _say(line: str) -> None:
    """Print the line on stderr, and give up what could not be written to a stream that is full or closed."""
    text = f"{shortened(one_line(line), MOST)}\n" if line else ""
    for stream, rest in ((sys.stderr, text), (sys.stdout, "")):
        try:
            if stream is not None:
                stream.write(rest)
                stream.flush()
        except OSError:  # the exit status says it, too; what is left goes nowhere, lest Python fail on it at its end
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


if __name__ == "__main__":
    main()
