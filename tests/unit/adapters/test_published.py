"""Published-style checkouts under test: the right ones pass, and each mistake of the report is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from harness import Request, Settings, Terms, Verdict, Verification, load_digits, verify
from harness.adapters import published
from harness.adapters._recorder import SharedNumbers
from harness.decoders._factory import load_factory
from harness.errors import InputError
from harness.models._pair import ModelPair
from tests.helpers import LAYOUTS, Layout, tiny, verify_here
from tests.published.checkout import make

SMALL = tiny(Layout((1, 2, 3, 4)))
TWO = Request((0, 1), 0)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkouts")


def settings(checkout: Path, **options: object) -> Settings:
    return Settings("", False, "", (("checkout", str(checkout)), *((n, str(v)) for n, v in options.items())))


def run(
    kind: str, checkout: Path, models: ModelPair = SMALL, request: Request = TWO, **options: object
) -> Verification:
    sequential = kind == "var"
    factory = load_factory(f"published:{kind}")
    return verify_here(models, factory, [settings(checkout, **options)], [request], sequential=sequential)


PUBLISHED = [name for name in LAYOUTS if name != "one-scale"]  # published code divides by the number of scales less one


@pytest.mark.parametrize("layout", [LAYOUTS[name] for name in PUBLISHED], ids=PUBLISHED)
def test_a_right_sampler_is_identical_on_every_layout(shelf: Path, layout: Layout):
    assert run("var", make(shelf, "var"), tiny(layout)).verdict is Verdict.IDENTICAL


RIGHT = [
    ("code", "code", {}),
    ("code", "code", {"refiner": "draft", "exit_num": 1}),
    ("sdvar-test3", "sdvar", {"entry_num": 2}),
    ("sdvar-test3", "sdvar", {"entry_num": 0, "sd_mask": 0}),
    ("sdvar-parallel", "sdvar", {"gamma": 3}),
    ("sdvar-parallel", "sdvar addparam-th", {"gamma": 2, "similarity_threshold": 0.0}),
    ("sdvar-parallel", "sdvar addparam-th", {"gamma": 9, "similarity_threshold": 0.3}),
]


@pytest.mark.parametrize(("kind", "checkout", "options"), RIGHT)
@pytest.mark.parametrize("order", ["image", "batch"])
def test_the_right_variants_are_consistent(shelf: Path, kind: str, checkout: str, options: dict, order: str):
    request = Request((0, 1, 2), 3, top_k=5, top_p=0.9, order=order)  # type: ignore[arg-type]
    result = run(kind, make(shelf, *checkout.split()), request=request, **options)
    handed_over = options.get("entry_num") != 0
    assert result.verdict is (Verdict.CONSISTENT if handed_over else Verdict.INCONCLUSIVE), result.first_divergence
    assert result.settings[0].total("defects") == 0


MISTAKES = [
    ("position-offset", "positions"),
    ("doubled-last", "condition"),
    ("own-tokens", "query"),
    ("mask-corner", "mask"),
    ("mask-causal", "mask"),
    ("caches-emptied", "mask or cache"),
    ("alias", "f_hat"),
    ("double-update", "f_hat"),
    ("start-token", "crash"),
    (
        "own-tokens transposed",
        "crash",
    ),  # behind a scale that has as many tokens as channels: the first line all the same
    ("repair-query", "crash"),
    ("repair-split", "crash"),
]


@pytest.mark.parametrize(("mistakes", "component"), MISTAKES)
def test_a_mistake_of_the_report_names_its_component(shelf: Path, mistakes: str, component: str):
    checkout = make(shelf, "sdvar", "addparam-th", *mistakes.split())
    result = run("sdvar-parallel", checkout, gamma=2, similarity_threshold=0.0)
    assert result.verdict is Verdict.DEFECT
    assert result.first_divergence is not None
    assert result.first_divergence.component == component, result.first_divergence


def test_a_loop_that_stops_leaves_an_unfinished_image(shelf: Path):
    result = run("sdvar-parallel", make(shelf, "sdvar", "loop-stops"), gamma=3)
    assert result.first_divergence is not None
    assert "made final 0 times" in str(result.first_divergence)


def test_the_recorded_hand_off_is_wrong_at_its_entry_scale(shelf: Path):
    result = run("sdvar-test3", make(shelf, "sdvar", "entry-raw"), entry_num=2)
    assert result.first_divergence is not None
    assert (result.first_divergence.component, result.first_divergence.scale) == ("head", 2)


@pytest.mark.parametrize("mistake", ["refine-causal", "refine-emptied"])
def test_a_refiner_without_its_prefix_is_wrong(shelf: Path, mistake: str):
    result = run("code", make(shelf, "code", mistake), exit_num=2)
    assert result.verdict is Verdict.DEFECT


@pytest.mark.parametrize("mistake", ["flat-guidance", "wrong-positions", "most-likely", "stops-early"])
def test_a_wrong_sequential_sampler_is_wrong(shelf: Path, mistake: str):
    assert run("var", make(shelf, "var", mistake)).verdict is Verdict.DEFECT


@pytest.mark.parametrize(("kind", "checkout"), [("var", "var"), ("code", "code"), ("sdvar-test3", "sdvar")])
def test_the_codes_own_generator_gives_the_same_tokens(shelf: Path, kind: str, checkout: str):
    request = Request((0, 1), 5, order="batch")
    result = run(kind, make(shelf, checkout), request=request, numbers="own")
    assert result.settings[0].total("defects") == 0
    if kind == "var":
        assert result.verdict is Verdict.IDENTICAL


def test_a_generator_out_of_step_is_found(shelf: Path):
    request = Request((0, 1), 5, order="batch")
    right, wrong = (make(shelf, "code", *mistakes) for mistakes in ((), ("out-of-step",)))
    tokens = [decoded(each, request, numbers="own", exit_num=2) for each in (right, wrong)]
    assert not torch.equal(*tokens)
    assert torch.equal(tokens[0], decoded(right, request, exit_num=2))


def decoded(checkout: Path, request: Request, **options: object) -> torch.Tensor:
    decoder = load_factory("published:code")(SMALL, settings(checkout, **options))
    return decoder.decode(request, SMALL.noise(request)).tokens_BL


def test_more_smooth_reads_its_second_numbers(shelf: Path):
    request = Request((0, 1), 1, more_smooth=True, order="batch")
    decoder = load_factory("published:var")(SMALL, settings(make(shelf, "var")))
    own = load_factory("published:var")(SMALL, settings(make(shelf, "var"), numbers="own"))
    one, other = (each.decode(request, SMALL.noise(request)) for each in (decoder, own))
    assert torch.equal(one.tokens_BL, other.tokens_BL)
    assert torch.equal(one.f_hat_BCPP, other.f_hat_BCPP)


@pytest.mark.parametrize("own", ["exponential", "multinomial"])
def test_the_first_draw_of_a_scale_is_its_tokens_and_the_next_that_of_more_smooth(own: str):
    request = Request((0, 1), 1, more_smooth=True, order="batch")
    noise, (l, V) = SMALL.noise(request), (SMALL.pyramid.tokens(1), SMALL.target.config.V)
    E_BlV, smooth_BlV = (noise.exponential(1, stream, "target") for stream in ("token", "smooth"))
    law_NV = torch.rand(2 * l, V, generator=torch.Generator().manual_seed(0))
    with SharedNumbers(noise, request, SMALL.pyramid, lambda: "target"):
        if own == "exponential":
            idx_N = (law_NV / torch.empty_like(law_NV).exponential_()).argmax(-1)
        else:
            idx_N = torch.multinomial(law_NV, 1)[:, 0]
        after_BlV = torch.empty(2, l, V).exponential_()
    assert torch.equal(idx_N, (law_NV / E_BlV.reshape(2 * l, V)).argmax(-1))
    assert torch.equal(after_BlV, smooth_BlV)


def test_building_and_decoding_leave_nothing_behind(shelf: Path):
    before, path, modules = torch.get_rng_state(), list(sys.path), set(sys.modules)
    multinomial, exponential = torch.multinomial, torch.Tensor.exponential_
    run("sdvar-parallel", make(shelf, "sdvar"))
    assert torch.equal(torch.get_rng_state(), before)
    assert sys.path == path
    assert not {name for name in set(sys.modules) - modules if name.partition(".")[0] in ("models", "dist")}
    assert torch.multinomial is multinomial
    assert torch.Tensor.exponential_ is exponential
    assert not list(make(shelf, "sdvar").rglob("__pycache__"))


def test_five_lines_put_a_sampler_under_test(shelf: Path):
    checkout = make(shelf, "var")  # here: a decoder's process may not write there

    def factory(models: ModelPair, settings: Settings) -> object:
        code = published(checkout, models)
        return code.sampler(code.target.autoregressive_infer_cfg)

    result = verify(SMALL, factory, [Settings()], [Request((0, 1), 0)], terms=Terms(sequential=True))
    assert result.verdict is Verdict.IDENTICAL


BAD = [
    ("var", "var", ("no-class",), {}, "models/__init__.py:14 cannot be imported .*cannot import name 'VAR'"),
    ("var", "var", ("other-signature",), {}, r"has VAR.autoregressive_infer_cfg\(batch\), which takes no B, label_B"),
    ("var", "var", ("needs-package",), {}, "models/__init__.py:8 needs the package a_package_that_nobody_has"),
    ("var", "var", ("exits",), {}, r"models/__init__.py:11 exits when it is imported \(status 3\)"),
    ("sdvar-test3", "var", (), {}, "models/var.py has no SDVAR"),
    ("sdvar-parallel", "sdvar", ("no-method",), {}, "has no Main.sdvar_autoregressive_infer_cfg_parallel_v1"),
    ("sdvar-parallel", "sdvar", (), {"similarity_threshold": 0.5}, "takes no similarity_threshold"),
    ("sdvar-parallel", "sdvar", (), {"gama": 2}, "option=gama=2: is not an option of this sampler; pass one of gamma"),
    ("sdvar-parallel", "sdvar", (), {"gamma": "two"}, r"gamma=two: must be a whole number in 1\.\."),
    ("sdvar-test3", "sdvar", ("ten-scales",), {}, "SDVAR in models/var.py has its scales built in: masks of 680"),
    ("var", "var", (), {"numbers": "own"}, "noise=image: published code draws from one generator"),
    ("code", "code", (), {"refiner": "me"}, "refiner=me: must be target or draft"),
]


@pytest.mark.parametrize(("kind", "checkout", "mistakes", "options", "said"), BAD)
def test_bad_input_is_one_line_that_names_file_and_name(shelf, kind, checkout, mistakes, options, said):
    with pytest.raises(InputError, match=said) as error:
        run(kind, make(shelf, checkout, *mistakes), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("folder", "said"), [("nowhere", "no such folder"), (".", "holds no models/var.py")])
def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, folder: str, said: str):
    with pytest.raises(InputError, match=f"checkout=.*: {said}"):
        run("var", tmp_path / folder)


def test_a_dtype_that_published_code_cuts_is_refused(shelf: Path):
    with pytest.raises(InputError, match="dtype=float64: published code casts its logits to float32"):
        run("var", make(shelf, "var"), SMALL.to("cpu", torch.float64))


@pytest.mark.parametrize(("kind", "checkout"), [("var", "var"), ("code", "code"), ("sdvar-parallel", "sdvar")])
def test_ten_scales_in_a_process_of_its_own(shelf: Path, kind: str, checkout: str):
    terms = Terms(sequential=kind == "var")
    result = verify(
        load_digits(), f"published:{kind}", [settings(make(shelf, checkout))], [Request((7,), 0)], terms=terms
    )
    assert result.verdict is (Verdict.IDENTICAL if kind == "var" else Verdict.CONSISTENT)


def test_filters_by_scale_are_refused(shelf: Path):
    """Published code has one filter for all scales: without one its tokens would look wrong."""
    request = Request((0, 1), 0, filters=((2, 0.0),) * SMALL.pyramid.S)
    decoder = load_factory("published:var")(SMALL, settings(make(shelf, "var")))
    with pytest.raises(InputError, match="are by scale, and published code has one filter for all"):
        decoder.decode(request, SMALL.noise(request))
