"""Stored budgets: they hold for fresh images, are tight, and only widen with a reason.

Long, since it is one list of what a file of budgets may hold.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from harness.errors import InputError
from harness.judge._verdict import Verdict
from harness.models._pair import random_pair
from harness.mutants.guidance import SWAPPED
from harness.protocol._decoder import Settings
from harness.protocol._request import Request
from harness.rounding import _budget as stored
from harness.rounding._budget import SHIPPED_BUDGETS, BudgetEntry, load_budgets, mode_of, save_budget
from harness.rounding._measure import budget_for, errors, measure_budget
from tests.helpers import Layout, command, decoder_factory, digits, tiny, verify_here, with_weight

MODELS = tiny(Layout((1, 2, 3)))
REQUEST = Request((0, 1), 0)
ENTRY = measure_budget(MODELS, (1,))


@pytest.mark.slow
def test_fresh_images_stay_within_the_stored_errors_and_near_them():
    models = digits()
    stored = next(entry for entry in load_budgets(SHIPPED_BUDGETS) if entry.mode == mode_of(models))
    for request in (Request((2, 5), 71), Request((9, 4), 72, cfg=4.0, top_k=50)):
        fresh = errors(models, request)
        for name in ("rows", "rows_rms", "f_hat"):
            assert getattr(stored, name) / 4 < getattr(fresh, name) < 1.4 * getattr(stored, name), name


def test_every_window_is_measured():
    assert (ENTRY.windows, ENTRY.images) == (6, 1)
    assert ENTRY.versions["torch"]


def test_a_mode_that_is_not_stored_is_measured(tmp_path: Path):
    store = tmp_path / "budgets.json"
    save_budget(ENTRY, store)
    assert "stored" in budget_for(MODELS, store).source
    others = [replace(MODELS, name="other"), MODELS.to("cpu", torch.float64)]
    for name in ("lvl_embed.weight", "head.weight", "blocks.0.attn.proj.bias"):
        others.append(replace(MODELS, target=with_weight(MODELS.target, name, lambda weight: weight * 1.01)))
    for name in ("quantize.embedding.weight", "quantize.quant_resi.qresi_ls.0.bias"):
        weights = {**MODELS.vae.weights, name: MODELS.vae.weights[name] * 1.01}
        others.append(replace(MODELS, vae=replace(MODELS.vae, weights=weights)))
    for other in others:
        assert "stored" not in budget_for(other, store).source
    assert "stored" not in budget_for(MODELS, tmp_path / "none.json").source


@pytest.mark.parametrize(
    ("dtype", "tf32", "convolution", "products"),
    [
        ("float32", False, False, "exact"), ("float32", True, True, "TF32"), ("float32", False, True, "mixed"),
        ("bfloat16", True, True, "TF32"), ("bfloat16", False, False, "exact"), ("float64", True, True, "exact"),
    ],
)  # fmt: skip
def test_tf32_is_part_of_a_mode_of_a_gpu(
    dtype: str, tf32: bool, convolution: bool, products: str, monkeypatch: pytest.MonkeyPatch
):
    on = {"tf32_matmul": tf32, "tf32_convolution": convolution}
    monkeypatch.setattr(stored, "precision", lambda: on)
    assert mode_of(MODELS)[-1] == "exact"  # a CPU has none
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(type(MODELS), "device", property(lambda models: torch.device("cuda")))
    assert mode_of(replace(MODELS, target=MODELS.target.to("cpu", getattr(torch, dtype))))[-2:] == (dtype, products)


@pytest.mark.slow
def test_a_random_pair_is_known_by_its_flag():
    pairs = [random_pair("d16-d16", seed=seed) for seed in (0, 7)]
    assert mode_of(pairs[0]) == mode_of(pairs[1])
    assert mode_of(pairs[0])[1] == "random"
    known = [mode_of(replace(pair, random=False))[1] for pair in pairs]
    assert len({"random", *known}) == 3


def test_fewer_images_replace_a_stored_budget_with_a_reason_only(tmp_path: Path):
    store = tmp_path / "budgets.json"
    save_budget(replace(ENTRY, images=11), store)
    with pytest.raises(InputError, match="has 1 images where the stored one has 11; measure as many"):
        save_budget(ENTRY, store)
    save_budget(ENTRY, store, "the others were wrong")
    assert load_budgets(store)[0].images == 1


@pytest.mark.parametrize("name", ["rows", "rows_rms", "f_hat"])
def test_a_stored_budget_widens_with_a_reason_only(name: str, tmp_path: Path):
    store = tmp_path / "budgets.json"
    save_budget(ENTRY, store)
    before = store.read_bytes()
    wider = replace(ENTRY, **{name: 1.001 * getattr(ENTRY, name)})
    with pytest.raises(InputError, match=r'must not widen .* without a reason .*; find out why, or pass --reason "…"'):
        save_budget(wider, store)
    assert store.read_bytes() == before
    save_budget(wider, store, "another kernel")
    assert load_budgets(store) == [replace(wider, reason="another kernel")]
    save_budget(ENTRY, store)  # narrower again: no reason needed
    assert load_budgets(store) == [ENTRY]


def test_a_failing_run_is_judged_by_the_stored_budget_and_leaves_it_alone(tmp_path: Path):
    store = tmp_path / "budgets.json"
    save_budget(ENTRY, store)
    before = store.read_bytes()
    result = verify_here(MODELS, SWAPPED, [Settings(2)], [REQUEST], budgets=store)
    assert result.verdict is Verdict.DEFECT
    assert result.budget == ENTRY.budget().guided(REQUEST.cfg, 1.0)
    assert store.read_bytes() == before


def test_a_slightly_wrong_target_exceeds_the_stored_budget(tmp_path: Path):
    store = tmp_path / "budgets.json"
    save_budget(ENTRY, store)
    bent = replace(MODELS, target=with_weight(MODELS.target, "head.weight", lambda weight: weight * 1.001))
    wrong = verify_here(MODELS, lambda _, s: decoder_factory()(bent, s), [Settings(2)], [REQUEST], budgets=store)
    assert wrong.verdict is Verdict.DEFECT
    assert verify_here(MODELS, decoder_factory(), [Settings(2)], [REQUEST], budgets=store).verdict is Verdict.IDENTICAL


def broken(values: dict[str, object]) -> str:
    return json.dumps({"entries": [{**vars(ENTRY), **values}]})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"entries": [1]}', broken({"rows": 0.0}), broken({"f_hat": -1.0}), broken({"extra": 1}),
     broken({"rows": float("inf")}), broken({"rows_rms": float("nan")})],
)  # fmt: skip
def test_a_damaged_file_is_refused(text: str, tmp_path: Path):
    store = tmp_path / "budgets.json"
    store.write_text(text)
    with pytest.raises(InputError, match=r"budgets=.*must hold entries of `sdvar-harness calibrate`"):
        load_budgets(store)


@pytest.mark.slow
def test_the_command_keeps_what_it_measured_and_verify_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    store, report = tmp_path / "budgets.json", tmp_path / "report.json"
    assert command(monkeypatch, "calibrate", "--batches", "1", "--into", str(store)) == 0
    assert "55 windows of 1 image against float64" in capsys.readouterr().out
    (entry,) = load_budgets(store)
    arguments = ("--seeds", "0:1", "--labels", "0", "--draft-len", "5", "--budgets", str(store), "--json", str(report))
    assert command(monkeypatch, "verify", *arguments) == 0
    document = json.loads(report.read_text())
    assert document["budget"] == vars(entry.budget().guided(1.5, 1.0))
    assert 0 < document["decode_seconds"] < document["seconds"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("calibrate", "--batches", "0"), "batches=0: must all be at least 1; pass --batches 1,2,8"),
        (("calibrate", "--into", "nowhere/b.json"), "into=nowhere/b.json: folder nowhere is not there"),
        (("verify", "--budgets", "none.json"), "budgets=none.json: is not there"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert command(monkeypatch, *arguments) == 2
    captured = capsys.readouterr().err.strip()
    assert captured.startswith(f"error: {said}")
    assert len(captured.splitlines()) == 1


def test_an_entry_states_its_mode():
    entry = BudgetEntry("m", "w", "NVIDIA H200", "float32", "TF32", 1.0, 0.5, 0.25, 3, 2, {"torch": "2.11"})
    budget = entry.budget()
    assert (budget.rows, budget.rows_rms, budget.f_hat) == (2.0, 1.0, 0.5)
    assert "stored (NVIDIA H200, float32 TF32, 3 windows)" in budget.source


WIDER = [(name, factor) for name in ("rows", "rows_rms", "f_hat") for factor in (1e3, 1e6)]


@pytest.mark.parametrize(("name", "factor"), WIDER)
@pytest.mark.parametrize("products", ["exact", "TF32", "bfloat16"])
def test_an_entry_that_its_dtype_cannot_explain_is_refused(name: str, factor: float, products: str):
    for entry, logit, f_hat in SHIPPED_SIZES:
        if products not in (entry.products, entry.dtype):
            continue
        entry.check_explained(logit, f_hat)
        wide = replace(entry, **{name: factor * getattr(entry, name)})
        said = rf"^budget \({entry.models}.*, {entry.dtype}, {entry.products}\) {name}=.*: must be at most .*; restore"
        with pytest.raises(InputError, match=re.sub(r"\(random weights\)", ".random weights.", said)):
            wide.check_explained(logit, f_hat)


def test_the_shipped_entries_keep_the_bound_with_room():
    """Half the bound and more is free: six times in all but the mean, which is bounded by the largest error."""
    assert len(SHIPPED_SIZES) == len(load_budgets(SHIPPED_BUDGETS))
    for entry, logit, f_hat in SHIPPED_SIZES:
        replace(entry, rows=6.8 * entry.rows, f_hat=7.9 * entry.f_hat).check_explained(logit, f_hat)


# largest logit before guidance and largest number in f_hat of one image, as `verify` finds them (CPU; H100)
SIZES = {"digits": (57.3, 1.06), "d16-d30 (random weights)": (4.91, 3.76)}
SHIPPED_SIZES = [(entry, *SIZES[entry.models]) for entry in load_budgets(SHIPPED_BUDGETS)]


@pytest.mark.parametrize(("name", "factor"), WIDER)
def test_a_file_that_is_too_wide_never_judges(
    name: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A decoder whose halves are swapped would be excused by it."""
    (entry,) = [entry for entry in load_budgets(SHIPPED_BUDGETS) if entry.mode == mode_of(digits())]
    store = tmp_path / "budgets.json"
    save_budget(replace(entry, **{name: factor * getattr(entry, name)}), store)
    options = ("--implementation", "tests.planted:halves", "--seeds", "0:1", "--labels", "0", "--draft-len", "5")
    assert command(monkeypatch, "verify", *options, "--budgets", str(store)) == 2
    assert f"float32, exact) {name}=" in capsys.readouterr().err


