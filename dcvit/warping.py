"""Geometric operations on whole batches: one affine resampling, and a shorter way for shears and translations.

Pillow's conventions (Image.transform): pixel centres lie at half integers; what falls outside of the image is
filled; neighbours over the edge are those at the edge; its bicubic kernel is the one with a = -1 (not the -0.5
of its own resize, not the -0.75 of torch); results are cut off, not rounded.

Shapes: N images, C = 3 channels, H x W pixels; X the pixels of a line, P those of an image, with neighbours
over the edge.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Interpolation = Literal["bilinear", "bicubic"]

# Float32 weights sum to 1 only nearly: without this, a flat area of 100 might come out as 99.9999, cut off to 99.
GUARD = 2.0**-12


def sheared(
    images_NCHW: Tensor,
    slope_N: Tensor,
    offset_N: Tensor,
    *,
    along: Literal["x", "y"],
    fill_C: Tensor,
    interpolation: Interpolation,
) -> Tensor:
    """Each pixel (x, y) from (x + slope y + offset, y), or (x, y + slope x + offset): uint8, as the images.

    The offsets are in pixels, both float64 (N,). All pixels of a line have the same weights and the other
    coordinate does not change, so four neighbours do where `warped` needs sixteen. `fill_C` is uint8 (3,).
    """
    if along == "y":
        turned_NCHW = images_NCHW.transpose(2, 3).contiguous()
        along_x = sheared(
            turned_NCHW, slope_N, offset_N, along="x", fill_C=fill_C, interpolation=interpolation
        )
        return along_x.transpose(2, 3)
    H, W = images_NCHW.shape[2:]
    device = images_NCHW.device
    centre_H = torch.arange(H, dtype=torch.float64, device=device) + 0.5
    shift_NH1 = (slope_N[:, None] * centre_H + offset_N[:, None]).unsqueeze(2)
    whole_NH1 = shift_NH1.floor()
    before, weights = _weights(shift_NH1 - whole_NH1, interpolation)

    # One gather of lines that are longer by the kernel's reach; their slices are all the neighbours.
    start_NH1 = whole_NH1.clamp(-W - 2, W + 2).long() - before
    index_NHX = (torch.arange(W + len(weights) - 1, device=device) + start_NH1).clamp_(0, W - 1)
    lines_NCHX = images_NCHW.gather(3, index_NHX[:, None].expand(-1, images_NCHW.shape[1], -1, -1)).float()
    values_NCHW = torch.zeros_like(images_NCHW, dtype=torch.float32)
    for step, weight_NH1 in enumerate(weights):
        values_NCHW.addcmul_(lines_NCHX.narrow(3, step, W), weight_NH1[:, None])

    # 0 <= x + 0.5 + shift < W, for whole x.
    x_W = torch.arange(W, dtype=torch.int32, device=device)
    lowest_NH1 = (-0.5 - shift_NH1).ceil().int()
    beyond_NH1 = (W - 0.5 - shift_NH1).ceil().int()
    return _filled(values_NCHW, (x_W >= lowest_NH1) & (x_W < beyond_NH1), fill_C)


def warped(
    images_NCHW: Tensor, matrices_N6: Tensor, *, fill_C: Tensor, interpolation: Interpolation
) -> Tensor:
    """Each pixel (x, y) from (a x + b y + c, d x + e y + f): uint8, as the images.

    `matrices_N6` holds a to f per image, float64; `fill_C` is uint8 (3,).
    """
    N, C, H, W = images_NCHW.shape
    a, b, c, d, e, f = matrices_N6[:, :, None, None].unbind(1)
    x_W = torch.arange(W, dtype=torch.float64, device=images_NCHW.device) + 0.5
    y_H1 = torch.arange(H, dtype=torch.float64, device=images_NCHW.device)[:, None] + 0.5
    x_NHW = a * x_W + b * y_H1 + c
    y_NHW = d * x_W + e * y_H1 + f
    inside_NHW = (x_NHW >= 0) & (x_NHW < W) & (y_NHW >= 0) & (y_NHW < H)
    # A border as wide as the kernel reaches, so that each neighbour is the same step away from every pixel:
    # all are found by one index in shifted views. Outside, where the result does not count, the clamp keeps
    # the index in the image.
    x_NHW, y_NHW = x_NHW.sub_(0.5).clamp_(-1, W - 0.5), y_NHW.sub_(0.5).clamp_(-1, H - 0.5)
    left_NHW, top_NHW = x_NHW.floor(), y_NHW.floor()
    before, across = _weights((x_NHW - left_NHW)[:, None], interpolation)
    _, down = _weights((y_NHW - top_NHW)[:, None], interpolation)
    padded_NCHW = pad(images_NCHW.float(), (2, 2, 2, 2), mode="replicate")
    padded_NCP = padded_NCHW.flatten(2)
    width = W + 4
    corner_NHW = (top_NHW + (2 - before)) * width + (left_NHW + (2 - before))
    index_NCP = corner_NHW.long().view(N, 1, H * W).expand(-1, C, -1)

    # The same two buffers all along: on a CPU fresh memory costs more than the arithmetic.
    tap_NCHW, line_NCHW = torch.empty((2, N, C, H, W), device=images_NCHW.device)
    total_NCHW = torch.zeros_like(line_NCHW)
    for row, down_N1HW in enumerate(down):
        line_NCHW.zero_()
        for column, across_N1HW in enumerate(across):
            shifted_NCP = padded_NCP[:, :, row * width + column :]
            torch.gather(shifted_NCP, 2, index_NCP, out=tap_NCHW.view(N, C, H * W))
            line_NCHW.addcmul_(tap_NCHW, across_N1HW)
        total_NCHW.addcmul_(line_NCHW, down_N1HW)
    return _filled(total_NCHW, inside_NHW, fill_C)


def _weights(part: Tensor, interpolation: Interpolation) -> tuple[int, list[Tensor]]:
    """Float32 weights at `part` of the way from neighbour 0 to 1, and how many neighbours come before 0."""
    t = part.float()
    if interpolation == "bilinear":
        return 0, [1 - t, t]
    square, cube = t * t, t * t * t
    return 1, [2 * square - cube - t, cube - 2 * square + 1, square - cube + t, cube - square]


def _filled(values_NCHW: Tensor, inside_NHW: Tensor, fill_C: Tensor) -> Tensor:
    """Values cut off to uint8, and the fill where not inside."""
    fill_C11 = fill_C[:, None, None]
    pixels_NCHW = values_NCHW.add_(GUARD).clamp_(0, 255).to(torch.uint8)
    # Modulo 256, which gives the right value back; torch.where is 20 times slower here on a CPU.
    return pixels_NCHW.sub_(fill_C11).mul_(inside_NHW[:, None]).add_(fill_C11)
