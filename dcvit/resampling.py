"""Crops of uint8 images, resized to a square: bicubic with antialiasing, as Pillow and torch do it.

Rounded and clamped to 0..255 after the columns and again after the rows, as both do. `resize_into` does
one image after the other; `resampled` a whole batch, by two products with matrices, which suits GPUs and
many small images.

Shapes: B crops, H x W the largest of them, C channels, S the side of the square.
"""

import numpy as np
import torch
from torch import Tensor

from dcvit.crops import Whole
from dcvit.devices import sent

CUBIC = -0.5  # Pillow's `a`, and torch's where it antialiases
ROOM = 96 << 20  # bytes of windows that are cropped at a time; indices and float32 take seven times as much


def resize_into(
    out_CSS: Tensor, image_CHW: Tensor, box: tuple[int, int, int, int], *, room_CSS: Tensor | None = None
) -> None:
    """Writes the box (top, left, height, width) of a uint8 image on the CPU, resized, into `out_CSS`.

    What is resized has its colours side by side. Where they are to be apart in `out_CSS`, `room_CSS`, which is
    `side_by_side` and written over, makes that cheaper; without it torch parts them, in twice the time.
    """
    top, left, height, width = box
    crop = image_CHW[None, :, top : top + height, left : left + width]
    to_CSS = out_CSS if room_CSS is None else room_CSS
    # the function behind torch.nn.functional.interpolate, which has no `out`
    torch.ops.aten._upsample_bicubic2d_aa.out(crop, to_CSS.shape[-2:], False, None, None, out=to_CSS[None])
    if room_CSS is not None:
        np.copyto(out_CSS.numpy(), room_CSS.numpy())


def side_by_side(channels: int, height: int, width: int) -> Tensor:
    """Room for a uint8 image, (C, H, W), of which the colours of a pixel lie one beside the other in memory."""
    return torch.empty(height, width, channels, dtype=torch.uint8).permute(2, 0, 1)


def resized(image_CHW: Tensor, height: int, width: int) -> Tensor:
    """A whole uint8 image on the CPU in another size, its colours side by side in memory."""
    out = side_by_side(image_CHW.shape[0], height, width)
    resize_into(out, image_CHW, (0, 0, image_CHW.shape[1], image_CHW.shape[2]))
    return out


def weights(length_B: Tensor, longest: int, side: int) -> Tensor:
    """How much each of `longest` pixels counts in each of `side` new ones, float32 (B, S, longest); rows sum to 1.

    The new pixel i lies at c = (i + 1/2) length / side. Old pixel j counts k((j + 1/2 - c) / s) with Keys'
    cubic k and s = max(length / side, 1), for j from floor(c - 2s + 1/2) to below floor(c + 2s + 1/2) inside
    of the image; pixels from `length` on count nothing.
    """
    scale_B11 = (length_B.float() / side)[:, None, None]
    spread_B11 = scale_B11.clamp(min=1.0)
    pixel = torch.arange(longest, device=length_B.device, dtype=torch.float32)
    centre_BS1 = (torch.arange(side, device=length_B.device)[:, None] + 0.5) * scale_B11
    first_BS1 = (centre_BS1 - 2 * spread_B11 + 0.5).floor()
    end_BS1 = (centre_BS1 + 2 * spread_B11 + 0.5).floor()
    used = (pixel >= first_BS1) & (pixel < end_BS1) & (pixel < length_B[:, None, None])
    raw = _cubic((pixel + 0.5 - centre_BS1) / spread_B11) * used
    return raw / raw.sum(dim=2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel, 0 from 2 on."""
    x = x.abs()
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def resampled(
    pixel_PC: Tensor, start_B: Whole, width_B: Whole, box_B4: Whole, side: int, *, out: Tensor | None = None
) -> Tensor:
    """Resized crops of images that lie one behind the other, uint8 (B, C, S, S).

    `pixel_PC` are all pixels of all images, uint8; image i begins at pixel `start_B[i]` and has rows of
    `width_B[i]` pixels. What is on the host says how large everything is, so that no device is waited for.
    """
    batch, channels = len(start_B), pixel_PC.shape[1]
    if out is None:
        out = torch.empty(batch, channels, side, side, dtype=torch.uint8, device=pixel_PC.device)
    top, left, height, width = box_B4.T
    facts_4B = np.stack([start_B + top * width_B + left, width_B, height, width])
    for part in _parts(height, width, channels):
        tall, wide = int(height[part].max()), int(width[part].max())
        corner, stride, high, broad = sent(facts_4B[:, part], pixel_PC.device)
        row = torch.arange(tall, device=pixel_PC.device).minimum(high[:, None] - 1)
        column = torch.arange(wide, device=pixel_PC.device).minimum(broad[:, None] - 1)
        place_BHW = (corner[:, None] + row * stride[:, None])[:, :, None] + column[:, None]
        window_BHWC = pixel_PC.index_select(0, place_BHW.flatten()).view(*place_BHW.shape, channels)
        window_BCHW = window_BHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        # (B, S, W) @ (B, W, C H), and then (B, S C, H) @ (B, H, S): nothing is copied in between
        across = torch.bmm(weights(broad, wide, side), window_BCHW.flatten(1, 2).transpose(1, 2))
        across = across.round_().clamp_(0, 255).view(-1, side * channels, tall)
        down = torch.bmm(across, weights(high, tall, side).transpose(1, 2)).round_().clamp_(0, 255)
        out[part] = down.view(-1, side, channels, side).permute(0, 2, 3, 1).to(torch.uint8)
    return out


def _parts(height_B: Whole, width_B: Whole, channels: int) -> list[slice]:
    """Consecutive crops of which the windows have room together."""
    each = max(1, ROOM // max(1, int(height_B.max() * width_B.max()) * channels)) if len(height_B) else 1
    return [slice(begin, begin + each) for begin in range(0, len(height_B), each)]
