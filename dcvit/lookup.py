"""Colour operations on whole batches: one 256-entry table per image and channel, or one blend with its own paler self.

Every result is Pillow's to the bit (ImageOps, ImageEnhance), since each is made in the same order of the same
precision: tables in integers or float64, blends in float32 and cut off, never rounded.

Shapes: N images, C = 3 channels, H x W pixels. `_NV` are tables for every channel, V = 256 values.
Pixels and tables are uint8; what is told of each image is a numpy array (N,) for what is made on the host, a
tensor on the images' device for what needs their pixels.
"""

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

VALUES = np.arange(256)
MANY = 128 * 128  # pixels from which a CPU is faster with a call per channel, for indices half as wide


def inverted(images: int) -> NDArray[np.uint8]:
    """v -> 255 - v, (images, 256).

    >>> inverted(1)[0, :3].tolist()
    [255, 254, 253]
    """
    return np.broadcast_to(255 - VALUES, (images, 256)).astype(np.uint8)


def posterized(bits_N: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Keeps the highest 0 to 8 bits of each value; 0 bits give black, (N, 256).

    >>> posterized(np.array([1.0]))[0, [127, 128, 255]].tolist()
    [0, 128, 128]
    """
    return (VALUES & (0xFF00 >> bits_N.astype(np.int64)[:, None])).astype(np.uint8)


def solarized(threshold_N: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Inverts the values from the threshold (0 to 256) upwards, (N, 256).

    >>> solarized(np.array([200.0]))[0, [199, 200, 255]].tolist()
    [199, 55, 0]
    """
    return np.where(threshold_N[:, None] > VALUES, VALUES, 255 - VALUES).astype(np.uint8)


def brightened_below(added_N: NDArray[np.float64], *, below: int = 128) -> NDArray[np.uint8]:
    """Adds to the values below 128 (SolarizeAdd), at most up to 255, (N, 256).

    >>> brightened_below(np.array([100.0]))[0, [0, 127, 128]].tolist()
    [100, 227, 128]
    """
    added_NV = np.minimum(VALUES + added_N[:, None], 255)
    return np.where(below > VALUES, added_NV, VALUES).astype(np.uint8)


def brightened(factor_N: NDArray[np.float64]) -> NDArray[np.uint8]:
    """v -> factor v: a blend with black, (N, 256).

    >>> brightened(np.array([1.5]))[0, [1, 100, 200]].tolist()
    [1, 150, 255]
    """
    scaled_NV = factor_N.astype(np.float32)[:, None] * VALUES.astype(np.float32)
    return np.clip(scaled_NV, 0, 255).astype(np.uint8)


def contrast_tables(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """m + factor (v - m) with m the image's mean grey level, rounded: uint8 (N, 3, 256); factor float32."""
    grey_NHW = grey(images_NCHW.float())
    # in whole numbers: a GPU's mean is a product with a reciprocal, which may fall short of a half
    pixels = grey_NHW[0].numel()
    sum_N = grey_NHW.sum(dim=(1, 2), dtype=torch.float64).long()
    mean_N = ((2 * sum_N + pixels) // (2 * pixels)).float()
    values_NV = torch.arange(256.0, device=images_NCHW.device).expand(len(images_NCHW), 256)
    tables_NV = blend(mean_N[:, None], values_NV, factor_N[:, None])
    return tables_NV[:, None].expand(-1, 3, -1)


def autocontrast_tables(images_NCHW: Tensor) -> Tensor:
    """Stretches each channel from its smallest and largest value to 0 and 255: uint8 (N, 3, 256).

    A channel of a single value stays as it is.
    """
    flat_NCP = images_NCHW.flatten(2)
    low_NC1 = flat_NCP.amin(dim=2, keepdim=True).double()
    high_NC1 = flat_NCP.amax(dim=2, keepdim=True).double()
    values_V = torch.arange(256, dtype=torch.float64, device=images_NCHW.device)
    # Pillow's order: scale first, then v * scale + offset; another order lands beside some integers.
    # And a true division: torch turns `255.0 / tensor` into a product with the reciprocal.
    scale_NC1 = torch.full_like(low_NC1, 255.0) / (high_NC1 - low_NC1).clamp(min=1.0)
    offset_NC1 = -low_NC1 * scale_NC1
    stretched_NCV = (values_V * scale_NC1 + offset_NC1).clamp(0, 255)
    return torch.where(high_NC1 > low_NC1, stretched_NCV, values_V).to(torch.uint8)


def equalize_tables(images_NCHW: Tensor) -> Tensor:
    """Spreads each channel's values so that all are about equally frequent: uint8 (N, 3, 256).

    With h the histogram and step = (pixels - pixels of the largest value) // 255, as Pillow has it:
    v -> (step // 2 + h[0] + ... + h[v - 1]) // step. A channel whose step is 0 stays as it is.
    """
    flat_NCP = images_NCHW.flatten(2).long()
    shape = (*flat_NCP.shape[:2], 256)
    one = torch.ones((), dtype=torch.int64, device=flat_NCP.device)
    counts_NCV = torch.zeros(shape, dtype=torch.int64, device=flat_NCP.device)
    counts_NCV.scatter_add_(2, flat_NCP, one.expand_as(flat_NCP))
    most_NC1 = images_NCHW.flatten(2).amax(dim=2, keepdim=True).long()
    step_NC1 = (flat_NCP.shape[2] - counts_NCV.gather(2, most_NC1)) // 255
    below_NCV = counts_NCV.cumsum(dim=2) - counts_NCV
    spread_NCV = (step_NC1 // 2 + below_NCV) // step_NC1.clamp(min=1)
    values_V = torch.arange(256, device=flat_NCP.device)
    return torch.where(step_NC1 > 0, spread_NCV.clamp(max=255), values_V).to(torch.uint8)


def look_up(images_NCHW: Tensor, tables_NCV: Tensor) -> Tensor:
    """Each pixel replaced by what its channel's table says, uint8 (N, 3, H, W)."""
    pixels_NCP = images_NCHW.flatten(2)
    if images_NCHW.device.type != "cpu" or pixels_NCP.shape[2] < MANY:
        return tables_NCV.gather(2, pixels_NCP.long()).view(images_NCHW.shape)
    found_NCP = torch.empty_like(pixels_NCP)
    every = (each.flatten(0, 1) for each in (pixels_NCP, tables_NCV, found_NCP))
    for pixels_P, table_V, found_P in zip(*every, strict=True):
        torch.index_select(
            table_V, 0, pixels_P.int(), out=found_P
        )  # int32 indices, which gather does not take
    return found_NCP.view(images_NCHW.shape)


def saturated(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """A blend of the grey image (factor 0) and the image (1), or beyond it: uint8; factor float32 (N,)."""
    pixels_NCHW = images_NCHW.float()
    return blend(grey(pixels_NCHW)[:, None], pixels_NCHW, factor_N[:, None, None, None])


def sharpened(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """A blend of the smoothed image (factor 0) and the image (1), or beyond it: uint8; factor float32 (N,).

    Smoothed by Pillow's SMOOTH: the mean of the 3 x 3 neighbours with the centre counted five times,
    rounded. It leaves the outermost pixels as they are, so the blend does too.
    """
    result_NCHW = images_NCHW.clone()
    if min(images_NCHW.shape[2:]) < 3:
        return result_NCHW
    pixels_NCHW = images_NCHW.float()
    rows = pixels_NCHW[:, :, :-2] + pixels_NCHW[:, :, 1:-1] + pixels_NCHW[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = pixels_NCHW[:, :, 1:-1, 1:-1]
    # A thirteenth of an integer is never within 1/26 of a half, so float32 rounds it as any precision would.
    smooth = box.add_(inner, alpha=4.0).mul_(1 / 13).add_(0.5).floor_()
    result_NCHW[:, :, 1:-1, 1:-1] = blend(smooth, inner, factor_N[:, None, None, None])
    return result_NCHW


def grey(pixels_NCHW: Tensor) -> Tensor:
    """Pillow's grey levels (19595 R + 38470 G + 7471 B + 32768) >> 16 of float32 pixels: float32 (N, H, W).

    Whole numbers below 2^24 throughout, so float32 holds every one of them exactly.
    """
    sum_NHW = pixels_NCHW[:, 0] * 19595.0
    sum_NHW.add_(pixels_NCHW[:, 1], alpha=38470.0).add_(pixels_NCHW[:, 2], alpha=7471.0)
    return sum_NHW.add_(32768.0).mul_(1 / 65536).floor_()


def blend(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """first + share (second - first) of float32 values 0 to 255, cut off to uint8 as Image.blend does."""
    return (second - first).mul_(share).add_(first).clamp_(0, 255).to(torch.uint8)
