"""WebDataset shards read by index: where in which tar file each image lies. No torch.

A stream of shards can't be taken up again at image 1,000, nor shuffled as a list can; tar files
are not compressed, so one pass over their headers makes them a list.
"""

from collections.abc import Iterator
from contextlib import suppress
import hashlib
import json
from pathlib import Path
import tarfile
from typing import NamedTuple

from dcvit.errors import DataError
from dcvit.files import cache_folder, write_text

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
LABEL = ".cls"
LONGEST_LABEL = 20  # bytes of a class number
MOST_CLASSES = 1_000_000


class Entry(NamedTuple):
    """One image of a shard."""

    shard: str  # the tar file's name
    name: str  # the member's name
    label: int
    offset: int  # of its bytes in the tar file
    size: int


def entries(folder: Path, split: str) -> list[Entry]:
    """The images of all shards of `folder` that have `split` in their name, in order.

    A sample is an image and a class number (`.cls`) of one name before the first dot. The
    result is remembered in the user's cache under the shards' names, sizes and times.
    DataError if there is no shard, or a sample lacks one of the two.
    """
    shards = sorted(folder.glob(f"*{split}*.tar"))
    if not shards:
        raise DataError(
            f"{folder} has no *{split}*.tar: wds/FOLDER takes a folder of shards for train and val"
        )
    stamp = "".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in shards)
    known = cache_folder() / "shards" / f"{hashlib.sha256(stamp.encode()).hexdigest()}.json"
    if known.exists():
        remembered = [Entry(*entry) for entry in json.loads(known.read_text(encoding="utf-8"))]
        # what is remembered opens no file but the shards that were asked for
        if {entry.shard for entry in remembered} <= {path.name for path in shards}:
            return remembered
    found = [entry for shard in shards for entry in _of_shard(shard)]
    with suppress(OSError):  # a read-only home costs only the time of looking again
        write_text(known, json.dumps(found))
    return found


def _of_shard(shard: Path) -> Iterator[Entry]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, dot, ending = name.partition(".")
                key = folder + slash + stem
                if dot + ending.lower() in IMAGES:
                    images[key] = _plain(member)
                elif dot + ending == LABEL and (content := tar.extractfile(_plain(member))):
                    if member.size > LONGEST_LABEL:
                        raise ValueError(
                            f"{member.name!r} has {member.size:,} bytes, too many for a class number"
                        )
                    labels[key] = int(content.read())
    except Exception as error:  # a damaged header makes tarfile raise almost anything
        raise DataError(f"{shard} can't be read as a shard: {error or type(error).__name__}") from error
    if odd := images.keys() ^ labels.keys():
        raise DataError(f"{shard}: sample {min(odd)!r} lacks its image or its {LABEL}")
    if not images or min(labels.values()) < 0:
        raise DataError(f"{shard}: {'a class number is negative' if images else 'there is no sample in it'}")
    if max(labels.values()) >= MOST_CLASSES:
        raise DataError(
            f"{shard}: class number {max(labels.values())} is above {MOST_CLASSES - 1:,}, the largest"
        )
    length = shard.stat().st_size
    for key, member in images.items():
        if member.offset_data + member.size > length:
            raise DataError(f"{shard}: {member.name!r} ends behind the end of the shard")
        yield Entry(shard.name, member.name, labels[key], member.offset_data, member.size)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The member; ValueError for a link, which would be the bytes of another one, and for what has holes."""
    if not member.isreg() or member.issparse() or member.size < 0:
        raise ValueError(f"{member.name!r} is no plain file")
    return member
