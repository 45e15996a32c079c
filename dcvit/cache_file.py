"""The file of a cache of images: what stands where in it, and whether it is the wanted one and whole.

8 bytes                dcvitimg
8 bytes                length of the header, little endian
header                 JSON: layout, images, side, count, each (of a chunk), pixels (bytes of the images)
32 bytes               sha256 of header, sizes and sums; zeros while the file is not finished
int32 (count, 2)       sizes: height and width of every image
(chunks, 32)           sums: sha256 of the pixels of every chunk; zeros while it is not there
uint8                  pixels: the images' rows, one image behind the other, colours side by side
"""

from contextlib import suppress
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcvit.crops import Whole
from dcvit.errors import DataError
from dcvit.files import cache_folder, write_text

MAGIC = b"dcvitimg"
LAYOUT = 1
LONGEST_HEADER = 1 << 20  # bytes


class Plan(NamedTuple):
    """What a file has before its pixels, and where they lie."""

    header: bytes
    size_N2: NDArray[np.int32]
    each: int

    @property
    def front(self) -> bytes:
        """What the file begins with."""
        return MAGIC + len(self.header).to_bytes(8, "little") + self.header

    @property
    def sums_at(self) -> int:
        return len(self.front) + 32 + self.size_N2.nbytes

    @property
    def pixels_at(self) -> int:
        return self.sums_at + 32 * len(self.chunks)

    @property
    def chunks(self) -> list[range]:
        count = len(self.size_N2)
        return [range(first, min(first + self.each, count)) for first in range(0, count, self.each)]

    @property
    def length(self) -> int:
        """Of the whole file."""
        return self.pixels_at + 3 * int(self.area_N.sum())

    @property
    def area_N(self) -> Whole:
        return self.size_N2.astype(np.int64).prod(axis=1)

    def digest(self, sums: bytes) -> bytes:
        return hashlib.sha256(self.header + self.size_N2.tobytes() + sums).digest()

    def places(self) -> list[tuple[int, int]]:
        """Where the pixels of each chunk begin and end in the file."""
        edge = self.pixels_at + 3 * np.concatenate([[0], np.cumsum(self.area_N)])
        return [(int(edge[chunk.start]), int(edge[chunk.stop])) for chunk in self.chunks]


def front_of(path: Path, file: int, wanted: dict[str, Any]) -> tuple[Plan, bytes]:
    """What stands before the sums, and the digest; DataError if that is not a cache of the wanted images."""
    begin = os.pread(file, 16, 0)
    length = int.from_bytes(begin[8:], "little")
    if begin[:8] != MAGIC or length > LONGEST_HEADER:
        raise bad(path, "is not a cache of images")
    header = os.pread(file, length, 16)
    try:
        found = dict(json.loads(header))
    except (ValueError, TypeError) as error:
        raise bad(path, "is damaged: its header can't be read") from error
    if found.get("images") != wanted["images"]:
        raise bad(path, "is of other images than these")
    for name in ("layout", "side", "count", "each"):
        if found.get(name) != wanted[name]:
            raise bad(path, f"has {name} = {found.get(name)}, and {wanted[name]} is needed")
    sizes = os.pread(file, 8 * wanted["count"], 16 + length + 32)
    if len(sizes) != 8 * wanted["count"]:
        raise bad(path, "is cut short")
    plan = Plan(header, np.frombuffer(sizes, np.int32).reshape(-1, 2), wanted["each"])
    if 3 * int(plan.area_N.sum()) != found.get("pixels"):
        raise bad(path, "is damaged: the sizes of its images do not add up")
    return plan, os.pread(file, 32, 16 + length)


def bad(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} {why}. Give another folder with --cache, or remove this file to have it made anew"
    )


def verify(path: Path, file: int, plan: Plan, sums: bytes) -> None:
    """DataError names a file of which the pixels are not those that were written; looked at once a file."""
    known = _passed(path, sums)
    if known.exists():
        return
    for number, (begin, end) in enumerate(plan.places()):
        if (
            hashlib.sha256(os.pread(file, end - begin, begin)).digest()
            != sums[32 * number : 32 * number + 32]
        ):
            raise bad(path, f"is damaged: chunk {number} of the images does not have the checksum it had")
    remember(path, sums)


def _passed(path: Path, sums: bytes) -> Path:
    facts = path.stat()
    stamp = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino} ".encode() + sums
    return cache_folder() / "checked" / hashlib.sha256(stamp).hexdigest()


def remember(path: Path, sums: bytes) -> None:
    with suppress(OSError):  # a read-only home costs only the time of looking again
        write_text(_passed(path, sums), f"the cache {path} was read and had its checksums\n")
