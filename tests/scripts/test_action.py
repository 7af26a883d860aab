"""The script of action.yml, with stubs of `sdvar-harness` and `gh` on the path; and the action's own text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.action import cell

ROOT = Path(__file__).parents[2]
SETTING = {"setting": {"draft_len": 2, "bonus": False, "policy": "coupled", "options": []}, "verdict": "TIE"}
COUNTS = {"images": 40, "identical": 27199, "ties": 1, "wrong_tokens": 0, "defects": 0}
RESULT = {
    "verdict": "TIE", "contract": "token-identical", "settings": [{**SETTING, **COUNTS}],
    "first_divergence": None, "exercised": {"missing": {"bonus scales": "--bonus"}},
}  # fmt: skip
DEFECT = {
    **RESULT, "verdict": "DEFECT", "settings": [{**SETTING, **COUNTS, "verdict": "DEFECT", "defects": 3}],
    "first_divergence": {"component": "masks", "detail": "@all | <b>look\ud800\n| a row", "seed": 0, "scale": 3},
}  # fmt: skip
# both write down how they were called; `gh` keeps comments as GitHub does, one a file
STUBS = {
    "sdvar-harness": """
import json, os, sys
here = os.environ["STUB"]
open(here + "/verify.txt", "a").write(json.dumps(sys.argv[1:]) + "\\n")
result = open(here + "/result.json").read()
if result:
    open(sys.argv[sys.argv.index("--json") + 1], "w").write(result)
sys.exit(int(open(here + "/status").read()))
""",
    "gh": """
import json, os, sys
here, words = os.environ["STUB"], sys.argv[1:]
open(here + "/gh.txt", "a").write(json.dumps(words) + "\\n")
if os.path.exists(here + "/forbidden"):
    sys.exit("HTTP 403: Resource not accessible by integration")
kept = here + "/comments.json"
comments = json.load(open(kept)) if os.path.exists(kept) else {}
body = next((word[5:] for word in words if word.startswith("body=")), None)
if body is None:
    mark = json.loads(words[-1].split("startswith(")[1].split("))")[0])
    print("\\n".join(number for number, text in comments.items() if text.startswith(mark)))
elif "PATCH" in words:
    comments[words[words.index("PATCH") + 1].rpartition("/")[2]] = body
else:
    comments[str(100 + len(comments))] = body
