"""MixUp and CutMix of a batch with itself, flipped (Eq. 4).

Both are one operation: a map m of weights in [0, 1] over the pixels, constant for MixUp,
0 in a box and 1 around it for CutMix.

    mixed = m x + (1 - m) x.flip(0)        lambda = the mean of m

Shapes: B images of C channels, H x W pixels; G groups that mix among themselves, each with
its own lambda. Alpha may be a tensor on the device: nothing here waits for it.
"""

from math import isfinite

import torch
from torch import Tensor


def draw_lambda(alpha: float | Tensor, shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """lambda ~ Beta(alpha, alpha), float32 of `shape`, on alpha's device (the generator's for a float).

    alpha = 0 means no mixing, lambda = 1; every finite alpha >= 0 gives finite values in
    [0, 1]. A float alpha that is negative or not finite raises ValueError; a tensor is not
    looked at, and gives NaN where it is negative or NaN.

    The ratio g1 / (g1 + g2) of gamma variates underflows below alpha = 0.01, where dynamic
    alpha begins. With G ~ Gamma(alpha + 1) and U ~ Unif(0, 1], G U^(1/alpha) ~ Gamma(alpha)
    (Marsaglia and Tsang 2000), so the logit of the ratio is, with no underflow at all,

        ln G1 - ln G2 + (ln U1 - ln U2) / alpha

    >>> from dcvit import stream
    >>> draw_lambda(0.0, (2,), generator=stream(0, "doc"))
    tensor([1., 1.])
    """
    if not isinstance(alpha, Tensor):
        if not (isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha={alpha}: the parameter of Beta(alpha, alpha), finite and >= 0")
        alpha = torch.full((), alpha, dtype=torch.float64, device=generator.device)
    alpha_ = alpha.to(torch.float64)  # the scalars are few, and 1/alpha is large
    positive = torch.where(alpha_ > 0, alpha_, 1.0)
    uniform = 1 - torch.rand((2, *shape), dtype=torch.float64, generator=generator, device=generator.device)
    log_u = uniform.to(alpha.device, non_blocking=True).log()
    shape_parameter = (positive + 1).expand((2, *shape)).to(generator.device)
    log_g = torch._standard_gamma(shape_parameter, generator=generator).to(alpha.device).log()
    drawn = torch.sigmoid(log_g[0] - log_g[1] + (log_u[0] - log_u[1]) / positive)
    unmixed = torch.where(alpha_ == 0, 1.0, torch.nan)
    return torch.where(alpha_ > 0, drawn, unmixed).to(torch.float32)


def mixup_map(lam_G: Tensor, *, height: int, width: int) -> Tensor:
    """MixUp's weights of the pixels, (G, H, W): lambda everywhere."""
    return lam_G[:, None, None].expand(-1, height, width)


def cutmix_map(lam_G: Tensor, *, height: int, width: int, generator: torch.Generator) -> Tensor:
    """CutMix's weights of the pixels, (G, H, W): 0 in a box of the area 1 - lambda, 1 around it.

    The centre is uniform over the pixels and the box is cut at the image's border, so the
    mean of the map, the realised lambda, may be larger than the one given, as in timm with
    `correct_lam`. Source: Yun et al. 2019, and timm's `rand_bbox` at the paper's date (since then
    a box of odd side is one pixel larger there).
    """
    device = lam_G.device
    centre_2G = torch.rand((2, len(lam_G)), generator=generator, device=generator.device).to(device)
    side_G = (1 - lam_G).sqrt()

    def outside(size: int, centre_G: Tensor) -> Tensor:
        half_G = (side_G * size).long() // 2
        middle_G = (centre_G * size).long().clamp(max=size - 1)
        at = torch.arange(size, device=device)
        return (at < (middle_G - half_G)[:, None]) | (at >= (middle_G + half_G)[:, None])

    rows_GH, columns_GW = outside(height, centre_2G[0]), outside(width, centre_2G[1])
    return (rows_GH[:, :, None] | columns_GW[:, None, :]).to(torch.float32)


def partner(values: Tensor, groups: int = 1) -> Tensor:
    """What each sample is mixed with: its group, flipped. `values` is (B, ...); B divides by `groups`.

    >>> partner(torch.tensor([0, 1, 2, 3]), groups=2)
    tensor([1, 0, 3, 2])
    """
    grouped = values.unflatten(0, (groups, -1))
    return grouped.flip(1).flatten(0, 1)


def mix_images(images: Tensor, map_GHW: Tensor) -> Tensor:
    """Each image mixed with its partner in its group, (B, C, H, W) of the images' dtype (Eq. 4).

    Raises ValueError if the batch does not split into as many equal groups as the map has.
    """
    groups = len(map_GHW)
    if len(images) % groups:
        raise ValueError(f"{len(images)} images do not split into {groups} equal groups")
    x = images.unflatten(0, (groups, -1))
    weight = map_GHW[:, None, None].to(images.dtype)
    return (weight * x + (1 - weight) * x.flip(1)).flatten(0, 1)
