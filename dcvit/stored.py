"""Decoded images, one behind the other in one piece of memory, from which crops are taken.

Small sets are held so on a GPU; a cache file is the same on disk.

Shapes: N images, P pixels of all of them, B crops, S the side of a crop.
"""

from collections.abc import Iterator, Sequence
from functools import partial
import gc
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcvit.ahead import ahead
from dcvit.crops import Whole
from dcvit.datasets import Pictures
from dcvit.decoding import decoded
from dcvit.resampling import resampled

SHARE = 0.1  # of a GPU's free memory that images may take; `memory.USED` leaves so much
SAMPLED = 64  # images by which the size of all is judged


class Stored(NamedTuple):
    """Images of any sizes."""

    pixels_P3: Tensor  # uint8
    start_N: Whole  # of an image, in pixels; on the host, as are the sizes
    height_N: Whole
    width_N: Whole

    def image(self, index: int) -> Tensor:
        """One of the images, uint8 (3, H, W): no copy."""
        start, height, width = (int(part[index]) for part in self[1:])
        return self.pixels_P3[start : start + height * width].view(height, width, 3).permute(2, 0, 1)

    def crops(self, images_B: Sequence[int] | Whole, box_B4: Whole, side: int) -> Tensor:
        """Resized crops of some images, uint8 (B, 3, S, S), where the images are."""
        at = np.asarray(images_B, dtype=np.int64)
        return resampled(self.pixels_P3, self.start_N[at], self.width_N[at], box_B4, side)


def laid_out(height_N: Whole, width_N: Whole) -> Whole:
    """Where images of these sizes begin, in pixels, when each follows the one before."""
    area_N = height_N * width_N
    return np.cumsum(area_N) - area_N


def joined(images: Sequence[Tensor], device: torch.device) -> Stored:
    """Images (3, H, W) in one piece, on the device."""
    height_N, width_N = np.array([image.shape[1:] for image in images], dtype=np.int64).reshape(-1, 2).T
    flat = [image.permute(1, 2, 0).reshape(-1, 3) for image in images]
    return Stored(torch.cat(flat).to(device), laid_out(height_N, width_N), height_N, width_N)


def in_memory(pictures: Pictures, device: torch.device, *, threads: int = 0) -> Stored | None:
    """All images, on a GPU of whose free memory they take at most a tenth; None if more, or if it is none."""
    if device.type != "cuda":
        return None
    room = _room(device)
    if not pictures.held and (pictures.size is None or _estimated(pictures) > room):
        return None
    parts, used = [], 0
    for images in _decoded(pictures, threads):
        part = joined(images, device)
        parts.append(part)
        used += part.pixels_P3.numel()
        if used > room:
            return None
    height_N, width_N = (np.concatenate([part[which] for part in parts]) for which in (2, 3))
    whole = torch.cat([part.pixels_P3 for part in parts])
    parts.clear()
    torch.cuda.empty_cache()  # else as much again stayed torch's
    return Stored(whole, laid_out(height_N, width_N), height_N, width_N)


def moved(stored: Stored, device: torch.device) -> Stored | None:
    """The images on a GPU, if it has room for them; None if not, or if the device is none."""
    if device.type != "cuda" or stored.pixels_P3.numel() > _room(device):
        return None
    return stored._replace(pixels_P3=stored.pixels_P3.to(device))


def _room(device: torch.device) -> int:
    """Bytes that images may take; what an earlier run of this process used counts as free."""
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0] * SHARE)


def _estimated(pictures: Pictures) -> float:
    """Bytes of all images decoded, judged by some of them."""
    some = np.unique(np.linspace(0, len(pictures) - 1, SAMPLED).astype(np.int64)).tolist()
    return sum(decoded(pictures, index).numel() for index in some) / len(some) * len(pictures)


def _decoded(pictures: Pictures, threads: int, each: int = 512) -> Iterator[list[Tensor]]:
    """All images in order, so many at a time."""
    parts = [range(first, min(first + each, len(pictures))) for first in range(0, len(pictures), each)]
    one = partial(decoded, pictures)
    if threads == 0:
        yield from ([one(index) for index in part] for part in parts)
        return
    with ahead(threads) as pool:
        for part in parts:
            yield list(pool.map(one, part))