def test_calibrate_keeps_nothing_that_verify_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    store = tmp_path / "budgets.json"
    wide = replace(next(e for e in load_budgets(SHIPPED_BUDGETS) if e.mode == mode_of(digits())), rows=1.0)
    monkeypatch.setattr("harness.rounding.measure_budget", lambda models, batches, progress: wide)
    assert command(monkeypatch, "calibrate", "--batches", "1", "--into", str(store)) == 2
    assert "rows=1: must be at most" in capsys.readouterr().err
    assert not store.exists()


def test_a_number_of_a_thousand_digits_and_a_pipe_are_no_stored_budgets(tmp_path: Path):
    store = tmp_path / "budgets.json"
    save_budget(ENTRY, store)
    store.write_text(re.sub(r'"rows":[^,]*', f'"rows":{10**400}', store.read_text()))
    with pytest.raises(InputError, match="must hold entries of `sdvar-harness calibrate` with positive, finite errors"):
        load_budgets(store)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError) as caught:
        load_budgets(pipe)
    said = "no such file (there is a pipe); pass a file of `sdvar-harness calibrate`"
    assert str(caught.value) == f"budgets={pipe}: {said}"


def entry(**words: object) -> BudgetEntry:
    return replace(BudgetEntry("m", "w", "cpu", "float32", "exact", 1e-6, 5e-7, 1e-7, 6, 4, {}), **words)


