"""Files of weights as people have them: loaded bit for bit, or refused as what they are (docs/checkpoints.md)."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.errors import InputError
from harness.models.var.checkpoint import load_autoencoder, load_transformer
from tests.docs.pages import ROOT
from tests.helpers import Layout, random_transformer, transformer_config
from tests.unit.models.made_files import (
    CLASSED,
    NETWORKS_IN_TWO,
    NO_NORM,
    OPTIMIZER,
    POINTER,
    Maker,
    T,
    V,
    Weights,
    archive,
    cut,
    cyclic,
    flipped,
    floating,
    moved,
    nested,
    npz,
    one_file,
    one_shard,
    prefixed,
    safetensors,
    saved,
    script,
    several_files,
    sharded,
    state_dict,
    without_sums,
    written,
    zipped,
)

PAGE = ROOT / "docs" / "checkpoints.md"


# What a file is -> files of that kind, each with words of what is said as it is loaded, or of the refusal.
LOADED: dict[str, tuple[list[tuple[Maker, str]], Weights]] = {
    "a state dict in `.pth`, `.pt`, `.bin`, `.ckpt` or `.safetensors`, under any name": ([
        (saved(T), ""), (saved(T, "a.safetensors"), ""), (safetensors(T), ""), (safetensors(T, "a.pth"), ""),
        (saved(T, _use_new_zipfile_serialization=False), ""), (saved(collections.OrderedDict(T), "a.bin"), ""),
        (without_sums, ""),
    ], T),
    "a trainer's file: the network within mappings of anything": ([
        (saved({"state_dict": T, "epoch": 3}), "taken from state_dict"),
        (saved({"model": T, "optimizer": OPTIMIZER}), "taken from model"),
        (saved({"args": {"depth": 2}, "trainer": {"var_wo_ddp": T, "vae_local": V, "opt": OPTIMIZER}}),
         "taken from trainer.var_wo_ddp"),
        (saved({"nets": [{"step": torch.tensor(3)}, (T,)]}), "taken from nets.1.0"),
        (saved(nested(T, 20)), "taken from in.in.in"), (saved(cyclic()), "taken from model"),
        (saved({"state_dict": prefixed("var.", T), "callbacks": {}}, "last.ckpt"), "taken from state_dict.var"),
    ], T),
    "names that share a prefix, or have those of PyTorch's wrappers": ([
        (saved(prefixed("module.", T)), "taken from module"),
        (saved(prefixed("ema_model.", T)), "taken from ema_model"),
        (saved(prefixed("\x1b[31m\n.", T)), "taken from \\x1b[31m"),
        (saved(prefixed("_orig_mod.", T)), "_orig_mod taken out of its names"),
        (saved(prefixed("module._orig_mod.", T)), "taken from module; _orig_mod"),
        (saved({re.sub(r"(blocks\.\d)", r"\1._fsdp_wrapped_module", key): t for key, t in T.items()}),
         "_fsdp_wrapped_module taken out of its names"),
    ], T),
    "transformer and VQ-VAE in one mapping": ([
        (saved({**prefixed("var.", T), **prefixed("vae.", V)}), "taken from var; 144 other tensors beside it"),
        (saved({**T, **prefixed("vae_proxy.0.", V)}), "144 other tensors beside it"),
    ], T),
    "one network twice, with the same numbers": ([
        (saved({"model": T, "ema": {key: tensor.clone() for key, tensor in T.items()}}), "taken from model"),
    ], T),
    "a folder with an index and shards, or with one file of weights": ([
        (sharded(), "2 shards"), (sharded(suffix="bin"), "2 shards"), (one_file, ""),
        (lambda folder: sharded()(folder) / "model.safetensors.index.json", "2 shards"),
    ], T),
    "float16, bfloat16 and float8 weights, widened to float32": ([
        (saved(floating(Tensor.half)), ""), (safetensors(floating(Tensor.bfloat16)), ""),
        *((saved(floating(lambda t, d=d: t.to(d))), "") for d in (torch.float8_e4m3fn, torch.float8_e5m2)),
    ], {}),
    "float64 weights, rounded to float32": ([
        (saved(floating(Tensor.double)), ""),
        (saved(floating(lambda t: t.double() * (1 + 1e-12))), "rounded from float64"),
    ], T),
    "a buffer that nothing reads, whatever it holds: the mask, counts of codes": ([
        (saved(moved({}, ("attn_bias_for_masking",))), ""),
        (saved(moved({"attn_bias_for_masking": T["attn_bias_for_masking"].clamp_min(-65504.0)})), ""),
        (saved(moved({"attn_bias_for_masking": T["attn_bias_for_masking"][0, 0].isfinite()})), ""),
        (saved(moved({"attn_bias_for_masking": torch.eye(3).to_sparse()})), ""),
        (saved(moved({"attn_bias_for_masking": torch.eye(3).to("meta")})), ""),
    ], T),
    "parameters, views of larger tensors, other strides, tensors that share memory": ([
        (saved({key: torch.nn.Parameter(t) if t.is_floating_point() else t for key, t in T.items()}), ""),
        (saved({key: t.t().contiguous().t() if t.dim() == 2 else t for key, t in T.items()}), ""),
        (saved(moved({"head.weight": torch.stack((T["head.weight"], T["head.weight"]))[1]})), ""),
    ], T),
}  # fmt: skip
LOADED_VAES: dict[str, tuple[list[tuple[Maker, str]], Weights]] = {
    "a VQ-VAE for decoding alone, also with a part of what encoding needs": ([
        (saved(moved({}, tuple(k for k in V if k.startswith(("encoder.", "quant_conv."))), V)), ""),
        (saved(moved({}, tuple(k for k in V if k.startswith("encoder.")), V)), "not needed: quant_conv"),
        (saved(moved({}, ("quant_conv.weight", "quant_conv.bias"), V)), "not needed: encoder"),
    ], V),
    "a VQ-VAE in a trainer's file": ([
        (saved({"trainer": {"vae_wo_ddp": V, "vae_ema": V}}), "taken from trainer.vae_wo_ddp"),
        (saved(prefixed("module.", V)), "taken from module"),
    ], V),
}  # fmt: skip
REFUSED: dict[str, list[tuple[Maker, str]]] = {
    "two networks that fit": [
        (saved(NETWORKS_IN_TWO), "holds 2 networks that fit: model, ema; pass --target {path}::model"),
        (saved({**T, **prefixed("ema.", state_dict(seed=5))}), "2 networks that fit: ., ema; pass --target {path}::."),
    ],
    "no l2-norm, so that no tensor tells the number of heads": [
        (saved(NO_NORM), "does not tell how many heads its attention of width 16 has"),
    ],
    "no `lvl_1L`, and a pyramid that is not known": [
        (saved(moved({}, ("lvl_1L",))), "no known pyramid has S=3 scales and L=14 positions; pass --patch-nums"),
    ],
    "a missing, unknown or mis-shaped tensor": [
        (saved(moved({}, ("blocks.1.attn.scale_mul_1H11",))), "1 tensors do not fit: missing blocks.1.attn.scale_mul"),
        (saved(moved({"rope.freqs": torch.rand(3)})), "unknown rope.freqs; where nothing reads them, save it without"),
        (saved(moved({"head.bias": torch.zeros(2)})), "shape of head.bias is (2,), not (11,)"),
        (saved(moved({"head.bias": torch.zeros(11, dtype=torch.int8)})), "no dense tensor of numbers that float"),
        (saved(moved({"head.weight": T["head.weight"].to_sparse()})), "no dense tensor of numbers that float"),
        (saved({key.replace("mat_qkv", "qkv"): t for key, t in T.items()}), "4 tensors do not fit: missing"),
        (saved(moved({f"blocks.{'9' * 5000}.x": torch.zeros(1)})), "1 tensors do not fit: unknown blocks.999"),
    ],
    "a derived tensor of other values": [
        (saved(moved({"lvl_1L": T["lvl_1L"] * 0})), "lvl_1L counts [14] are not squares"),
        (saved(moved({"blocks.0.attn.zero_k_bias": torch.ones(16)})), "zero_k_bias does not hold its derived value"),
        *((saved(moved({name: change(T[name])})), f"{name} is no dense tensor of real numbers")
          for name in ("lvl_1L", "blocks.0.attn.zero_k_bias")
          for change in (Tensor.to_sparse, lambda t: t.to("meta"), lambda t: t + 1j)),
    ],
    "another kind of network, or none": [
        (saved(V), "holds a VQ-VAE, no VAR transformer"),
        (saved({"epoch": 3}), "holds no VAR transformer, which has pos_1LC, but a mapping of epoch"),
        (saved([torch.zeros(1)]), "but a list"), (saved({"w": torch.zeros(1)}), "but a mapping of w"),
    ],
    "one shard of several, or a shard that is missing": [
        (one_shard, "is shard 2 of 2, not a whole network; pass the folder"),
        (written('{"weight_map": {"x": "' + "a" * 5000 + '"}}', "a.index.json"), "aaa, which is not there"),
        (written('{"weight_map": {"x": ""}}', "a.index.json"), "its weight_map names no files beside it"),
        (sharded(lost=1), "names model-00001-of-00002.safetensors, which is not there"),
        (several_files, "is a folder of several files of weights (draft.pth, target.pth)"),
    ],
    "a file whose reading would execute code": [
        (saved({"args": argparse.Namespace(depth=2), "trainer": T}), f"needs argparse.Namespace, {CLASSED}"),
        (saved({"epoch": np.float64(7.5), "trainer": T}), "multiarray.scalar"),
        (saved(torch.nn.Sequential(torch.nn.Linear(2, 2))), f"torch.nn.modules.linear.Linear, {CLASSED}"),
        (saved(argparse.Namespace(a=1), _use_new_zipfile_serialization=False), f"needs argparse.Namespace, {CLASSED}"),
        (written(pickle.dumps({"a": np.zeros(3)})), "is a pickle, not a file of torch.save, and needs numpy"),
        (written(pickle.dumps([1, 2])), "is a pickle, not a file of torch.save;"),
        (saved(T, pickle_protocol=4), "is a file of torch.save in pickle protocol 4, of which PyTorch reads nothing"),
    ],
    "a git-lfs pointer": [
        (written(POINTER), "is a git-lfs pointer: the file itself is not here; git lfs pull"),
        (written(POINTER, "a.safetensors"), "is a git-lfs pointer"),
    ],
    "a web page, or what a server says": [
        (written("<!doctype html><html><body>Sign in"), "is a web page"), (written("\n <HTML>"), "is a web page"),
        (written('<?xml version="1.0"?><Error/>', "a.safetensors"), "is an XML text that begins with '<?xml"),
        (written('{"error": "Not Found"}'), "is a JSON text that begins with '{\"error\""),
        (written("Entry not found"), "is a text that begins with 'Entry not found'"),
    ],
    "an archive, or another program's file": [
        (npz, "is a NumPy archive (.npz)"), (archive, "is a tar archive; unpack it"),
        (zipped, "is a zip archive of var.safetensors, with no data.pkl of torch.save inside; unpack it"),
        (script, "is a TorchScript archive: a program"), (written(b"\x1f\x8b\x08rest"), "is compressed by gzip"),
        (written(b"\x89HDF\r\n\x1a\nrest"), "is an HDF5 file"),
        (written(b"SQLite format 3\0"), "is an SQLite database"),
        (written(bytes(range(128, 256))), "is of a format that its first bytes do not tell"),
    ],
    "a file of torch.save with a byte that is another one than when it was written": [
        (flipped, "is a file of torch.save that is damaged (Bad CRC-32 for file 'a/data/"),
    ],
    "a file that is cut short, empty, or never arrived": [
        (cut(saved(T)), "is a zip archive, as of torch.save, that is cut short"),
        (cut(safetensors(T)), "is a safetensors file that is cut short: "),
        (cut(saved(T, _use_new_zipfile_serialization=False), 0.9), "is a file of torch.save that is damaged or cut"),
        (written(b""), "is empty"), (written(bytes(1000)), "begins with zeros alone"),
    ],
}  # fmt: skip
REFUSED_VAES: dict[str, list[tuple[Maker, str]]] = {
    "a VQ-VAE that could not decode": [
        (saved({k: t[:24] if k.startswith("decoder.up.0.") and t.shape[0] == 32 else t for k, t in V.items()}),
         "are not multiples of the 32 groups of its norms"),
        (saved(moved({"quantize.embedding.weight": torch.zeros(0, 3)}, of=V)), "embedding.weight holds nothing"),
    ],
}  # fmt: skip
CASES = [(kind, i, one) for kind, (some, _) in (LOADED | LOADED_VAES).items() for i, one in enumerate(some)]
WRONG = [(kind, i, one) for kind, some in (REFUSED | REFUSED_VAES).items() for i, one in enumerate(some)]


def in_short(value: object) -> str:
    return "" if isinstance(value, tuple) else str(value)[:40]


def load(path: Path | str, kind: str, **how: object):
    vaes = kind in LOADED_VAES or kind in REFUSED_VAES
    return load_autoencoder(path) if vaes else load_transformer(path, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "number", "case"), CASES, ids=in_short)
def test_what_is_loaded_is_loaded_bit_for_bit(kind: str, number: int, case: tuple[Maker, str], tmp_path: Path):
    make, said = case
    path = make(tmp_path)
    network, words = load(path, kind)
    assert (said in words) if said else words == "", words
    expected = (LOADED | LOADED_VAES)[kind][1]
    if not expected:  # rounded ones, as they are in the file
        expected = floating(Tensor.bfloat16) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    for name, weight in network.weights.items():
        assert weight.dtype == torch.float32
        assert not weight.requires_grad
        assert torch.equal(weight, expected[name].float()), name
        assert weight.untyped_storage().nbytes() == weight.numel() * 4, name


@pytest.mark.parametrize(("kind", "number", "case"), WRONG, ids=in_short)
def test_what_is_refused_is_called_what_it_is(kind: str, number: int, case: tuple[Maker, str], tmp_path: Path):
    make, said = case
    path = make(tmp_path)
    with pytest.raises(InputError) as caught:
        load(path, kind)
    text = str(caught.value)
    assert said.replace("{path}", str(path)) in text
    assert text.startswith(("target=", "vae="))
    assert "truncated" not in text
    assert "\n" not in text


def test_the_page_lists_every_kind_and_what_comes_of_it():
    rows = re.findall(r"^\| (.+?) \| (loaded|refused|asked)", PAGE.read_text(), re.M)
    asked = list(REFUSED)[:3]
    outcome = dict.fromkeys(LOADED | LOADED_VAES, "loaded") | dict.fromkeys(REFUSED | REFUSED_VAES, "refused")
    assert dict(rows) == outcome | dict.fromkeys(asked, "asked")
    assert len(rows) == len(outcome)


@pytest.mark.parametrize(("entry", "seed"), [("model", 0), ("ema", 5)])
def test_the_network_that_is_named_is_taken(entry: str, seed: int, tmp_path: Path):
    path = saved({"epoch": {"nets": NETWORKS_IN_TWO}})(tmp_path)
    for name in (entry, f"epoch.nets.{entry}"):
        network, words = load_transformer(f"{path}::{name}")
        assert words == f"target a.pth: taken from epoch.nets.{entry}"
        assert torch.equal(network.weights["head.weight"], state_dict(seed=seed)["head.weight"])
    with pytest.raises(InputError, match="has no VAR transformer named enma: there is epoch"):
        load_transformer(f"{path}::enma")


def test_a_file_whose_name_has_the_sign_of_an_entry_is_that_file(tmp_path: Path):
    path = saved(T, "a::b")(tmp_path)
    assert load_transformer(path)[1] == ""


def test_a_network_without_blocks_is_none(tmp_path: Path):
    path = saved({key: tensor for key, tensor in T.items() if not key.startswith("blocks.")})(tmp_path)
    with pytest.raises(InputError, match=r"depth cannot be inferred: no blocks\.0\.\* is there"):
        load_transformer(path, heads=2)


def test_numbers_of_heads_are_taken_and_checked(tmp_path: Path):
    plain, no_norm = saved(T, "b.pth")(tmp_path), saved(NO_NORM)(tmp_path)
    for heads in (1, 2, 4, 16):
        assert load_transformer(no_norm, heads=heads)[0].config == transformer_config(Layout(l2_norm=False, H=heads))
    assert load_transformer(plain, heads=2)[0].config.H == 2
    for path, heads, said in ((no_norm, 3, "D=16 is not a multiple of H=3 heads"), (plain, 4, "has 2 heads, not 4")):
        with pytest.raises(InputError, match=said):
            load_transformer(path, heads=heads)


def test_a_file_may_change_while_its_weights_are_in_use(tmp_path: Path):
    path = safetensors(T)(tmp_path)
    network, _ = load_transformer(path)
    with path.open("r+b") as stream:
        stream.truncate(8)
        stream.write(os.urandom(100_000))
    assert torch.equal(network.weights["head.weight"], T["head.weight"])


MEASURED = """
import sys
from harness.models.var.checkpoint import load_transformer
def kib(word):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(word))
load_transformer(sys.argv[1])  # what is needed once: code, threads
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
network = load_transformer(sys.argv[2])
print(1024 * (kib("VmHWM") - before))
"""


@pytest.mark.parametrize(("make", "dtype"), [(saved, torch.float32), (safetensors, torch.float16)])
def test_loading_takes_twice_the_file_and_one_tensor(make: Callable[..., Maker], dtype: torch.dtype, tmp_path: Path):
    large = random_transformer(transformer_config(Layout(D=512)), 0)
    small = make({**T})(tmp_path)
    (tmp_path / "large").mkdir()
    levels = {"lvl_1L": T["lvl_1L"]}
    stored = {key: tensor.to(dtype) for key, tensor in large.weights.items()}
    path = make({**stored, **levels})(tmp_path / "large")
    words = [sys.executable, "-c", MEASURED, str(small), str(path)]
    # the least of three: the system counts pages in batches, some megabytes late or early; a third copy is in all
    runs = [subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT) for _ in range(3)]
    peak = min(int(run.stdout) for run in runs)
    one_tensor = max(tensor.nbytes for tensor in stored.values())  # as it lies in the file, while it is converted
    file = path.stat().st_size
    assert peak <= 2 * file + one_tensor + 2**22, peak / file  # and what an allocator rounds up; a third copy is beyond
    assert file > one_tensor + 2**22 + 2**20


def test_what_does_not_fit_is_passed_over(tmp_path: Path):
    path = saved({"broken": moved({}, ("head.bias",)), "right": T})(tmp_path)
    assert load_transformer(path)[1] == "target a.pth: taken from right"
