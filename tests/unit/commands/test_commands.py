"""The command line: exit status, one-line refusals with nothing written, reports."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.__main__ import stopped
from harness.commands.verify import VerifyDecoding, VerifyImages, check_design
from harness.errors import InputError
from harness.models.var import autoencoder, transformer
from tests.helpers import LAYOUTS, Layout, autoencoder_config, tiny, transformer_config
from tests.unit.commands.running import run

KEYS = {
    "contract", "verdict", "images", "draws", "identical", "ties", "defects", "first_divergence", "target_calls",
    "target_rows", "rounds", "accepted_scales", "device", "dtype", "draft_dtype",
    "versions", "seconds", "decode_seconds",
}  # fmt: skip
BAD = {
    "draft_len=0": (["--draft-len", "0"], "1..3"),
    "draft_len=4": (["--draft-len", "4"], "1..3"),
    "labels=9": (["--labels", "9"], "0..3"),
    "labels=-1": (["--labels=-1"], "0..3"),
    "top_k=-1": (["--top-k=-1"], "0..V"),
    "top_k=12": (["--top-k", "12"], "V=11"),
    "top_p=1.5": (["--top-p", "1.5"], "[0, 1]"),
    "top_p=-0.1": (["--top-p=-0.1"], "[0, 1]"),
    "cfg=nan": (["--cfg", "nan"], "finite"),
    "cfg=inf": (["--cfg", "inf"], "finite"),
    "cfg=1e+30": (["--cfg", "1e30"], "logits overflow"),
    "seeds=0:9999999999": (["--seeds", "0:9999999999"], "more than 1000000"),
    "laws=-1": (["--laws=-1"], "must be 0 cases or more; pass 2"),
    "models=d16-d30": (["--models", "d16-d30"], "three checkpoint files are another"),
    "draft_dtype=int8": (["--draft-dtype", "int8"], "must be one of"),
    "seeds=3:3": (["--seeds", "3:3"], "names nothing"),
    "seeds=x": (["--seeds", "x"], "must read"),
    "seeds=0,3,0": (["--seeds", "0,3,0"], "names a seed twice, whose images would count twice; name it once"),
    "device=cuda:99": (["--device", "cuda:99"], "not there"),
    "device=abacus": (["--device", "abacus"], "not a device"),
    "dtype=int8": (["--dtype", "int8"], "must be one of"),
    "implementation=nowhere": (["--implementation", "nowhere"], "package.module:factory"),
    "implementation=no.where": (["--implementation", "no.where"], "pass --implementation no:where"),
    "implementation=no.such:f": (["--implementation", "no.such:f"], "cannot be imported"),
    "implementation=harness:none": (["--implementation", "harness:none"], "has no none"),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    said: str, pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options, rule = BAD[said]
    report = tmp_path / "report.json"
    assert run(monkeypatch, "verify", *pair, "--draft-len", "1", *options, "--json", str(report)) == 2
    said_line = capsys.readouterr().err.strip()
    assert len(said_line.splitlines()) == 1
    assert said_line.startswith(f"error: {said.split('=', maxsplit=1)[0]}=")
    assert said.split("=")[1] in said_line
    assert rule in said_line
    assert "; " in said_line  # the remedy
    assert not report.exists()


@pytest.mark.parametrize(("command", "option"), [("verify", "json"), ("sample", "out"), ("sample", "tokens")])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for path in (tmp_path, tmp_path / "missing" / "file"):
        monkeypatch.chdir(tmp_path)
        assert run(monkeypatch, command, f"--{option}", str(path), "--draft", "no-such-file") == 2
        assert capsys.readouterr().err.startswith(f"error: {option}={path}: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "truncated", "absent name", "extra name", "shape"])
def test_a_damaged_checkpoint_is_one_line(
    damage: str, pair: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = Path(pair[1])
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        tensors = load_file(path)
        if damage == "absent name":
            del tensors["head.bias"], tensors["pos_start"]
        elif damage == "extra name":
            tensors["surplus"], tensors["head.other"] = torch.zeros(1), torch.zeros(1)
        else:
            tensors["head.bias"] = torch.zeros(7)
        save_file(tensors, path)
    assert run(monkeypatch, "verify", *pair, "--quiet") == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert said.startswith(f"error: draft={path}: ")
    expected = {
        "missing": ["no such file"],
        "truncated": ["is a safetensors file that is cut short"],
        "absent name": ["2 tensors", "missing head.bias", "missing pos_start"],
        "extra name": ["2 tensors", "unknown surplus", "unknown head.other"],
        "shape": ["shape of head.bias is (7,), not (11,)"],
    }[damage]
    assert all(word in said for word in expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_mode_is_tight_enough_to_catch_a_bug_and_wide_enough_for_none(
    dtype: str, pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = tmp_path / "result.json"
    options = (*pair, "--dtype", dtype, "--seeds", "0:2", "--labels", "all", "--draft-len", "3", "--json", str(result))
    for name, status in (("harness:build_decoder", 0), ("harness.mutants.positions:OFFSET", 1)):
        assert run(monkeypatch, "verify", *options, "--quiet", "--laws", "0", "--implementation", name) == status
        document = json.loads(result.read_text())
        assert (document["dtype"], document["verdict"] == "DEFECT") == (dtype, bool(status))
    assert document["first_divergence"]["component"] == "positions"


def test_what_was_taken_from_where_is_said_once_and_kept(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    target, run_file, result = Path(pair[3]), tmp_path / "run.db", tmp_path / "result.json"
    trained = tmp_path / "last.ckpt"
    nets = {
        "model": load_file(target),
        "ema": {name: t * 2 if t.is_floating_point() else t for name, t in load_file(target).items()},
    }
    torch.save({"epoch": 3, "nets": nets}, trained)
    options = ("--seeds", "0", "--labels", "0", "--draft-len", "2", "--run", str(run_file), "--json", str(result))
    assert run(monkeypatch, "verify", *pair, "--target", str(trained), *options) == 2
    assert f"pass --target {trained}::nets.model" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    named = (*pair, "--target", "last.ckpt::nets.model")
    assert run(monkeypatch, "verify", *named, *options) == 0
    taken = "target last.ckpt: taken from nets.model"
    assert capsys.readouterr().out.count(f"loaded: {taken}") == 1
    document = json.loads(result.read_text())["run"]
    assert document["networks"]["taken"] == [taken]
    assert document["recipe"]["target"] == f"{trained}::nets.model"
    assert run(monkeypatch, "verify", *named, *options, "--resume", "--quiet") == 0
    assert "loaded" not in capsys.readouterr().out
    shutil.copy(target, tmp_path / "plain.safetensors")  # the same weights elsewhere are the same run
    assert run(monkeypatch, "verify", *pair, "--target", "plain.safetensors", *options, "--resume") == 0
    assert run(monkeypatch, "verify", *named, "--json", "last.ckpt") == 2  # not over its own input
    assert "is the file of --target too" in capsys.readouterr().err


def test_a_pair_that_does_not_fit_is_refused(
    pair: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    other = tiny(Layout((1, 2, 4)))
    save_file({**other.draft.weights, "lvl_1L": torch.tensor([other.pyramid.levels()])}, pair[1])
    assert run(monkeypatch, "verify", *pair, "--quiet") == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: draft patch_nums=(1, 2, 4): must equal the target's (1, 2, 3); ")


def test_a_draft_of_another_dtype_is_stated_and_changes_no_token(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    report = tmp_path / "report.json"
    options = ("--labels", "0", "--seeds", "0:2", "--draft-len", "2", "--draft-dtype", "bfloat16")
    assert run(monkeypatch, "verify", *pair, *options, "--json", str(report)) == 0
    assert "custom on cpu, float32 (draft bfloat16)" in capsys.readouterr().out
    document = json.loads(report.read_text())
    assert (document["dtype"], document["draft_dtype"], document["defects"]) == ("float32", "bfloat16", 0)


def test_verify_writes_json_says_the_verdict_and_what_to_do_next(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    report = tmp_path / "report.json"
    options = ("--draft-len", "1,3", "--seeds", "0:2", "--json", str(report))
    assert run(monkeypatch, "verify", *pair, *options) == 0
    document = json.loads(report.read_text())
    assert document.keys() >= KEYS
    assert document["images"] == 12
    assert document["draws"] == 12 * 14
    assert document["identical"] + document["ties"] == document["draws"]
    assert (document["defects"], document["contract"]) == (0, "token-identical")
    assert [len(document[name]) for name in ("target_calls", "target_rows", "rounds", "accepted_scales")] == [12] * 4
    *_, verdict, after, wrote = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {report}"
    assert verdict.startswith(document["verdict"])
    networks = shlex.join(pair)
    assert after == f"next: ask what was not exercised: sdvar-harness verify {networks} --cover"


def test_quiet_leaves_the_verdict_alone(
    pair: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(monkeypatch, "verify", *pair, "--draft-len", "2", "--seeds", "0", "--quiet") == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert captured.err == ""


def test_non_finite_weights_exit_with_a_defect(
    pair: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tensors = load_file(pair[3])
    tensors["head.bias"][3] = torch.nan
    save_file(tensors, pair[3])
    assert run(monkeypatch, "verify", *pair, "--draft-len", "2", "--seeds", "0") == 1
    assert "target.head.bias" in capsys.readouterr().out


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_are_inferred_from_the_tensors_of_every_layout(name: str):
    from harness.models.var.checkpoint import autoencoder_from, transformer_from

    models, layout = tiny(LAYOUTS[name]), LAYOUTS[name]
    levels = torch.tensor([models.pyramid.levels()])
    tensors, heads = {**models.target.weights, "lvl_1L": levels}, 0 if layout.l2_norm else layout.H
    assert transformer_from(tensors, "target=x", heads=heads).config == transformer_config(layout)
    assert autoencoder_from(models.vae.weights, "vae=x").config == autoencoder_config(layout)
    assert set(transformer.transformer_shapes(models.target.config)) == set(models.target.weights)
    assert set(autoencoder.autoencoder_shapes(models.vae.config)) == set(models.vae.weights)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cfg", "abc"], "cfg=abc: must be a finite number; pass --cfg 1.5"),
        (["--nope"], "No such option"),
        (["--labls", "0"], "No such option: --labls; did you mean --labels?; see sdvar-harness verify --help-all"),
        (["-labls", "0"], "No such option: -labls; did you mean --labels?; see sdvar-harness verify --help-all"),
        (["-help"], "No such option: -help; did you mean --help?; see sdvar-harness verify --help-all"),
        (["-seeds=0:1"], "No such option: -seeds; did you mean --seeds?; see sdvar-harness verify --help-all"),
        (["--seeds"], "requires an argument"),
        (["--seeds", "0", "--bonus", "true"], "--bonus is a flag and takes no value: drop true; see sdvar"),
        (["0", "--bonus"], "unexpected extra argument"),
    ],
)
def test_a_usage_error_is_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(monkeypatch, "verify", *arguments) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert said in captured
    assert len(captured.splitlines()) == 1


def test_a_flag_before_an_argument_that_is_wanted_is_not_blamed(monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, "replay", "--locate", "run.db", "more") == 2
    said = capsys.readouterr().err
    assert "unexpected extra argument" in said
    assert "(more)" in said


def test_a_command_that_is_misspelt_names_the_nearest_once():
    class MisspeltError(Exception):  # typer 0.20 beside click 8.5, where both name it
        message, possibilities = "No such command 'verfy'. Did you mean 'verify'?", ["verify"]

        def format_message(self) -> str:
            return f"{self.message} Did you mean 'verify'?"

    line = "error: No such command 'verfy'. Did you mean 'verify'?; see sdvar-harness --help"
    assert stopped(MisspeltError()) == (2, line)


def test_an_output_that_is_an_input_is_refused(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    target, before = pair[3], Path(pair[3]).read_bytes()
    link = tmp_path / "link"
    link.symlink_to(target)
    for command, option, path in (
        ("verify", "json", target), ("sample", "out", target), ("sample", "tokens", str(link)),
        ("bench", "json", target), ("calibrate", "into", str(link)),
    ):  # fmt: skip
        assert run(monkeypatch, command, *pair, f"--{option}", path) == 2
        assert capsys.readouterr().err.startswith(f"error: {option}={path}: is the file of --target too; ")
    both = str(tmp_path / "both")
    assert run(monkeypatch, "sample", *pair, "--out", both, "--tokens", both) == 2
    assert "is the file of --out too" in capsys.readouterr().err
    assert Path(target).read_bytes() == before


def test_what_is_no_regular_file_is_not_replaced(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pipe, file, link = tmp_path / "pipe", tmp_path / "file.json", tmp_path / "link.json"
    os.mkfifo(pipe)
    assert run(monkeypatch, "verify", *pair, "--json", str(pipe)) == 2
    assert "is no regular file, and would be replaced by one" in capsys.readouterr().err
    assert pipe.is_fifo()
    link.symlink_to(file)
    options = ("--draft-len", "2", "--seeds", "0", "--quiet")
    assert run(monkeypatch, "verify", *pair, *options, "--json", str(link)) == 0
    assert link.is_symlink()
    assert json.loads(file.read_text())["defects"] == 0


@pytest.mark.parametrize("name", ["draft", "target", "vae"])
@pytest.mark.parametrize(
    "command",
    [
        ["verify", "--draft-len", "2"], ["sample", "--out", "x.png"],
        ["sample", "--out", "x.png", "--sampler", "sequential"],
        ["bench", "--draft-len", "2", "--repeats", "1"], ["calibrate", "--batches", "1", "--into", "b.json"],
    ],
)  # fmt: skip
def test_non_finite_weights_are_a_defect_of_every_command(
    name: str, command: list[str], pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = Path(pair[pair.index(f"--{name}") + 1])
    tensors = load_file(path)
    weight = "quantize.embedding.weight" if name == "vae" else "head.weight"
    tensors[weight][0, 0] = torch.nan
    save_file(tensors, path)
    assert run(monkeypatch, *command, *pair) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["models"]


@pytest.mark.parametrize("sampler", ["sequential", "speculative"])
def test_logits_that_overflow_are_a_defect(
    sampler: str, pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tensors = load_file(pair[3])
    tensors["head.weight"] *= 1e38
    save_file(tensors, pair[3])
    picture, report = tmp_path / "x.png", tmp_path / "r.json"
    assert run(monkeypatch, "sample", *pair, "--sampler", sampler, "--draft-len", "2", "--out", str(picture)) == 1
    assert "DEFECT non-finite values in target.logits" in capsys.readouterr().err
    assert not picture.exists()
    assert run(monkeypatch, "verify", *pair, "--draft-len", "2", "--seeds", "0", "--json", str(report)) == 1
    assert json.loads(report.read_text())["verdict"] == "DEFECT"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mutants", "--only", ","], "only=: names no mutant"),
        (["mutants", "--seed", "99999999999999999999"], "seed=99999999999999999999: must lie in 0..2^63-1"),
        (["verify", "--models", "d16-d36"], "models=d16-d36: draft and target must have the same patch_nums"),
        (["verify", "--models", "digits_close"], "models=digits_close: is none of digits, digits-close, digits-code, "),
        (["verify", "--models", "d17-d30"], "models=d17-d30: must be digits, digits-bits, or DRAFT-TARGET of d16"),
        (["verify", "--patch-nums", "1,2,3"], "patch_nums=1,2,3: says what a checkpoint file does not tell"),
        (["verify", "--cover", "--seeds", "7"], "seeds=7: is what --cover, a design with settings and requests of its"),
        (["verify", "--cover", "--images", "3"], "images=3: is what --cover, a design with"),
        (["verify", "--cover", "--draft-len", "3"], "draft_len=3: is what --cover, a design with"),
        (["verify", "--cover", "--noise", "batch", "--max-nats", "1"], "noise=batch: is what --cover, a design with"),
    ],
)
def test_what_could_not_work_is_refused_before_the_work(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_design_takes_what_it_reads():
    def of(record: type, **typed: object) -> Any:
        return record(**typed, given=frozenset(typed), typed=frozenset(typed))

    images = of(VerifyImages, seeds="7")
    decoding = of(VerifyDecoding, draft_len="3", policy="greedy")
    check_design(VerifyImages(), decoding, published=True, has_loss=False)
    check_design(images, of(VerifyDecoding, draft_len="3", bonus=True), published=False, has_loss=True)
    check_design(
        replace(images, typed=frozenset()), VerifyDecoding(), published=False, has_loss=False
    )  # pyproject.toml
    for published, named in ((False, "draft_len=3"), (True, "seeds=7")):
        with pytest.raises(InputError, match=named):
            check_design(images if published else VerifyImages(), decoding, published, has_loss=False)
    compiled = replace(of(VerifyDecoding, compile=True), typed=frozenset())
    with pytest.raises(InputError, match="compile=True"):
        check_design(VerifyImages(), compiled, published=False, has_loss=True)


def test_what_a_project_says_gives_way_to_the_design(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "pyproject.toml").write_text('[tool.sdvar-harness.verify]\nseeds = "7"\nmodels = "d16-d36"\n')
    monkeypatch.chdir(tmp_path)
    for words, said in (([], "models=d16-d36: draft and target"), (["--seeds", "7"], "seeds=7: is what --cover")):
        assert run(monkeypatch, "verify", "--cover", *words) == 2
        assert capsys.readouterr().err.startswith(f"error: {said}")
