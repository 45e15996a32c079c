"""Crops resized: the same as Pillow's and torch's, one by one and all at once."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
import torch

from dcvit import resampling
from dcvit.resampling import resampled, resize_into, resized, side_by_side, weights

sizes = st.integers(1, 60)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width, seed=0):
    small = Image.fromarray(noise(max(2, height // 8), max(2, width // 8), 3, seed=seed))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def one_by_one(images, boxes, side):
    out = torch.empty(len(images), 3, side, side, dtype=torch.uint8)
    for slot, image, box in zip(out, images, boxes, strict=True):
        resize_into(slot, torch.from_numpy(image).permute(2, 0, 1), box)
    return out


def at_once(images, boxes, side):
    flat = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images]))
    areas = np.array([image.shape[0] * image.shape[1] for image in images])
    widths = np.array([image.shape[1] for image in images])
    return resampled(flat, np.cumsum(areas) - areas, widths, np.array(boxes), side)


def of_pillow(image, box, side):
    top, left, height, width = box
    cropped = Image.fromarray(image).crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(cropped.resize((side, side), Image.Resampling.BICUBIC))).permute(2, 0, 1)


@st.composite
def crops(draw):
    """(images of several sizes, a box of each, side)."""
    count = draw(st.integers(1, 5))
    images, boxes = [], []
    for number in range(count):
        height, width = draw(sizes), draw(sizes)
        images.append(noise(height, width, 3, seed=draw(st.integers(0, 99)) + number))
        box_height, box_width = draw(st.integers(1, height)), draw(st.integers(1, width))
        top, left = draw(st.integers(0, height - box_height)), draw(st.integers(0, width - box_width))
        boxes.append((top, left, box_height, box_width))
    return images, boxes, draw(st.integers(1, 40))


@given(crops())
def test_both_ways_agree_on_noise(case):
    """Noise is the worst: a rounding of the columns is seen again in the rows, and weights of -0.1 count."""
    difference = (one_by_one(*case).int() - at_once(*case).int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() <= 0.2 or case[2] < 8


@given(crops())
def test_colours_that_are_parted_by_way_of_room_are_the_same(case):
    images, boxes, side = case
    expected, room = one_by_one(*case), side_by_side(3, side, side)
    out = torch.empty(3, side, side, dtype=torch.uint8)
    for image, box, crop in zip(images, boxes, expected, strict=True):
        resize_into(out, torch.from_numpy(image).permute(2, 0, 1), box, room_CSS=room)
        assert torch.equal(out, crop)
        assert out.is_contiguous()


@pytest.mark.parametrize("way", [one_by_one, at_once])
@pytest.mark.parametrize("side", [16, 32, 112, 224])
def test_on_images_the_mean_difference_from_pillow_is_far_below_a_level(way, side):
    images = [smooth(150, 200, seed=seed) for seed in range(3)]
    boxes = [(0, 0, 150, 200), (20, 30, 100, 75), (140, 10, 9, 160)]
    expected = torch.stack([of_pillow(*pair, side) for pair in zip(images, boxes, strict=True)]).int()
    difference = (way(images, boxes, side).int() - expected).abs()
    assert difference.max() <= 2
    assert difference.float().mean() <= 0.05


def test_batches_with_little_room_are_cropped_in_parts(monkeypatch):
    images = [noise(20 + number, 30, 3, seed=number) for number in range(7)]
    boxes = [(1, 2, 15 + number, 20) for number in range(7)]
    whole = at_once(images, boxes, 12)
    monkeypatch.setattr(resampling, "ROOM", 21 * 20 * 3)  # one crop of the largest height and width
    calls = []
    original = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *parts: calls.append(1) or original(*parts))
    assert torch.equal(at_once(images, boxes, 12), whole)
    assert len(calls) == 14  # two for each image


@given(st.integers(1, 50), st.integers(0, 20), st.integers(1, 50))
def test_weights_sum_to_one_and_those_behind_the_image_are_zero(length, more, side):
    (found,) = weights(torch.tensor([length]), length + more, side)
    assert found.shape == (side, length + more)
    assert found.sum(1) == pytest.approx(torch.ones(side), abs=1e-5)
    assert (found[:, length:] == 0).all()


def test_weights_are_keys_kernel_by_hand():
    """Halving four pixels: the new one at 1 sees the old ones 0.75 of a kernel's unit apart, and so on."""
    (found,) = weights(torch.tensor([4]), 4, 2)

    def kernel(x):
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2

    raw = np.array([kernel((place + 0.5 - 1) / 2) for place in range(4)])
    assert found[0].tolist() == pytest.approx(raw / raw.sum(), abs=1e-6)
    assert found[1].tolist() == pytest.approx((raw / raw.sum())[::-1], abs=1e-6)


def test_a_box_of_the_same_size_is_copied():
    image = noise(30, 30, 3)
    for way in (one_by_one, at_once):
        assert np.array_equal(way([image], [(5, 7, 16, 16)], 16)[0].permute(1, 2, 0), image[5:21, 7:23])


def test_only_the_box_is_seen():
    image, other = noise(30, 30, 3), noise(30, 30, 3, seed=1)
    other[5:15, 7:19] = image[5:15, 7:19]
    box = (5, 7, 10, 12)
    for way in (one_by_one, at_once):
        assert torch.equal(way([image], [box], 8), way([other], [box], 8))


def test_a_whole_image_in_another_size_is_pillows():
    image = smooth(90, 120)
    found = resized(torch.from_numpy(image).permute(2, 0, 1), 45, 61)
    assert found.permute(1, 2, 0).is_contiguous()
    expected = Image.fromarray(image).resize((61, 45), Image.Resampling.BICUBIC)
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).max() <= 1
