"""Random resized crops drawn for whole batches: timm's distribution, whatever the image, and timm's fallback."""

from dataclasses import dataclass
import math
import random

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp
from timm.data.transforms import RandomResizedCropAndInterpolation
import torch
from torchvision.transforms import RandomResizedCrop

from dcvit.crops import boxes, draw_crops, draw_flips

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SIZES = [(375, 500), (500, 375), (64, 64), (30, 300), (300, 30), (9, 400), (8, 8), (2, 3), (1, 1)]
MANY = 4000
sides = st.integers(1, 700)
scales = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair)))
ratios = st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(lambda pair: tuple(sorted(pair)))


def ours(height, width, count, *, seed=0, scale=SCALE, ratio=RATIO):
    crops = draw_crops(count, scale=scale, ratio=ratio, rng=np.random.default_rng(seed))
    return boxes(crops, np.full(count, height), np.full(count, width), ratio=ratio)


@dataclass
class Sized:
    """As much of a PIL image as timm looks at."""

    size: tuple[int, int]


def of_timm(height, width, count, monkeypatch):
    monkeypatch.setattr("timm.data.transforms.F.get_image_size", lambda image: image.size)
    random.seed(1)
    draw = RandomResizedCropAndInterpolation.get_params
    return np.array([draw(Sized((width, height)), SCALE, RATIO) for _ in range(count)])


def of_torchvision(height, width, count, monkeypatch):
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    return np.array(
        [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(count // 4)]
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("theirs", [of_timm, of_torchvision])
def test_boxes_are_distributed_as_theirs(theirs, size, monkeypatch):
    found, expected = ours(*size, MANY), theirs(*size, MANY, monkeypatch)
    if theirs is of_timm:  # which gives boxes of no pixels, and fails on them
        expected = expected[(expected[:, 2:] > 0).all(axis=1)]
    # top, left, height, width, and what a wrong pairing of them would show
    for number, view in enumerate(
        (
            lambda box: box[:, 0],
            lambda box: box[:, 1],
            lambda box: box[:, 2],
            lambda box: box[:, 3],
            lambda box: box[:, 2] * box[:, 3],
            lambda box: box[:, 3] / box[:, 2],
            lambda box: box[:, 0] + box[:, 2],
            lambda box: box[:, 1] + box[:, 3],
        )
    ):
        assert ks_2samp(view(found), view(expected), method="asymp").pvalue > 1e-4, number


def test_small_boxes_are_as_frequent_as_timms_one_by_one(monkeypatch):
    """A Kolmogorov-Smirnov test is blind to single values; an image of 5 x 6 has few boxes."""
    found, expected = (
        np.unique(draw, axis=0, return_counts=True)
        for draw in (ours(5, 6, 40_000), of_timm(5, 6, 40_000, monkeypatch))
    )
    names = sorted({tuple(box) for part in (found, expected) for box in part[0].tolist()})
    counts = [
        np.array(
            [dict(zip(map(tuple, part[0].tolist()), part[1], strict=True)).get(name, 0) for name in names]
        )
        for part in (found, expected)
    ]
    common = counts[0] + counts[1] >= 40
    one, other = (np.append(count[common], count[~common].sum()) for count in counts)
    statistic = ((one - other) ** 2 / (one + other)).sum()
    assert len(one) > 50
    assert statistic < len(one) + 4 * math.sqrt(2 * len(one))


@given(sides, sides, scales, ratios, st.integers(0, 2**32))
def test_boxes_lie_inside_of_the_image(height, width, scale, ratio, seed):
    found = ours(height, width, 20, seed=seed, scale=scale, ratio=ratio)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] >= 1).all()
    assert (found[:, 0] + found[:, 2] <= height).all()
    assert (found[:, 1] + found[:, 3] <= width).all()


@given(st.integers(1, 60), st.integers(1, 60))
def test_what_fits_nowhere_is_cropped_in_the_centre_as_timm_does(short, factor):
    """Areas of the whole image and one ratio fit no image of another ratio, in no attempt."""
    height, width = short, short * (factor + 2)
    for size in ((height, width), (width, height)):
        found = ours(*size, 3, scale=(1.0, 1.0), ratio=(0.9, 1.1))
        expected = RandomResizedCropAndInterpolation.get_params(torch.empty(3, *size), (1.0, 1.0), (0.9, 1.1))
        assert found.tolist() == [list(expected)] * 3


@given(st.integers(1, 40), st.data())
def test_a_sample_has_the_same_box_whoever_asks(batch, data):
    crops = draw_crops(batch, scale=SCALE, ratio=RATIO, rng=np.random.default_rng(5))
    height, width = np.random.default_rng(6).integers(1, 500, (2, batch))
    whole = boxes(crops, height, width, ratio=RATIO)
    some = data.draw(st.lists(st.integers(0, batch - 1), min_size=1))
    assert np.array_equal(boxes(crops.at(some), height[some], width[some], ratio=RATIO), whole[some])


def test_all_places_are_reached_and_equally_often():
    """One attempt that always fits: the corner is uniform, ends included."""
    found = ours(6, 11, 30_000, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    assert np.unique(found[:, 2:], axis=0).tolist() == [[4, 4]]
    for place, count in ((found[:, 0], 3), (found[:, 1], 8)):
        assert chisquare(np.bincount(place, minlength=count)).pvalue > 1e-4


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips_are_as_frequent_as_said(probability):
    found = draw_flips(20_000, probability, np.random.default_rng(0))
    assert found.dtype == bool
    assert abs(found.mean() - probability) < 0.02 * (0 < probability < 1) + 1e-12
