"""The command line: `sdvar-harness`, also as `python -m harness`.

Promise: bad input prints one line on stderr and exits with 2; the exit status otherwise is the command's verdict.
"""

from __future__ import annotations

import sys

import typer

from harness.commands.bench import bench
from harness.commands.bench_policies import bench_policies
from harness.commands.calibrate import calibrate
from harness.commands.golden import app as golden
from harness.commands.mutants import mutants
from harness.commands.sample import sample
from harness.commands.scoreboard import scoreboard
from harness.commands.verify import verify
from harness.errors import HarnessError, NonFiniteError
from harness.judge.verdict import Verdict

app = typer.Typer(
    help="Verify speculative decoding of VAR image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(verify)
app.command()(sample)
app.command()(bench)
app.command()(calibrate)
app.add_typer(golden, name="golden")
app.command()(mutants)
app.command()(bench_policies)
app.command()(scoreboard)


def main() -> None:
    """Run the command line."""
    try:
        status = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except NonFiniteError as error:
        print(f"{Verdict.DEFECT.value} {error}", file=sys.stderr)
        sys.exit(Verdict.DEFECT.exit_status)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        # typer's usage errors have no public class in every version, but this method
        if not hasattr(error, "format_message"):
            raise
        message = " ".join(error.format_message().split())
        if message:  # empty where the help was printed
            print(f"error: {message}; see sdvar-harness --help", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
