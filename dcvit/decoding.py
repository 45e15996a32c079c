"""Images of a set as uint8 tensors: JPEGs by libjpeg-turbo, which lets other threads work; the rest by Pillow.

Both decode to the same pixels, and neither turns an image as its EXIF data may ask.
"""

from contextlib import suppress
from io import BytesIO

import numpy as np
from PIL import Image
import torch
from torch import Tensor
import torchvision.io  # noqa: F401 (makes torch.ops.image)

from dcvit.datasets import Pictures
from dcvit.sources import KINDS

RGB = 3  # torchvision's ImageReadMode.RGB
# torchvision.io.decode_jpeg calls this too, and warns that it will be in torchcodec one day
DECODE = getattr(torch.ops.image, "decode_jpeg", None)
FRAMES = (0xC0, 0xC1, 0xC2)  # markers before the size of a JPEG: baseline, extended, progressive


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Height and width of a plain JPEG of grey or three colours, None for anything else.

    >>> jpeg_size(b"not a JPEG") is None
    True
    """
    at = 2
    if content[:2] != b"\xff\xd8":
        return None
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[at + first : at + first + 2], "big") for first in (5, 7))
            plain = marker in FRAMES and content[at + 4] == 8 and content[at + 9] in (1, 3)
            return (height, width) if plain and height and width else None
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def decoded(pictures: Pictures, index: int) -> Tensor:
    """One image, uint8 (3, H, W), its colours side by side in memory. DataError names a file that can't be read."""
    if pictures.encoded is not None and not pictures.held and DECODE is not None:
        content = pictures.encoded(index)
        if is_plain(content):
            # where libjpeg-turbo fails, Pillow says what is wrong with the file, or reads it after all
            with suppress(RuntimeError):
                return DECODE(as_tensor(content), RGB, False)
    return as_pixels(pictures.open(index))


def is_plain(content: bytes) -> bool:
    """Whether a file is a JPEG that libjpeg-turbo decodes as Pillow does, and not too large to be decoded."""
    size, most = jpeg_size(content), Image.MAX_IMAGE_PIXELS
    return size is not None and (most is None or size[0] * size[1] <= most)


def as_tensor(content: bytes) -> Tensor:
    """The bytes of a file, uint8 (L,)."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def as_pixels(image: Image.Image) -> Tensor:
    """A Pillow image in RGB as uint8 (3, H, W), its colours side by side in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def size_of(pictures: Pictures, index: int) -> tuple[int, int]:
    """Height and width of one image; decodes it only where its file does not tell."""
    if pictures.encoded is not None:
        content = pictures.encoded(index)
        if size := jpeg_size(content):
            return size
        with suppress(Exception), Image.open(BytesIO(content), formats=KINDS) as image:
            return image.height, image.width
    image = pictures.open(index)  # also to say what is wrong with a file
    return image.height, image.width