@pytest.mark.parametrize(
    ("words", "name", "limit"),
    [
        # 256, 16 and 16 roundings of the largest logit (2); f_hat 16 roundings of the largest, at least 1
        ({}, "rows", 256 * 2.0**-23 * 2),
        ({"products": "TF32"}, "rows", 16 * 2.0**-10 * 2),
        ({"products": "mixed"}, "rows", 16 * 2.0**-10 * 2),
        ({"dtype": "bfloat16"}, "rows", 16 * 2.0**-7 * 2),
        ({"dtype": "bfloat16", "products": "TF32"}, "rows", 16 * 2.0**-7 * 2),
        ({"dtype": "float16"}, "rows", 16 * 2.0**-10 * 2),
        ({"dtype": "float64"}, "rows", 256 * 2.0**-23 * 2),
        ({"dtype": "autocast-bfloat16"}, "rows", 16 * 2.0**-7 * 2),
        ({"dtype": "autocast-float16", "products": "TF32"}, "rows", 16 * 2.0**-10 * 2),
        ({"dtype": "autocast-bfloat16"}, "f_hat", 16 * 2.0**-7),
        ({"dtype": "autocast-float16"}, "f_hat", 16 * 2.0**-10),
        ({}, "f_hat", 16 * 2.0**-23),
        ({"products": "TF32"}, "f_hat", 16 * 2.0**-10),
        ({"dtype": "bfloat16"}, "f_hat", 16 * 2.0**-23),
    ],
)
def test_an_entry_is_refused_from_where_its_dtype_explains_nothing(words: dict, name: str, limit: float):
    entry(**words, **{name: limit}).check_explained(2.0, 0.5)
    with pytest.raises(InputError) as caught:
        entry(**words, **{name: 1.01 * limit}).check_explained(2.0, 0.5)
    mode = ", ".join(entry(**words).mode)
    assert str(caught.value) == (
        f"budget ({mode}) {name}={1.01 * limit:.3g}: must be at most {limit:.3g}, all that rounding explains; "
        "restore the file, or calibrate again"
    )
    with pytest.raises(InputError):
        entry(**words, **{name: float("nan")}).check_explained(2.0, 0.5)


