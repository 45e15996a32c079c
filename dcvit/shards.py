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
        return [Entry(*entry) for entry in json.loads(known.read_text(encoding="utf-8"))]
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
                    images[key] = member
                elif dot + ending == LABEL and (content := tar.extractfile(member)):
                    labels[key] = int(content.read())
    except (tarfile.TarError, ValueError) as error:
        raise DataError(f"{shard} can't be read as a shard: {error}") from error
    if odd := images.keys() ^ labels.keys():
        raise DataError(f"{shard}: sample {min(odd)!r} lacks its image or its {LABEL}")
    if not images or min(labels.values()) < 0:
        raise DataError(f"{shard}: {'a class number is negative' if images else 'there is no sample in it'}")
    for key, member in images.items():
        yield Entry(shard.name, member.name, labels[key], member.offset_data, member.size)
