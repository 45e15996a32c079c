"""One file with all training images of a source, decoded and resized once, from which crops are taken.

A file that is being made is called PATH.part, keeps what is finished when its maker is killed, and takes
its name when it is whole; a lock on PATH.lock lets one process make it while others wait for it.
`cache_file` says what is in it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path
import shutil
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch

from dcvit.ahead import Job, finished
from dcvit.cache_file import LAYOUT, Plan, bad, front_of, remember, verify
from dcvit.datasets import Pictures
from dcvit.decoding import decoded, size_of
from dcvit.errors import DataError, EnvironmentProblem, Paused
from dcvit.resampling import resized
from dcvit.stored import Stored, laid_out
from dcvit.telling import dropped

SHARE = (
    0.875  # of a cached image's short side that a recipe's resolution is: what ImageNet's test images have
)
EACH = 64  # images of a chunk
NOTHING = bytes(32)


def side_for(resolution: int) -> int:
    """The short side of cached images, for crops of so many pixels.

    >>> side_for(224), side_for(16)
    (256, 18)
    """
    return int(resolution / SHARE)


def file_in(folder: Path, pictures: Pictures, side: int) -> Path:
    """The file of these images at this size in a folder of caches: each set, subset and size has its own."""
    return folder / f"{_name_of(pictures)[:16]}-{side}.images"


def cached(
    path: Path, pictures: Pictures, side: int, *, threads: int = 0, stopped: Callable[[], str] = str
) -> Stored:
    """The images of a cache file, mapped into memory; the file is made where it is missing.

    DataError if the file is another one, or damaged; EnvironmentProblem if it can't be made there; Paused, with
    what is finished on disk, when `stopped` gives a reason while it is made.
    """
    wanted = _wanted(pictures, side)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # by its name it is whole, and a lock could not be made
        if path.exists() and not os.access(path.parent, os.W_OK):
            return _opened(path, wanted)
        with _locked(path):
            if not path.exists():
                _make(path, pictures, wanted, threads, stopped)
            return _opened(path, wanted)
    except OSError as error:
        room = "make room there, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise EnvironmentProblem(
            f"the cache {path} can't be made or read ({error.strerror or error}): {room}give another folder with "
            "--cache, or leave it out"
        ) from error


def _wanted(pictures: Pictures, side: int) -> dict[str, Any]:
    """What the header of a cache of these images says, but for the number of bytes."""
    named = _name_of(pictures)
    return {"layout": LAYOUT, "images": named, "side": side, "count": len(pictures), "each": EACH}


def _name_of(pictures: Pictures) -> str:
    if not pictures.identity:
        raise ValueError("images without a name can't be cached: nothing would tell them from others")
    return hashlib.sha256(pictures.identity.encode() + pictures.labels.numpy().tobytes()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """While inside, no other process makes or checks this file. Who dies lets go."""
    with open(path.with_name(path.name + ".lock"), "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another process is at {path}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    with dropped(2):
        print(text, file=sys.stderr, flush=True)


def _opened(path: Path, wanted: dict[str, Any]) -> Stored:
    with open(path, "rb") as file:
        plan, digest = front_of(path, file.fileno(), wanted)
        sums = os.pread(file.fileno(), 32 * len(plan.chunks), plan.sums_at)
        length = os.fstat(file.fileno()).st_size
        if length != plan.length:
            raise bad(path, f"has {length:,} bytes instead of {plan.length:,}")
        if plan.digest(sums) != digest:
            raise bad(path, "is damaged: its index does not have the checksum it had")
        verify(path, file.fileno(), plan, sums)
    # "c": nothing is ever written to the file, and torch does not ask whether that would be allowed
    pixels_P3 = np.memmap(path, np.uint8, "c", plan.pixels_at, (int(plan.area_N.sum()), 3))
    height_N, width_N = plan.size_N2.T.astype(np.int64)
    return Stored(torch.from_numpy(pixels_P3), laid_out(height_N, width_N), height_N, width_N)


# --- a new one -----------------------------------------------------------------------------


def _make(
    path: Path, pictures: Pictures, wanted: dict[str, Any], threads: int, stopped: Callable[[], str]
) -> None:
    part = path.with_name(path.name + ".part")
    with open(part, "r+b" if part.exists() else "x+b") as file:
        begun = os.fstat(file.fileno()).st_size > 0
        plan = _gone_on(part, file.fileno(), wanted) if begun else None
        if plan is None:
            plan = _planned(pictures, wanted, threads)
            _require_room(path, plan.length, 0, len(pictures))
            _begin(file.fileno(), plan)
        else:
            _require_room(path, plan.length, 512 * os.fstat(file.fileno()).st_blocks, len(pictures))
        sums = bytearray(os.pread(file.fileno(), 32 * len(plan.chunks), plan.sums_at))
        for _ in _filled(file.fileno(), plan, sums, pictures, threads):
            if why := stopped():
                raise Paused(f"{why}, while {path} was made: the same call goes on from there")
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), plan.digest(bytes(sums)), len(plan.front))
        os.fsync(file.fileno())
    os.replace(part, path)
    remember(path, bytes(sums))
    _say(f"the cache {path} is made")


def _planned(pictures: Pictures, wanted: dict[str, Any], threads: int) -> Plan:
    """The sizes of all images, from the beginnings of their files."""
    size_N2 = np.zeros((len(pictures), 2), np.int32)

    def look(chunk: range) -> Callable[[], None]:
        def part() -> None:
            for index in chunk:
                size_N2[index] = fitted(*size_of(pictures, index), wanted["side"])

        return part

    chunks = (range(first, min(first + EACH, len(pictures))) for first in range(0, len(pictures), EACH))
    for _ in finished((Job(None, [look(chunk)]) for chunk in chunks), threads=threads):
        pass
    pixels = 3 * int(size_N2.astype(np.int64).prod(axis=1).sum())
    return Plan(json.dumps({**wanted, "pixels": pixels}).encode(), size_N2, EACH)


def fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """The size of an image of which the short side is made `side` pixels, never more than it was.

    >>> fitted(375, 500, 256), fitted(100, 50, 256)
    ((256, 341), (100, 50))
    """
    short, long = min(height, width), max(height, width)
    if short <= side:
        return height, width
    other = max(1, int(side * long / short))
    return (side, other) if height <= width else (other, side)


def _begin(file: int, plan: Plan) -> None:
    """What stands before the sums; the very beginning last, so that a file that has it has all of that."""
    os.truncate(file, 0)
    os.truncate(file, plan.length)
    _write(file, plan.size_N2.tobytes(), len(plan.front) + 32)
    os.fsync(file)
    _write(file, plan.front, 0)


def _require_room(path: Path, needed: int, there: int, count: int) -> None:
    free = shutil.disk_usage(path.parent).free
    _say(f"making the cache {path} of {count:,} images: {_gigabytes(needed)}, once")
    if free + there < needed:
        raise EnvironmentProblem(
            f"the cache {path} takes {_gigabytes(needed)}, and {_gigabytes(free)} are free there: make room, give "
            "another folder with --cache, or leave it out"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _gone_on(part: Path, file: int, wanted: dict[str, Any]) -> Plan | None:
    """What an earlier maker planned; None if it was killed before that. Forgets chunks that did not get to the disk."""
    if os.pread(file, 16, 0) == bytes(16):
        return None
    plan, _ = front_of(part, file, wanted)
    kept = 0
    for number, (begin, end) in enumerate(plan.places()):
        at = plan.sums_at + 32 * number
        expected = os.pread(file, 32, at)
        if expected == NOTHING:
            continue
        if hashlib.sha256(os.pread(file, end - begin, begin)).digest() == expected:
            kept += 1
        else:
            os.pwrite(file, NOTHING, at)
    _say(f"going on with {part}: {kept} of {len(plan.chunks)} chunks are there")
    return plan


def _filled(file: int, plan: Plan, sums: bytearray, pictures: Pictures, threads: int) -> Iterator[None]:
    """Writes the chunks that are missing, one at each step, and their sums into the file and `sums`."""

    def fill(number: int, chunk: range, begin: int) -> Callable[[], None]:
        def part() -> None:
            pixels = b"".join(_pixels(pictures, index, plan.size_N2[index]) for index in chunk)
            digest = hashlib.sha256(pixels).digest()
            _write(file, pixels, begin)
            _write(file, digest, plan.sums_at + 32 * number)
            sums[32 * number : 32 * number + 32] = digest

        return part

    missing = (
        Job(None, [fill(number, chunk, begin)])
        for number, (chunk, (begin, _)) in enumerate(zip(plan.chunks, plan.places(), strict=True))
        if sums[32 * number : 32 * number + 32] == NOTHING
    )
    yield from finished(missing, threads=threads)


def _write(file: int, content: bytes, at: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(file, content[done:], at + done)


def _pixels(pictures: Pictures, index: int, size: NDArray[np.int32]) -> bytes:
    image = decoded(pictures, index)
    height, width = size.tolist()
    if fitted(image.shape[1], image.shape[2], min(height, width)) != (height, width):
        raise DataError(
            f"image {index} of the set is now {image.shape[2]} x {image.shape[1]} pixels, and was not"
        )
    if image.shape[1:] != (height, width):
        image = resized(image, height, width)
    return image.permute(1, 2, 0).numpy().tobytes()
