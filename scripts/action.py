"""What action.yml does on a runner: verify a decoder, comment the verdict, and leave page, JUnit file and certificate.

Promise: the exit status is that of `sdvar-harness verify`; a comment that cannot be written is a warning. There is one
comment a decoder and pull request, written anew at each run. What a decoder says is escaped wherever it is shown. It
needs nothing but Python, `sdvar-harness` and `gh`; what it reads of the runner is its environment.
"""

import json
import os
import shlex
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

COUNTS = ("images", "identical", "ties", "wrong_tokens", "defects")
MOST = 1000  # characters of a text


def verified(environment: dict[str, str], out: Path) -> int:
    """Run `sdvar-harness verify`; return its exit status. Effects: files in `out`."""
    command = ["sdvar-harness", "verify", "--implementation", environment["SDVAR_IMPLEMENTATION"]]
    command += [
        "--json",
        f"{out}/verdict.json",
        "--html",
        f"{out}/page.html",
        "--certificate",
        f"{out}/certificate.json",
    ]
    command += ["--key", environment["SDVAR_KEY"]] if environment.get("SDVAR_KEY") else []
    return subprocess.run([*command, *shlex.split(environment.get("SDVAR_OPTIONS", ""))], check=False).returncode


def cell(value: object) -> str:
    """Return a text as Markdown that shows it, and means nothing else: no markup, no mention, no new row."""
    text = escape("".join(each if each.isprintable() else " " for each in " ".join(str(value).split())[:MOST]))
    return "".join(f"&#{ord(letter)};" if letter in "|`*_[]\\@#~!:" else letter for letter in text)


def table(result: dict[str, Any] | None, status: int, implementation: str) -> str:
    """Return the comment: the verdict, a row a setting, the first divergence, and what was not asked."""
    if result is None:
        return f"**No verdict** of {cell(implementation)}: sdvar-harness ended with {status}; its log says why.\n"
    lines = [f"**{cell(result['verdict'])}** {cell(implementation)}, contract {cell(result['contract'])}", ""]
    lines += [f"| setting | verdict | {' | '.join(COUNTS).replace('_', ' ')} |", "|---|---|" + "--:|" * len(COUNTS)]
    for each in result["settings"]:
        named = ", ".join(f"{k} {v}" for k, v in each["setting"].items() if v not in ("", False, []) and k != "options")
        counts = " | ".join(f"{each[name]:,}" for name in COUNTS)
        lines.append(f"| {cell(named)} | {cell(each['verdict'])} | {counts} |")
    first, missing = result["first_divergence"], result["exercised"]["missing"]
    if first:
        said = f"{cell(first['component'])} ({cell(first['detail'])})"
        lines += ["", f"First: {said}, seed {first['seed']}, scale {first['scale']}"]
    lines += ["", f"Not asked: {cell(', '.join(missing))}"] if missing else []
    return "\n".join([*lines, ""])


def junit(result: dict[str, Any] | None, status: int, implementation: str) -> str:
    """Return a JUnit file: a case a setting, which fails by a defect and is an error where nothing is proved."""
    cases = []
    for each in result["settings"] if result else []:
        named = ", ".join(f"{name} {value}" for name, value in each["setting"].items())
        bad = {"DEFECT": "failure", "INCONCLUSIVE": "error"}.get(each["verdict"])
        inside = f"<{bad} message={quoteattr(each['verdict'])}/>" if bad else ""
        cases.append(f"<testcase classname={quoteattr(implementation)} name={quoteattr(named)}>{inside}</testcase>")
    bad = {0: "", 1: "failure"}.get(status, "error")
    said = result["verdict"] if result else f"exit status {status}"
    inside = f"<{bad} message={quoteattr(said)}/>" if bad else ""
    cases.append(f'<testcase classname={quoteattr(implementation)} name="verdict">{inside}</testcase>')
    text = "".join(letter for letter in "".join(cases) if letter.isprintable())
    head = f'<?xml version="1.0" encoding="utf-8"?>\n<testsuite name="sdvar-harness" tests="{len(cases)}">'
    return f"{head}{text}</testsuite>\n"


def comment(body: str, mark: str, environment: dict[str, str]) -> None:
    """Write the comment of a pull request, or replace it where there is one. Raises `CalledProcessError`."""
    event = json.loads(Path(environment["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))
    number = (event.get("pull_request") or {}).get("number")
    if not number:
        return
    place = f"repos/{environment['GITHUB_REPOSITORY']}/issues"
    chosen = f".[] | select(.body | startswith({json.dumps(mark)})) | .id"
    found = _gh("api", "--paginate", f"{place}/{number}/comments", "--jq", chosen).split()
    where = ("--method", "PATCH", f"{place}/comments/{found[0]}") if found else (f"{place}/{number}/comments",)
    _gh("api", *where, "--raw-field", f"body={mark}\n{body}")


def _gh(*words: str) -> str:
    return subprocess.run(["gh", *words], check=True, capture_output=True, text=True).stdout


def main(environment: dict[str, str]) -> int:
    """Do all of it; return the exit status of the verification."""
    out, implementation = Path(environment["SDVAR_OUT"]), environment["SDVAR_IMPLEMENTATION"]
    out.mkdir(parents=True, exist_ok=True)
    for old in ("verdict.json", "page.html", "certificate.json", "junit.xml"):  # of an earlier run on this runner
        (out / old).unlink(missing_ok=True)
    status = verified(environment, out)
    file = out / "verdict.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    body = table(result, status, implementation)
    (out / "junit.xml").write_text(junit(result, status, implementation), encoding="utf-8")
    for name, text in (
        ("GITHUB_STEP_SUMMARY", body),
        ("GITHUB_OUTPUT", f"verdict={result['verdict'] if result else ''}\n"),
    ):
        if environment.get(name):
            with Path(environment[name]).open("a", encoding="utf-8") as stream:
                stream.write(text)
    if environment.get("SDVAR_COMMENT") == "true":
        try:
            comment(body, f"<!-- sdvar-harness {cell(implementation)} -->", environment)
        except (OSError, KeyError, ValueError, subprocess.CalledProcessError) as error:
            said = " ".join(str(getattr(error, "stderr", "") or error).split())[:MOST]
            print(f"::warning::no comment could be written: {said}")
    return status


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
