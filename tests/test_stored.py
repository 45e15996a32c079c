"""Decoded images in one piece of memory: each as it was, and crops of them as of single images."""

import numpy as np
import pytest
import torch

from dcvit import datasets
from dcvit.datasets import pictures
from dcvit.decoding import decoded
from dcvit.resampling import resize_into
from dcvit.sources import digits, from_folder
from dcvit.stored import in_memory, joined, moved
from tests.helpers import image_folder, tiny

CPU = torch.device("cpu")
rng = np.random.default_rng(0)
IMAGES = [
    torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).permute(2, 0, 1)
    for height, width in [(5, 9), (1, 1), (30, 4), (8, 8)]
]


def test_images_are_as_they_were():
    stored = joined(IMAGES, CPU)
    assert stored.pixels_P3.shape == (sum(image.shape[1] * image.shape[2] for image in IMAGES), 3)
    for index, image in enumerate(IMAGES):
        assert torch.equal(stored.image(index), image)
        assert stored.image(index).stride(0) == 1


def test_crops_are_those_of_single_images():
    stored = joined(IMAGES, CPU)
    images = [2, 0, 2, 3, 1]
    boxes = np.array([(3, 1, 20, 3), (0, 2, 5, 6), (0, 0, 30, 4), (1, 1, 7, 7), (0, 0, 1, 1)])
    found = stored.crops(images, boxes, 6)
    for crop, image, box in zip(found, images, boxes.tolist(), strict=True):
        expected = torch.empty(3, 6, 6, dtype=torch.uint8)
        resize_into(expected, IMAGES[image], box)
        assert (crop.int() - expected.int()).abs().max() <= 1


def test_a_cpu_holds_none():
    """What is held there is held by `datasets`, image by image."""
    train = pictures(digits(), "train", tiny(images="digits", classes=10, train_images=30))
    assert in_memory(train, CPU) is None
    assert moved(joined(IMAGES, CPU), CPU) is None


class Gpu:
    """As much of a CUDA device as decides who is held there."""

    type = "cuda"


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    ("free", "fits"), [(12 * 12 * 12 * 3 * 10, True), (12 * 12 * 12 * 3 * 10 - 10, False)]
)
def test_a_gpu_holds_sets_of_a_tenth_of_what_is_free(free, fits, held, threads, tmp_path, monkeypatch):
    """12 images of 12 x 12 pixels: 5,184 bytes."""
    if not held:
        monkeypatch.setattr(datasets, "HELD_BYTES", 0)
    train = pictures(from_folder(image_folder(tmp_path)), "train", tiny())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    original = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, *to, **how: self if isinstance(to[0], Gpu) else original(self, *to, **how),
    )
    given_back = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    stored = in_memory(train, Gpu(), threads=threads)
    assert given_back, "what an earlier run left counts as taken"
    assert (stored is not None) == fits
    if stored:
        assert all(torch.equal(stored.image(index), decoded(train, index)) for index in range(12))
        assert (moved(stored, Gpu()) is not None) == fits
