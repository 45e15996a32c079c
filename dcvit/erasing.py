"""PatchErasing with label decay (4.2, Eq. 7), and the RandomErasing that it replaces.

Shapes: B images of C channels, H x W pixels, in h x w patches; N = h w. Images are
normalised, so zero is the mean colour of the data set. Inputs are never modified. Where a
generator is asked for, several may be given: each draws for an equal part of the images.
"""

from math import log
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dcvit.recipe import Decay, Fill
from dcvit.rng import Generators, normal, uniform

Real = TypeVar("Real", float, Tensor)

SMALLEST_MU = torch.finfo(torch.float32).tiny  # below it gamma / mu would be 0 / 0 in float32
ATTEMPTS = 10  # RandomErasing looks this often for a rectangle that fits, as in timm


def draw_rates(n: int, *, mu: float, generator: Generators) -> Tensor:
    """n erasing rates gamma ~ Unif[0, mu], float32 (n,), on the generator's device.

    Raises ValueError if mu lies outside [0, 1].
    """
    _require_mu(mu)
    return mu * uniform(n, generator=generator)


def erase_patches(
    images: Tensor, gamma: Tensor, *, patch_size: int, generator: Generators, fill: Fill = "pixel"
) -> Tensor:
    """New images (B, C, H, W) of which image i has lost round(gamma_i N) of its N patches.

    The patches are chosen uniformly, without replacement. `gamma` is (B,), in [0, 1];
    `patch_size` is in pixels. `fill` is "pixel", noise ~ N(0, 1) in every pixel, as
    RandomErasing has it, or "zero". The generator must live on the images' device.

    Raises ValueError if the patches do not tile the image, gamma is not one rate an image,
    or `fill` is another word.
    """
    mask_BHW = patch_mask(images, gamma, patch_size=patch_size, generator=generator)
    return _fill(images, mask_BHW, fill=fill, generator=generator)


def patch_mask(images: Tensor, gamma: Tensor, *, patch_size: int, generator: Generators) -> Tensor:
    """Which pixels `erase_patches` erases, bool (B, H, W)."""
    B, _, H, W = images.shape
    h, w = patch_grid(H, W, patch_size)
    if gamma.shape != (B,):
        raise ValueError(f"gamma has shape {tuple(gamma.shape)}: one rate an image, ({B},), is needed")
    mask_Bhw = draw_patches(gamma, h, w, generator=generator).to(images.device)
    return mask_Bhw.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)


def patch_grid(H: int, W: int, patch_size: int) -> tuple[int, int]:
    """(h, w), how many patches an image has; ValueError if they do not tile it."""
    if patch_size < 1 or H % patch_size or W % patch_size:
        raise ValueError(
            f"patch_size={patch_size} does not tile a {H}x{W} image: choose a divisor of both sides"
        )
    return H // patch_size, W // patch_size


def draw_patches(gamma: Tensor, h: int, w: int, *, generator: Generators) -> Tensor:
    """Which patches of an h x w grid are erased, bool (B, h, w): round(gamma_i N) of image i's."""
    N = h * w
    # random numbers of 24 bits with the patch's own behind them, so that no two are equal
    key_BN = (uniform(len(gamma), N, generator=generator) * 2**24).long() * N
    key_BN += torch.arange(N, device=key_BN.device)
    count_B1 = (gamma * N).round().long()[:, None]
    last_B1 = _sorted(key_BN).gather(1, (count_B1 - 1).clamp(min=0))
    return (key_BN <= last_B1.where(count_B1 > 0, -1)).view(-1, h, w)


def _sorted(rows: Tensor) -> Tensor:
    """Every row in ascending order; numpy sorts eight times as fast, and on the CPU it has nothing to wait for."""
    if rows.device.type == "cpu":
        return torch.from_numpy(np.sort(rows.numpy(), axis=1))
    return rows.sort(dim=1).values


def erase_rectangles(
    images: Tensor,
    *,
    generator: Generators,
    probability: float = 0.25,
    min_area: float = 0.02,
    max_area: float = 1 / 3,
    min_aspect: float = 0.3,
) -> Tensor:
    """New images (B, C, H, W), some with one rectangle of noise ~ N(0, 1) in every pixel.

    RandomErasing (Zhong et al. 2020) as timm has it in mode "pixel": the area is a uniform
    share of the image, the logarithm of height / width uniform in +-log(min_aspect), the
    place uniform; of 10 attempts the first that fits counts. Drawn for all images at once.
    """
    mask_BHW = rectangle_mask(
        images,
        generator=generator,
        probability=probability,
        min_area=min_area,
        max_area=max_area,
        min_aspect=min_aspect,
    )
    return _fill(images, mask_BHW, fill="pixel", generator=generator)


