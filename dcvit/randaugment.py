"""RandAugment on a whole uint8 batch, on its device: timm's operations, each image its own pair and strengths.

`draw` says on the host, in numpy, which image gets what; `apply` does it, each kind of operation once for
all images that got it: colours by tables and blends (`lookup`), geometry by resampling (`warping`). The host
knows who is meant, so nothing is ever read back from the device.

Shapes: B images of a batch, C = 3 channels, H x W pixels, L layers; N the images that one call is about.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
import math
import re

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from dcvit import lookup, warping
from dcvit.devices import sent

TOP = 10.0  # the level at which an operation is at its strongest
ROTATION, SHEAR, TRANSLATION = 30.0, 0.3, 0.45  # at the top level: degrees, per pixel, share of the side
IMAGENET_FILL = (124, 116, 104)  # the mean of ImageNet's pixels, what timm fills with
PIECE = 4 * 3 * 224 * 224  # pixel values that a CPU takes at once, so that they stay in its cache


class Operation(IntEnum):
    """What can happen to an image. Neighbours here are done together, see `_operate`."""

    NOTHING = 0
    INVERT = 1
    POSTERIZE = 2
    SOLARIZE = 3
    SOLARIZE_ADD = 4
    BRIGHTNESS = 5
    CONTRAST = 6
    AUTO_CONTRAST = 7
    EQUALIZE = 8
    COLOR = 9
    SHARPNESS = 10
    SHEAR_X = 11
    TRANSLATE_X = 12
    SHEAR_Y = 13
    TRANSLATE_Y = 14
    ROTATE = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """RandAugment as timm's `rand-...` strings describe it."""

    level: int = 10  # m: mean level of the operations, 0 to 10
    spread: float = 0.0  # mstd: standard deviation of the level; infinite: uniform from 0 to `level`
    increasing: bool = False  # inc: whether a higher level changes the image more, in every operation
    layers: int = 2  # n: operations drawn per image
    chance: float = 0.5  # p: that a drawn operation is carried out


@dataclass(frozen=True, eq=False, slots=True)
class Choices:
    """Which operation each image gets in each layer, and how strong: numpy arrays (L, B).

    The strength is what the operation needs: degrees (ROTATE), pixels from which (TRANSLATE_X and _Y),
    pixels per pixel (SHEAR_X and _Y), kept bits (POSTERIZE), threshold (SOLARIZE), what is added
    (SOLARIZE_ADD), factor (BRIGHTNESS, CONTRAST, COLOR, SHARPNESS); 0 for the others.
    """

    operation: NDArray[np.int8]
    strength: NDArray[np.float64]

    def __len__(self) -> int:
        """The number of images."""
        return self.operation.shape[1]

    def __getitem__(self, positions: slice | Sequence[int] | NDArray[np.integer]) -> "Choices":
        """The choices of some of the images, in that order."""
        chosen = positions if isinstance(positions, slice) else np.asarray(positions, dtype=np.int64)
        return Choices(self.operation[:, chosen], self.strength[:, chosen])


def settings(text: str) -> Settings:
    """What a string such as `rand-m9-mstd0.5-inc1` says, with timm's defaults for what it leaves out.

    ValueError for anything else, for what timm knows and this does not (`t...`, `mmax`), and for a part
    that comes twice.

    >>> settings("rand-m9-mstd0.5-inc1")
    Settings(level=9, spread=0.5, increasing=True, layers=2, chance=0.5)
    """
    head, *parts = text.split("-")
    matches = [re.fullmatch(r"(m|n|inc)(\d+)|(mstd|p)(\d+\.?\d*)", part) for part in parts]
    pairs = [[each for each in match.groups() if each is not None] for match in matches if match]
    found = {key: float(value) for key, value in pairs}
    layers, chance = int(found.get("n", 2)), found.get("p", 0.5)
    if head != "rand" or len(found) < len(parts) or layers < 1 or chance > 1:
        raise ValueError(
            f"randaugment = {text!r} is not understood; it must be `rand` and, each at most once and joined by `-`, "
            "m9 (level), mstd0.5 (its spread), inc1 (increasing operations), n2 (operations, 1 or more), "
            "p0.5 (chance of each, 0 to 1), such as rand-m9-mstd0.5-inc1"
        )
    spread = found.get("mstd", 0.0)
    return Settings(
        level=int(found.get("m", TOP)),
        spread=math.inf if spread > 100 else spread,  # timm's rule
        increasing=bool(found.get("inc", 0)),
        layers=layers,
        chance=chance,
    )