def test_a_large_f_hat_rounds_more_and_a_mean_is_never_above_the_largest():
    entry(f_hat=16 * 2.0**-23 * 3).check_explained(2.0, 3.0)
    entry(rows_rms=1e-6).check_explained(2.0, 1.0)
    with pytest.raises(InputError, match=r"rows_rms=1.01e-06: must be at most 1e-06"):
        entry(rows_rms=1.01e-6).check_explained(2.0, 1.0)


def test_a_budget_is_twice_what_was_measured_and_says_where_from():
    budget = entry().budget()
    assert (budget.rows, budget.rows_rms, budget.f_hat) == (2e-6, 1e-6, 2e-7)
    said = "2 × the reference's largest error against float64, stored (cpu, float32{}, 6 windows)"
    assert budget.source == said.format("")
    assert entry(products="TF32").budget().source == said.format(" TF32")


def test_a_stored_entry_is_replaced_for_a_reason(tmp_path: Path):
    store = tmp_path / "budgets.json"
    other = entry(device="another")
    for first in (other, entry()):
        save_budget(first, store, "a first one needs none")
    assert load_budgets(store) == [other, entry()]  # in the order of their modes, without a reason
    save_budget(entry(rows=0.9e-6, rows_rms=4e-7, images=5), store)  # tighter, from more images
    assert load_budgets(store)[1] == entry(rows=0.9e-6, rows_rms=4e-7, images=5)
    for name in ("rows", "rows_rms", "f_hat"):
        wider = entry(images=5, **{"rows": 0.9e-6, "rows_rms": 4e-7, name: 2e-6})
        with pytest.raises(InputError) as caught:
            save_budget(wider, store)
        assert str(caught.value) == (
            f"budget=m: must not widen the stored one without a reason (logits 9e-07 -> {wider.rows:.3g}); "
            'find out why, or pass --reason "…"'
        )
    with pytest.raises(InputError) as caught:
        save_budget(entry(rows=1e-7, rows_rms=1e-7, f_hat=1e-8), store)
    assert str(caught.value) == (
        'budget=m: has 4 images where the stored one has 5; measure as many, or pass --reason "…"'
    )
    save_budget(entry(rows=2e-6), store, "another kernel")
    assert load_budgets(store) == [other, entry(rows=2e-6, reason="another kernel")]


@pytest.mark.parametrize("name", ["rows", "rows_rms", "f_hat"])
@pytest.mark.parametrize("value", [0, -1e-9, float("nan"), float("inf"), "1e-6", None])
def test_an_error_that_is_none_is_refused(tmp_path: Path, name: str, value: object):
    store = tmp_path / "budgets.json"
    store.write_text(json.dumps({"entries": [asdict(entry()) | {name: value}]}))
    with pytest.raises(InputError) as caught:
        load_budgets(store)
    rule = "must hold entries of `sdvar-harness calibrate` with positive, finite errors"
    assert str(caught.value) == f"budgets={store}: {rule}; restore it, or delete it and calibrate again"


def test_a_fingerprint_tells_weights_apart_that_moments_do_not():
    """Two weights swapped within a tensor, and two tensors' names."""

    def swapped(weight: torch.Tensor) -> torch.Tensor:
        flat = weight.flatten()
        flat[[0, 1]] = flat[[1, 0]]
        return weight

    models = replace(MODELS, target=with_weight(MODELS.target, "head.weight", swapped))
    assert mode_of(models)[1] != mode_of(MODELS)[1]
    assert len(mode_of(MODELS)[1]) == 16
    assert mode_of(replace(MODELS, random=True))[1] == "random"
    moved = replace(MODELS, draft=with_weight(MODELS.draft, "head.weight", torch.zeros_like))
    assert mode_of(moved) == mode_of(MODELS)  # the draft's rounding is nobody's business
    assert mode_of(MODELS)[0] == "tiny"
    assert mode_of(MODELS)[2:] == ("cpu", "float32", "exact")
    assert mode_of(MODELS.in_mode("cpu", "autocast-float16"))[2:] == ("cpu", "autocast-float16", "exact")
