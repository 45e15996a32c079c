"""What a folder of images holds, before anything is trained on it. No torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
import json
import os
from pathlib import Path
from statistics import median
from typing import NamedTuple

from dcvit.sources import IMAGENET_TEST, IMAGENET_TRAIN, File, Source, SplitName
from dcvit.wnids import IMAGENET_CLASSES, imagenet_wnids, is_wnid

SPLITS: tuple[SplitName, ...] = ("train", "val")
BORDERS = (64, 128, 224, 384, 512)  # pixels of the shorter side: below 224, or 384, images are enlarged
NAMED = 20  # damaged files that a text names; data has all of them


class Look(NamedTuple):
    """What one file is."""

    size: tuple[int, int] | None  # width and height in pixels; None: it can't be read
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """One split's images."""

    images: int
    bytes: int
    fewest: int  # images of the smallest class
    most: int  # of the largest
    shorter_sides: Mapping[str, int]  # a range of pixels -> images whose shorter side lies in it
    median_size: tuple[int, int] | None  # of widths and of heights; None if nothing can be read
    unreadable: tuple[str, ...]  # path: why


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a folder holds."""

    place: str
    fingerprint: str
    classes: int
    wnids: int  # classes that are named by a wnid
    imagenet_wnids: int  # by one of ImageNet-1k's
    decoded: bool  # whether every image was decoded to the end, or only its head read
    splits: Mapping[str, SplitFacts]
    differs: tuple[str, ...]  # what keeps it from being ImageNet-1k; none: it is, by classes and counts

    @property
    def unreadable(self) -> int:
        return sum(len(split.unreadable) for split in self.splits.values())


def examine(source: Source, *, decode: bool = True) -> DataFacts:
    """Opens every image of a folder, or of shards; `decode` says whether to the end, as training will.

    An image that can't be read is a finding, no error.
    """
    assert source.root is not None, "only files can be looked at"
    splits: dict[str, SplitFacts] = {
        split: _split_facts(source.root, getattr(source, split), decode=decode) for split in SPLITS
    }
    known = set(imagenet_wnids())
    return DataFacts(
        place=str(source.root),
        fingerprint=source.fingerprint,
        classes=len(source.classes),
        wnids=sum(map(is_wnid, source.classes)),
        imagenet_wnids=sum(name in known for name in source.classes),
        decoded=decode,
        splits=splits,
        differs=tuple(_differences(source, splits, known)),
    )


def _split_facts(root: Path, files: Sequence[File], *, decode: bool) -> SplitFacts:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(pool.map(partial(look_at, root, decode=decode), files))
    sizes = [look.size for look in looks if look.size is not None]
    counts = Counter(file.label for file in files).values()
    return SplitFacts(
        images=len(files),
        bytes=sum(file.size for file in files),
        fewest=min(counts, default=0),
        most=max(counts, default=0),
        shorter_sides=histogram([min(size) for size in sizes]),
        median_size=_median(sizes),
        unreadable=tuple(
            f"{root / str(file)}: {look.problem}"
            for file, look in zip(files, looks, strict=True)
            if look.problem
        ),
    )


def look_at(root: Path, file: File, *, decode: bool) -> Look:
    """Size of one image, or what is wrong with its file."""
    from PIL import Image

    try:
        with file.open(root) as content, Image.open(content) as image:
            if decode:
                image.convert("RGB")
            return Look(image.size)
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        return Look(None, str(error) or type(error).__name__)


def histogram(sides: Sequence[int]) -> dict[str, int]:
    """How many shorter sides lie in each range of pixels.

    >>> histogram([8, 223, 224, 600])
    {'below 64': 1, '64 to 127': 0, '128 to 223': 1, '224 to 383': 1, '384 to 511': 0, '512 and more': 1}
    """
    names = [f"below {BORDERS[0]}"]
    names += [f"{low} to {high - 1}" for low, high in pairwise(BORDERS)]
    names.append(f"{BORDERS[-1]} and more")
    counts = Counter(sum(side >= border for border in BORDERS) for side in sides)
    return {name: counts[index] for index, name in enumerate(names)}


def _median(sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    if not sizes:
        return None
    widths, heights = zip(*sizes, strict=True)
    return round(median(widths)), round(median(heights))


def _differences(source: Source, splits: Mapping[str, SplitFacts], known: set[str]) -> list[str]:
    """What a folder would have to be to count as ImageNet-1k."""
    found = []
    named = any(map(is_wnid, source.classes)) or not all(name.isdecimal() for name in source.classes)
    if len(source.classes) != IMAGENET_CLASSES:
        found.append(f"{len(source.classes):,} classes instead of 1,000")
    elif named and (strangers := set(source.classes) - known):
        found.append(f"{len(strangers):,} classes that are none of its wnids ({min(strangers)})")
    for split, wanted in (("train", IMAGENET_TRAIN), ("val", IMAGENET_TEST)):
        if (count := splits[split].images) != wanted:
            found.append(f"{count:,} images in {split} instead of {wanted:,}")
    val = splits["val"]
    if val.images == IMAGENET_TEST and (val.fewest, val.most) != (50, 50):
        found.append(f"{val.fewest:,} to {val.most:,} images a class in val instead of 50")
    return found


def as_json(facts: DataFacts) -> str:
    """The facts as JSON."""
    return json.dumps({**asdict(facts), "is_imagenet1k": not facts.differs}, indent=1)


def as_text(facts: DataFacts) -> str:
    """The facts for a terminal."""
    lines = [
        f"{facts.place}, fingerprint {facts.fingerprint[:12]}",
        f"classes       {facts.classes:,}, {facts.wnids:,} of them named by wnids, "
        f"{facts.imagenet_wnids:,} by those of ImageNet-1k",
    ]
    for name, split in facts.splits.items():
        lines += _split_text(name, split)
    how = (
        "decoded to the end" if facts.decoded else "only their heads were read, damage further on is not seen"
    )
    lines.append(f"unreadable    {facts.unreadable:,} ({how})")
    problems = [problem for split in facts.splits.values() for problem in split.unreadable]
    lines += [f"  {problem}" for problem in problems[:NAMED]]
    if len(problems) > NAMED:
        lines.append(f"  ... and {len(problems) - NAMED:,} more")
    lines.append(
        "not ImageNet-1k: " + "; ".join(facts.differs)
        if facts.differs
        else "ImageNet-1k by its classes and counts (its pixels are compared with nothing)"
    )
    return "\n".join(lines)


def _split_text(name: str, split: SplitFacts) -> list[str]:
    a_class = f"{split.fewest:,}" if split.fewest == split.most else f"{split.fewest:,} to {split.most:,}"
    size = f", median {split.median_size[0]} x {split.median_size[1]} px" if split.median_size else ""
    lines = [
        f"{name:<13} {split.images:,} images, {a_class} a class, {split.bytes / 2**30:.2f} GiB{size}; shorter side, px:"
    ]
    widest = max(split.shorter_sides.values(), default=0)
    for where, count in split.shorter_sides.items():
        bar = "#" * (-(-40 * count // widest) if widest else 0)
        lines.append(f"  {where:<13} {count:>9,}  {bar}".rstrip())
    return lines