def draw(
    settings: Settings, images: int, resolution: int | tuple[int, int], rng: np.random.Generator
) -> Choices:
    """Operations and strengths for `images` images of `resolution` pixels (side, or height and width).

    Per image and layer: one of the 15 operations, with replacement; carried out with `chance`; level
    l ~ N(level, spread^2), clipped to 0 and 10; the sign of what can go both ways by a fair coin.
    """
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    shape = (images, settings.layers)  # image by image
    operation = rng.integers(1, len(Operation), size=shape, dtype=np.int8)
    done = rng.random(shape) < settings.chance
    if math.isinf(settings.spread):
        levels = rng.uniform(0, settings.level, shape)
    else:
        levels = rng.normal(settings.level, settings.spread, shape)
    sign = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    operation = np.where(done, operation, np.int8(Operation.NOTHING))
    share = np.clip(levels, 0.0, TOP) / TOP
    strength = _strengths(operation, share, sign, settings.increasing, height, width)
    return Choices(np.ascontiguousarray(operation.T), np.ascontiguousarray(strength.T))


def _strengths(
    operation: NDArray[np.int8],
    share: NDArray[np.float64],
    sign: NDArray[np.float64],
    increasing: bool,
    height: int,
    width: int,
) -> NDArray[np.float64]:
    """The strengths at `share` (0 to 1) of the top level, for each operation; timm's level functions."""
    bits, threshold = np.trunc(share * 4), np.minimum(np.trunc(share * 256), 256)
    factor = share * 1.8 + 0.1
    if increasing:
        bits, threshold = 4 - bits, 256 - threshold
        factor = np.maximum(0.1, 1.0 + sign * share * 0.9)
    strengths = {
        Operation.POSTERIZE: bits,
        Operation.SOLARIZE: threshold,
        Operation.SOLARIZE_ADD: np.trunc(share * 110),
        Operation.BRIGHTNESS: factor,
        Operation.CONTRAST: factor,
        Operation.COLOR: factor,
        Operation.SHARPNESS: factor,
        Operation.SHEAR_X: sign * share * SHEAR,
        Operation.SHEAR_Y: sign * share * SHEAR,
        Operation.TRANSLATE_X: sign * share * TRANSLATION * width,
        Operation.TRANSLATE_Y: sign * share * TRANSLATION * height,
        Operation.ROTATE: sign * share * ROTATION,
    }
    return np.select([operation == which for which in strengths], list(strengths.values()), 0.0)


