"""Pictures with captions: enlarged without a blur, and provenance in the file."""

from __future__ import annotations

import io

import numpy
import pytest
import torch
from PIL import Image

from harness.protocol._request import Request
from harness.report.samples import GAP, LEAST_SIDE, MOST_COLUMNS, PAPER, Sample, png_grid, samples_of


def opened(rows: list[list[Sample]], **about: str) -> Image.Image:
    return Image.open(io.BytesIO(png_grid(rows, about)))


def picture(side: int, **of: int) -> Sample:
    generator = torch.Generator().manual_seed(side)
    return Sample(torch.rand(3, side, side, generator=generator), **{"label": 3, "seed": 7, **of})


@pytest.mark.parametrize(("side", "factor"), [(32, 4), (6, 22), (256, 1)])
def test_every_pixel_becomes_a_square_of_equal_ones(side: int, factor: int):
    one = picture(side)
    shown_HW3 = torch.from_numpy(numpy.asarray(opened([[one]])).copy())
    image_hw3 = shown_HW3[GAP : GAP + side * factor, GAP : GAP + side * factor]
    due_hw3 = (one.image_3hw * 255).round().to(torch.uint8).permute(1, 2, 0)
    assert side * factor >= LEAST_SIDE
    assert torch.equal(image_hw3, due_hw3.repeat_interleave(factor, 0).repeat_interleave(factor, 1))


def under(grid: Image.Image) -> torch.Tensor:
    return torch.from_numpy(numpy.asarray(grid).copy())[GAP + 128 :]


def test_label_and_seed_stand_under_it():
    plain, other_seed, other_label = (under(opened([[picture(32, **of)]])) for of in ({}, {"seed": 8}, {"label": 4}))
    assert not any(torch.equal(*of) for of in ((plain, other_seed), (plain, other_label), (other_seed, other_label)))
    assert plain[-1, -1].tolist() == list(PAPER)
    assert int(plain.min()) < 60  # dark letters on light paper


def test_a_large_seed_is_not_cut():
    wide = opened([[picture(32, seed=2**63 - 1)], [picture(32, seed=0)]])
    assert wide.size[0] > opened([[picture(32)]]).size[0]


def test_a_long_row_is_broken_and_shorter_rows_leave_paper():
    grid = opened([[picture(32)] * (MOST_COLUMNS + 1), [picture(32)]])
    assert grid.size[0] == MOST_COLUMNS * (128 + GAP) + GAP
    assert grid.convert("RGB").getpixel((GAP + 128 + GAP + 20, grid.size[1] - GAP - 40)) == PAPER


def test_what_made_them_travels_in_the_file():
    text = opened([[picture(32, label=1)], [picture(32, seed=9)]], command="sdvar-harness sample", note="Δ φ").text
    assert text == {"command": "sdvar-harness sample", "note": "Δ φ", "pictures": "label 1, seed 7; label 3, seed 9"}


def test_a_label_that_stands_twice_has_its_address():
    images = torch.zeros(2, 3, 4, 4)
    assert [p.caption for p in samples_of(Request((5, 6), 2), images)] == [["label 5", "seed 2"], ["label 6", "seed 2"]]
    twice = samples_of(Request((5, 5), 2, images=(0, 8)), images)
    assert [p.caption[2] for p in twice] == ["image 0", "image 8"]