def rectangle_mask(
    images: Tensor,
    *,
    generator: Generators,
    probability: float,
    min_area: float,
    max_area: float,
    min_aspect: float,
) -> Tensor:
    """Which pixels `erase_rectangles` erases, bool (B, H, W)."""
    B, _, H, W = images.shape
    rows_BH, columns_BW = draw_rectangles(
        B,
        H,
        W,
        generator=generator,
        probability=probability,
        min_area=min_area,
        max_area=max_area,
        min_aspect=min_aspect,
    )
    return (rows_BH[:, :, None] & columns_BW[:, None, :]).to(images.device)


def draw_rectangles(
    B: int,
    H: int,
    W: int,
    *,
    generator: Generators,
    probability: float,
    min_area: float,
    max_area: float,
    min_aspect: float,
) -> tuple[Tensor, Tensor]:
    """The rows (B, H) and the columns (B, W) of each image's rectangle, bool; without one, no rows."""

    def draw(*shape: int) -> Tensor:
        return uniform(*shape, generator=generator)

    area_BT = (min_area + (max_area - min_area) * draw(B, ATTEMPTS)) * (H * W)
    aspect_BT = ((2 * draw(B, ATTEMPTS) - 1) * log(1 / min_aspect)).exp()
    height_BT = (area_BT * aspect_BT).sqrt().round()
    width_BT = (area_BT / aspect_BT).sqrt().round()
    fits_BT = (height_BT < H) & (width_BT < W)
    first_B1 = fits_BT.int().argmax(dim=1, keepdim=True)  # argmax: the first of the largest

    height_B1, width_B1 = height_BT.gather(1, first_B1), width_BT.gather(1, first_B1)
    top_B1 = (draw(B, 1) * (H - height_B1 + 1)).floor()
    left_B1 = (draw(B, 1) * (W - width_B1 + 1)).floor()
    row_H, column_W = (torch.arange(size, device=area_BT.device) for size in (H, W))
    chosen_B1 = (draw(B, 1) < probability) & fits_BT.any(dim=1, keepdim=True)
    rows_BH = (row_H >= top_B1) & (row_H < top_B1 + height_B1) & chosen_B1
    columns_BW = (column_W >= left_B1) & (column_W < left_B1 + width_B1)
    return rows_BH, columns_BW


def _fill(images: Tensor, mask_BHW: Tensor, *, fill: Fill, generator: Generators) -> Tensor:
    mask_B1HW = mask_BHW[:, None]
    if fill == "zero":
        return images.masked_fill(mask_B1HW, 0.0)
    if fill == "pixel":
        noise = normal(*images.shape, generator=generator).to(images.dtype)
        return torch.where(mask_B1HW, noise, images)
    raise ValueError(f'fill={fill!r}: "pixel" (noise) or "zero" (the mean colour)')


def label_weights(
    lam: Real, gamma: Real, gamma_partner: Real, mu: float, *, decay: Decay = "paper"
) -> tuple[Real, Real]:
    r"""Weights of an image's own label and of its partner's, in [0, lam] and [0, 1 - lam].

        paper   w_i = lam - eps_i,  eps_i = lam gamma_i / mu                    (Eq. 7)
                w_j = 1 - lam - eps_j,  eps_j = (1 - lam) gamma_j / mu
        area    eps_i = lam gamma_i: pays for the erased area only   (not in the paper)
        none    eps = 0: plain MixUp                                 (not in the paper)

    Each eps is a share gamma / mu of the weight it is taken from, so that 1 - gamma / mu is
    multiplied and no weight rounds to below zero. The sum is at most 1 and is not normalised
    again. Mind what that means: whatever mu > 0 is, the mean sum is 1/2, and an image with
    gamma near mu contributes hardly any label. mu = 0 erases nothing and leaves the labels
    alone, the limit of Eq. 7.

    Floats or broadcastable tensors; gamma in [0, mu]. Raises ValueError if mu lies outside
    [0, 1] or `decay` is another word.

    >>> label_weights(0.75, 0.0, 0.25, mu=0.5)
    (0.75, 0.125)
    >>> label_weights(0.75, 0.0, 0.25, mu=0.5, decay="area")
    (0.75, 0.1875)
    """
    _require_mu(mu)
    if decay == "none" or (decay == "paper" and mu < SMALLEST_MU):
        return lam * (1 - 0 * gamma), (1 - lam) * (1 - 0 * gamma_partner)
    if decay == "paper":
        return lam * (1 - gamma / mu), (1 - lam) * (1 - gamma_partner / mu)
    if decay == "area":
        return lam * (1 - gamma), (1 - lam) * (1 - gamma_partner)
    raise ValueError(f'decay={decay!r}: "paper" (Eq. 7), "area" or "none"')


def _require_mu(mu: float) -> None:
    if not 0 <= mu <= 1:
        raise ValueError(f"mu={mu}: the largest share of patches erased, in [0, 1]")