json.dump(comments, open(kept, "w"))
""",
}


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    for name, code in STUBS.items():
        file = tmp_path / name
        file.write_text(f"#!{sys.executable}\n{code}")
        file.chmod(0o755)
    (tmp_path / "event.json").write_text(json.dumps({"pull_request": {"number": 7}}))
    (tmp_path / "comments.json").write_text(json.dumps({"99": "somebody else says: <!-- sdvar-harness x -->"}))
    return tmp_path


def act(stub: Path, result: object, status: int, **more: str) -> tuple[int, str]:
    """Run the script as the action does; return its exit status and what it printed."""
    (stub / "result.json").write_text(json.dumps(result) if result else "")
    (stub / "status").write_text(str(status))
    environment = {
        "PATH": f"{stub}:/usr/bin:/bin", "STUB": str(stub), "SDVAR_OUT": str(stub / "out"), "SDVAR_COMMENT": "true",
        "SDVAR_IMPLEMENTATION": "mydecoder:factory", "SDVAR_OPTIONS": "--seeds 0:4 --option 'a=b c'", "SDVAR_KEY": "",
        "GITHUB_EVENT_PATH": str(stub / "event.json"), "GITHUB_REPOSITORY": "me/mine",
        "GITHUB_STEP_SUMMARY": str(stub / "summary.md"), "GITHUB_OUTPUT": str(stub / "output"), **more,
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts" / "action.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def comments(stub: Path) -> dict[str, str]:
    return dict(json.loads((stub / "comments.json").read_text()))


def test_it_verifies_comments_once_and_keeps_the_comment_current(stub: Path):
    assert act(stub, RESULT, 0)[0] == 0
    words = json.loads((stub / "verify.txt").read_text())
    assert words[:3] == ["verify", "--implementation", "mydecoder:factory"]
    assert words[-4:] == ["--seeds", "0:4", "--option", "a=b c"] and "--key" not in words
    assert {Path(words[words.index(f"--{name}") + 1]).name for name in ("json", "html", "certificate")} == {
        "verdict.json", "page.html", "certificate.json",
    }  # fmt: skip
    first = comments(stub)
    assert list(first) == ["99", "101"] and "**TIE**" in first["101"] and "| 40 | 27,199 | 1 | 0 | 0 |" in first["101"]
    assert "Not asked: bonus scales" in first["101"]
    assert act(stub, DEFECT, 1)[0] == 1
    second = comments(stub)
    assert list(second) == ["99", "101"] and "**DEFECT**" in second["101"] and second["99"] == first["99"]
    assert act(stub, RESULT, 0, SDVAR_IMPLEMENTATION="other:factory")[0] == 0
    assert list(comments(stub)) == ["99", "101", "102"]  # one a decoder
    assert (stub / "output").read_text().splitlines() == ["verdict=TIE", "verdict=DEFECT", "verdict=TIE"]
    assert "**DEFECT**" in (stub / "summary.md").read_text()


def test_what_a_decoder_says_is_shown_and_means_nothing(stub: Path):
    act(stub, DEFECT, 1)
    line = next(each for each in comments(stub)["101"].splitlines() if each.startswith("First"))
    assert not any(bad in line for bad in ("@", "|", "<b>")) and "&lt;b&gt;look" in line
    assert cell("a `b` [c](d)\nme@x") == "a &#96;b&#96; &#91;c&#93;(d) me&#64;x"


@pytest.mark.parametrize(("status", "kind"), [(0, None), (1, "failure"), (2, "error"), (3, "error"), (143, "error")])
def test_the_junit_file_fails_as_the_verdict_does(stub: Path, status: int, kind: str | None):
    assert act(stub, {0: RESULT, 1: DEFECT}.get(status), status)[0] == status
    suite = ElementTree.parse(stub / "out" / "junit.xml").getroot()
    last = suite.findall("testcase")[-1]
    assert [each.tag for each in last] == ([kind] if kind else []) and int(suite.attrib["tests"]) == len(suite)


def test_without_a_verdict_it_says_so_and_an_old_one_is_gone(stub: Path):
    act(stub, RESULT, 0)
    assert act(stub, None, 2)[0] == 2
    assert "**No verdict** of mydecoder&#58;factory: sdvar-harness ended with 2" in comments(stub)["101"]


def test_a_comment_that_is_not_allowed_is_a_warning(stub: Path):
    (stub / "forbidden").touch()
    status, said = act(stub, RESULT, 0)
    assert (
        status == 0
        and said == "::warning::no comment could be written: HTTP 403: Resource not accessible by integration\n"
    )


def test_outside_a_pull_request_nobody_is_asked(stub: Path):
    (stub / "event.json").write_text("{}")
    assert act(stub, RESULT, 0)[0] == 0 and not (stub / "gh.txt").exists()
    (stub / "event.json").write_text(json.dumps({"pull_request": {"number": 7}}))
    assert act(stub, RESULT, 0, SDVAR_COMMENT="false")[0] == 0 and not (stub / "gh.txt").exists()


def test_a_key_is_passed_on(stub: Path):
    act(stub, RESULT, 0, SDVAR_KEY="key.pem")
    words = json.loads((stub / "verify.txt").read_text())
    assert words[words.index("--key") + 1] == "key.pem"


def test_the_action_puts_no_input_into_a_shell_s_text():
    text = (ROOT / "action.yml").read_text()
    runs = [line for line in text.splitlines() if line.strip().startswith("run:")]
    assert len(runs) == 2 and not any("${{" in line for line in runs)
    assert "scripts/action.py" in text and "using: composite" in text
