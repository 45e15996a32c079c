"""Which of a model's outputs stands for which class of a folder: ImageNet's classes are known by their wnids. No torch.

A wnid is a noun's number in WordNet, n01440764 for a tench. ImageNet-1k's classes are numbered in
the order of their wnids, and a folder of some of them is scored by a 1,000-way model through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
import re
from typing import Literal

from dcvit.errors import DataError

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Labels:
    """For every class of the images the number of the output that stands for it, and how that was found."""

    outputs: tuple[int, ...]
    by: Literal["wnids", "order"]


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The wnids of ImageNet-1k in the order of a model's outputs, as timm has them."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


def is_wnid(name: str) -> bool:
    """Whether a name looks like one, of ImageNet-1k or not.

    >>> is_wnid("n01440764"), is_wnid("tench")
    (True, False)
    """
    return re.fullmatch(r"n[0-9]{8}", name) is not None


def labels_of(classes: Sequence[str], outputs: int, *, imagenet: bool, place: str) -> Labels:
    """The outputs that stand for the classes of `place`, for a model with so many outputs.

    A 1,000-way model is taken to tell ImageNet's classes apart if the classes have wnids; else, and
    with any other number of outputs, there must be as many classes as outputs, in the same order.
    `imagenet` says that the model is known to tell ImageNet's apart: then classes without wnids must
    be numbered 0 to 999, as they are in shards. DataError says what does not fit.
    """
    wnids = outputs == IMAGENET_CLASSES and all(is_wnid(name) for name in classes)
    if wnids:
        known = {name: index for index, name in enumerate(imagenet_wnids())}
        strangers = [name for name in classes if name not in known]
        if not strangers:
            return Labels(outputs=tuple(known[name] for name in classes), by="wnids")
        if imagenet or len(classes) != outputs:
            raise DataError(
                f"{place}: {strangers[0]} is none of ImageNet-1k's 1,000 wnids ({len(strangers)} of "
                f"{len(classes)} classes are not): leave those classes out"
            )
    numbered = tuple(classes) == tuple(map(str, range(outputs)))
    if len(classes) == outputs and (numbered or not imagenet):
        return Labels(outputs=tuple(range(outputs)), by="order")
    odd = next((name for name in classes if not is_wnid(name)), classes[0])
    raise DataError(
        f"{place} has {len(classes)} classes ({odd!r} is one) and the model has {outputs} outputs: which stands for "
        "which can be told for folders named by ImageNet's wnids (n01440764, ...) and a 1,000-way model"
        + (
            ", or for classes numbered 0 to 999"
            if imagenet
            else ", or for as many classes as outputs, in the same order"
        )
    )