def apply(
    pixels_BCHW: Tensor,
    choices: Choices,
    *,
    fill: tuple[int, int, int] = IMAGENET_FILL,
    interpolation: warping.Interpolation = "bicubic",
) -> Tensor:
    """The batch with each image's operations carried out, layer by layer: a new uint8 tensor (B, 3, H, W).

    Nothing is read back from the device. What geometric operations leave empty is filled with `fill`.
    ValueError if the pixels are not uint8 (B, 3, H, W), or the choices are for another number of images.
    """
    if pixels_BCHW.dtype != torch.uint8 or pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != 3:
        raise ValueError(
            f"RandAugment needs uint8 pixels (B, 3, H, W); got {pixels_BCHW.dtype} {tuple(pixels_BCHW.shape)}"
        )
    if len(choices) != len(pixels_BCHW):
        raise ValueError(f"choices for {len(choices)} images do not fit a batch of {len(pixels_BCHW)}")
    result_BCHW = pixels_BCHW.clone(memory_format=torch.contiguous_format)
    device = result_BCHW.device
    size = len(choices)
    if device.type == "cpu":
        size = max(1, PIECE // max(1, math.prod(result_BCHW.shape[1:])))
    fill_C = sent(np.array(fill, dtype=np.uint8), device)
    for operation, strength in zip(choices.operation, choices.strength, strict=True):
        order = np.argsort(operation, kind="stable")
        order = order[np.searchsorted(operation[order], Operation.INVERT) :]  # without NOTHING
        for start in range(0, len(order), max(1, size)):
            piece = order[start : start + size]
            where = sent(piece, device)
            chosen_NCHW = result_BCHW.index_select(0, where)
            changed_NCHW = _operate(chosen_NCHW, operation[piece], strength[piece], fill_C, interpolation)
            _put(result_BCHW, piece, where, changed_NCHW)
    return result_BCHW


def _put(batch_BCHW: Tensor, piece: NDArray[np.int64], where: Tensor, changed_NCHW: Tensor) -> None:
    """batch[where] = changed, in place; `piece` is `where` on the host."""
    if batch_BCHW.device.type == "cpu":  # index_copy_ takes 8 times as long there
        for position, changed_CHW in zip(piece, changed_NCHW, strict=True):
            batch_BCHW[position] = changed_CHW
    else:
        batch_BCHW.index_copy_(0, where, changed_NCHW)


def _operate(
    images_NCHW: Tensor,
    operation: NDArray[np.int8],
    strength: NDArray[np.float64],
    fill_C: Tensor,
    interpolation: warping.Interpolation,
) -> Tensor:
    """One operation per image, sorted by operation, so that those of one kind are a slice: a new tensor."""
    parts = [_slice(operation, first, last) for first, last in KINDS]
    done = [
        _one_kind(images_NCHW[part], operation[part], strength[part], fill_C, interpolation)
        for part in parts
        if part.start < part.stop
    ]
    return done[0] if len(done) == 1 else torch.cat(done)


KINDS = (  # what is done together, from the first to the last
    (Operation.INVERT, Operation.EQUALIZE),
    (Operation.COLOR, Operation.COLOR),
    (Operation.SHARPNESS, Operation.SHARPNESS),
    (Operation.SHEAR_X, Operation.TRANSLATE_X),
    (Operation.SHEAR_Y, Operation.TRANSLATE_Y),
    (Operation.ROTATE, Operation.ROTATE),
)


def _slice(operation: NDArray[np.int8], first: Operation, last: Operation) -> slice:
    return slice(int(operation.searchsorted(first)), int(operation.searchsorted(last, side="right")))


def _one_kind(
    images_NCHW: Tensor,
    operation: NDArray[np.int8],
    strength: NDArray[np.float64],
    fill_C: Tensor,
    interpolation: warping.Interpolation,
) -> Tensor:
    """Several images whose operations are of one kind (`KINDS`)."""
    device = images_NCHW.device
    first = Operation(operation[0])
    if first <= Operation.EQUALIZE:
        return lookup.look_up(images_NCHW, _tables(images_NCHW, operation, strength))
    if first in (Operation.COLOR, Operation.SHARPNESS):
        blended = lookup.saturated if first == Operation.COLOR else lookup.sharpened
        return blended(images_NCHW, sent(strength.astype(np.float32), device))
    if first == Operation.ROTATE:
        matrices_N6 = sent(_rotations(strength, *images_NCHW.shape[2:]), device)
        return warping.warped(images_NCHW, matrices_N6, fill_C=fill_C, interpolation=interpolation)
    shears = np.isin(operation, (Operation.SHEAR_X, Operation.SHEAR_Y))
    slope_N, offset_N = sent(np.stack([strength * shears, strength * ~shears]), device)
    return warping.sheared(
        images_NCHW,
        slope_N,
        offset_N,
        along="x" if first <= Operation.TRANSLATE_X else "y",
        fill_C=fill_C,
        interpolation=interpolation,
    )


def _tables(images_NCHW: Tensor, operation: NDArray[np.int8], strength: NDArray[np.float64]) -> Tensor:
    """The look-up tables of images sorted by operation, INVERT to EQUALIZE: uint8 (N, 3, 256)."""
    device = images_NCHW.device
    plain = {which: strength[_slice(operation, which, which)] for which in list(Operation)[1:6]}
    tables_NV = np.concatenate(
        [
            lookup.inverted(len(plain[Operation.INVERT])),
            lookup.posterized(plain[Operation.POSTERIZE]),
            lookup.solarized(plain[Operation.SOLARIZE]),
            lookup.brightened_below(plain[Operation.SOLARIZE_ADD]),
            lookup.brightened(plain[Operation.BRIGHTNESS]),
        ]
    )
    tables = [sent(tables_NV, device)[:, None].expand(-1, 3, -1)]
    part = _slice(operation, Operation.CONTRAST, Operation.CONTRAST)
    if part.start < part.stop:
        factor_N = sent(strength[part].astype(np.float32), device)
        tables.append(lookup.contrast_tables(images_NCHW[part], factor_N))
    part = _slice(operation, Operation.AUTO_CONTRAST, Operation.AUTO_CONTRAST)
    if part.start < part.stop:
        tables.append(lookup.autocontrast_tables(images_NCHW[part]))
    part = _slice(operation, Operation.EQUALIZE, Operation.EQUALIZE)
    if part.start < part.stop:
        tables.append(lookup.equalize_tables(images_NCHW[part]))
    return torch.cat(tables)


def _rotations(degrees_N: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """The matrices that turn images about their centre by an angle, anticlockwise: (N, 6), as Pillow makes them."""
    angle_N = -np.radians(degrees_N % 360.0)
    cosine_N, sine_N = np.cos(angle_N).round(15), np.sin(angle_N).round(15)
    x, y = width / 2, height / 2
    from_x_N = cosine_N * -x + sine_N * -y + x
    from_y_N = -sine_N * -x + cosine_N * -y + y
    return np.stack([cosine_N, sine_N, from_x_N, -sine_N, cosine_N, from_y_N], axis=1)
