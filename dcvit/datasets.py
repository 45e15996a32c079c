"""The images of a source, opened.

Small sets are decoded once and held; larger ones are opened file by file, by whoever needs
them (a loading worker, usually).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image
import torch
from torch import Tensor

from dcvit.errors import DataError
from dcvit.recipe import Recipe
from dcvit.sources import KINDS, File, Source, SplitName, subset

HELD_BYTES = 256 << 20  # of compressed files: sets up to here are held in memory, decoded


class Pictures(NamedTuple):
    """The images of one split, in order."""

    labels: Tensor  # int64 (N,)
    open: Callable[[int], Image.Image]  # index -> RGB image
    encoded: Callable[[int], bytes] | None = None  # index -> the image's file, where each has one
    size: int | None = None  # bytes of these files together
    held: bool = False  # decoded, in memory
    identity: str = ""  # names the images, where they have a name

    def __len__(self) -> int:
        return len(self.labels)


def pictures(source: Source, split: SplitName, recipe: Recipe) -> Pictures:
    """The split's images as the recipe wants them; DataError if a label has no place in its classes."""
    count = recipe.train_images if split == "train" else recipe.test_images
    found = _pictures(source, split, count)
    if (largest := int(found.labels.max())) >= recipe.classes:
        raise DataError(
            f"{source.root or source.name}: {split} has the label {largest}, the recipe has {recipe.classes} "
            f"classes (0 to {recipe.classes - 1})"
        )
    return found


@lru_cache(maxsize=4)  # the runs of a table share the decoded images; sources compare by identity
def _pictures(source: Source, split: SplitName, count: int | None) -> Pictures:
    identity = f"{source.fingerprint} {split} {count}"
    if source.name == "digits":
        return _digits(split, count, identity)
    if source.timm:
        return _named(source.timm, split, count, identity)
    root = source.root
    assert root is not None
    files = subset(getattr(source, split), count)
    labels = torch.tensor([file.label for file in files])

    def lost(file: File, error: Exception) -> DataError:
        return DataError(f"{root / str(file)} can't be read any more: {error}")

    def read(file: File) -> Image.Image:
        try:
            with file.open(root) as content, Image.open(content, formats=KINDS) as image:
                return image.convert("RGB")
        except Exception as error:  # a damaged file makes Pillow raise almost anything
            raise lost(file, error) from error

    def encoded(index: int) -> bytes:
        try:
            with files[index].open(root) as content:
                return content.read()
        except OSError as error:
            raise lost(files[index], error) from error

    size = sum(file.size for file in files)
    if size <= HELD_BYTES:
        decoded = [read(file) for file in files]
        return Pictures(labels, decoded.__getitem__, encoded, size, True, identity)
    return Pictures(labels, lambda index: read(files[index]), encoded, size, False, identity)


def _named(name: str, split: SplitName, count: int | None, identity: str) -> Pictures:
    """One of timm's named sets that are read by index (hfds/...); its first `count` images."""
    from timm.data import create_dataset

    try:
        found = create_dataset(name, root=None, split="train" if split == "train" else "validation")
    except Exception as error:  # whatever the library behind the name raises, the user must hear it
        raise DataError(f"{name} can't be opened by timm: {type(error).__name__}: {error}") from error
    reader = found.reader
    labels = torch.tensor(reader.dataset[reader.label_key][:count])
    return Pictures(labels, lambda index: found[index][0].convert("RGB"), identity=identity)


def _digits(split: SplitName, count: int | None, identity: str) -> Pictures:
    """scikit-learn's digits, 8 x 8 pixels of 17 greys, as RGB; every fifth is held out."""
    from sklearn.datasets import load_digits  # takes 2 s, and only smoke runs want it

    values, labels = load_digits(return_X_y=True)
    held_out = np.arange(len(labels)) % 5 == 4
    chosen = np.flatnonzero(held_out if split == "val" else ~held_out)
    files = [File(str(index), int(labels[index]), 64) for index in chosen]
    taken = sorted(int(file.path) for file in subset(files, count))
    grey_NHW = np.round(values[taken].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    decoded = [Image.fromarray(grey_HW).convert("RGB") for grey_HW in grey_NHW]
    return Pictures(
        torch.from_numpy(labels[taken].astype(np.int64)), decoded.__getitem__, held=True, identity=identity
    )
