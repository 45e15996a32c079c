"""Where training images are cropped and which are flipped, drawn for a whole batch at once. No torch.

What a sample of a batch gets depends on (seed, update, position) alone. What is drawn knows no image's
size, so that it can be drawn before any of them is decoded; `boxes` turns it into pixels.

Shapes: B samples of a batch, N of them, A attempts.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ATTEMPTS = 10  # timm's and torchvision's

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


class Crops(NamedTuple):
    """What random resized crops are made of, before the sizes of the images are known."""

    area_BA: Floats  # share of the image's area
    aspect_BA: Floats  # width / height
    top_B: Floats  # of the room that is left, in [0, 1)
    left_B: Floats

    def at(self, positions: Sequence[int] | slice | Whole) -> "Crops":
        """Those of some samples."""
        return Crops(*(part[positions] for part in self))


def draw_crops(
    batch: int, *, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Crops:
    """Areas of Unif[scale] and aspect ratios of which the logarithm is uniform, ten of each a sample."""
    # all in one call: what a position gets hangs on the size of the batch, not on who wants it
    unit_KB = rng.random((2 * ATTEMPTS + 2, batch))
    area_BA, place_BA = unit_KB[:ATTEMPTS].T, unit_KB[ATTEMPTS : 2 * ATTEMPTS].T
    low, high = log(ratio[0]), log(ratio[1])
    return Crops(
        scale[0] + (scale[1] - scale[0]) * area_BA,
        np.exp(low + (high - low) * place_BA),
        unit_KB[-2],
        unit_KB[-1],
    )


def boxes(crops: Crops, height_N: Whole, width_N: Whole, *, ratio: tuple[float, float]) -> Whole:
    """Top, left, height and width of the crops of images of these sizes in pixels, int64 (N, 4).

    The first attempt that fits into the image counts; where none does, it is the largest centred box
    with a ratio in [ratio]. The distribution is that of timm's RandomResizedCropAndInterpolation.

    >>> crops = draw_crops(2, scale=(1.0, 1.0), ratio=(1.0, 1.0), rng=np.random.default_rng(0))
    >>> boxes(crops, np.array([8, 8]), np.array([8, 12]), ratio=(0.75, 4 / 3)).tolist()
    [[0, 0, 8, 8], [0, 0, 8, 11]]
    """
    area_NA = crops.area_BA * (height_N * width_N)[:, None]
    width_NA = np.rint(np.sqrt(area_NA * crops.aspect_BA)).astype(np.int64)
    height_NA = np.rint(np.sqrt(area_NA / crops.aspect_BA)).astype(np.int64)
    fits_NA = (width_NA > 0) & (width_NA <= width_N[:, None])
    fits_NA &= (height_NA > 0) & (height_NA <= height_N[:, None])
    row_N, first_N = np.arange(len(fits_NA)), fits_NA.argmax(axis=1)
    box_height_N, box_width_N = height_NA[row_N, first_N], width_NA[row_N, first_N]
    # random() is below 1, but its product with a whole number can round up to that
    top_N = np.minimum(crops.top_B * (height_N - box_height_N + 1), height_N - box_height_N)
    left_N = np.minimum(crops.left_B * (width_N - box_width_N + 1), width_N - box_width_N)
    found_4N = np.stack([top_N.astype(np.int64), left_N.astype(np.int64), box_height_N, box_width_N])
    fits_N = fits_NA[row_N, first_N]
    if not fits_N.all():
        found_4N = np.where(fits_N, found_4N, _central(height_N, width_N, ratio))
    return found_4N.T


def _central(height_N: Whole, width_N: Whole, ratio: tuple[float, float]) -> Whole:
    """The largest centred boxes with a ratio within bounds, int64 (4, N)."""
    shape_N = width_N / height_N
    narrow = np.where(shape_N < min(ratio), np.rint(width_N / min(ratio)).astype(np.int64), height_N)
    wide = np.where(shape_N > max(ratio), np.rint(height_N * max(ratio)).astype(np.int64), width_N)
    narrow, wide = np.maximum(narrow, 1), np.maximum(wide, 1)  # of a single row with a ratio below 1/2
    return np.stack([(height_N - narrow) // 2, (width_N - wide) // 2, narrow, wide])


def draw_flips(batch: int, probability: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether each sample is mirrored, bool (B,)."""
    return rng.random(batch) < probability
