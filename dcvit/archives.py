"""Archives from elsewhere: fetched under a bound, compared with a checksum, unpacked inside of a folder. No torch.

Nothing of an archive is believed: not its length, not its names, not its sizes, not its modes. What breaks a rule is
refused as a whole, and what is refused or cut off leaves nothing that looks like a set of images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
import gzip
import hashlib
import os
from pathlib import Path
import shutil
import tarfile
import tempfile
from time import monotonic
from typing import IO, TYPE_CHECKING, Literal, TypeVar
import unicodedata

from dcvit.errors import DataError

if TYPE_CHECKING:
    from http.client import HTTPResponse

BLOCK = 1 << 20  # bytes read and written at once
HEADERS = 1 << 20  # bytes of a tar between two members: headers, long names, padding
LONGEST_NAME, DEEPEST = 255, 32  # bytes of a part of a path, as file systems have it; parts of a path

Got = TypeVar("Got")


# --- fetching ------------------------------------------------------------------------------


def fetch(
    url: str,
    target: Path,
    *,
    checksum: str,
    algorithm: Literal["sha256", "md5"] = "sha256",
    max_bytes: int,
    timeout: float = 30.0,
    longest: float = 3600.0,
) -> None:
    """Writes what lies at an http(s) address to `target`, which is there afterwards only if its checksum is right.

    `checksum` is in hex; `timeout` bounds each wait for the network and `longest` all of it, in seconds. Proxies are
    those of the environment.

    DataError names the address if there is more than `max_bytes` or less than was announced, or if the checksum
    differs; OSError is of the network or the disk; ValueError for another kind of address.
    """
    from http.client import HTTPException

    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url}: an address that begins with https:// or http:// is needed")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    begun, received = monotonic(), 0
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file, _opened(url, timeout) as answer:
            announced = _announced(answer)
            if announced is not None and announced > max_bytes:
                raise DataError(f"{url} announces {announced:,} bytes; at most {max_bytes:,} are taken")
            # one byte beyond the bound tells too much from just enough
            while block := answer.read1(min(BLOCK, max_bytes + 1 - received)):
                received += len(block)
                if received > max_bytes:
                    raise DataError(f"{url} sends more than {max_bytes:,} bytes, which are all that is taken")
                if monotonic() - begun > longest:
                    raise DataError(
                        f"{url} sent {received:,} bytes in {longest:g} s and is not done: too slow"
                    )
                digest.update(block)
                file.write(block)
        if announced is not None and received < announced:
            raise DataError(f"{url} broke off after {received:,} of {announced:,} bytes")
        if digest.hexdigest() != checksum.lower():
            raise DataError(
                f"{url} sent something else than expected: its {algorithm} is {digest.hexdigest()} "
                f"and must be {checksum.lower()}. Nothing of it was opened"
            )
        os.replace(name, target)
    except HTTPException as error:
        raise DataError(f"{url} broke off after {received:,} bytes ({error!r})") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _opened(url: str, timeout: float) -> "HTTPResponse":
    """An answer of the network, and of nothing else: urllib's own opener would read file:// and ftp:// too."""
    from urllib import request

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    answer: HTTPResponse = opener.open(url, timeout=timeout)
    return answer


def _announced(answer: "HTTPResponse") -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() else None


# --- unpacking -----------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, *, max_bytes: int, max_members: int) -> int:
    """Unpacks a gzip-compressed tar to `folder`, which must not be there; returns the number of its files.

    It is written beside `folder` and gets its name by one move at the end. Files are readable by all, not executable,
    and as new as now, whatever the archive says.

    DataError names the archive and the member for: an absolute path, `..`, a backslash, a link, a device or a sparse
    file; names that are the same for some file system (Unicode, capitals); more than `max_bytes` of content, as
    counted while writing; more than `max_members`; whatever is cut off or damaged. OSError is of the disk.
    """
    if os.path.lexists(folder):
        raise DataError(f"{folder} is there already: {archive} is unpacked only to a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        files = _unpack(archive, temporary, max_bytes=max_bytes, max_members=max_members)
        temporary.chmod(0o755)  # mkdtemp's folders are private, images are to be shared
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return files


def _unpack(archive: Path, folder: Path, *, max_bytes: int, max_members: int) -> int:
    names, files, written = _Names(archive), 0, 0
    with gzip.open(archive) as packed:
        stream = _Bounded(packed)
        for number, (member, content) in enumerate(_members(archive, stream), 1):
            if number > max_members:
                raise DataError(
                    f"{archive} holds more than {max_members:,} members, which are all that is taken"
                )
            parts = names.add(member)
            path = folder.joinpath(*parts)
            if content is None:
                path.mkdir(mode=0o755, parents=True, exist_ok=True)
                continue
            if member.size > max_bytes - written:
                raise DataError(f"{archive}: with {member.name!r} it is more than {max_bytes:,} bytes")
            stream.allow(member.size + HEADERS)
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with open(path, "xb") as file:
                while block := _read(archive, lambda: content.read(BLOCK)):  # noqa: B023 (called at once)
                    written += len(block)
                    if written > max_bytes:
                        raise DataError(
                            f"{archive}: with {member.name!r} it is more than {max_bytes:,} bytes"
                        )
                    file.write(block)
            path.chmod(0o644)
            files += 1
    return files


def _members(archive: Path, stream: "_Bounded") -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Folders, and files with their content, which must be read before the next is asked for."""
    stream.allow(HEADERS)
    with _read(archive, lambda: tarfile.open(fileobj=stream, mode="r|")) as tar:  # type: ignore[call-overload]
        while True:
            stream.allow(HEADERS)
            member = _read(archive, tar.next)
            if member is None:
                break
            if not (member.isreg() or member.isdir()) or member.issparse() or member.size < 0:
                raise DataError(
                    f"{archive}: {member.name!r} is neither a plain file nor a folder; links and devices are refused"
                )
            yield member, _read(archive, lambda: tar.extractfile(member)) if member.isreg() else None  # noqa: B023
        while _read(archive, lambda: stream.read(BLOCK)):  # to gzip's own checksum at the end
            pass


def _read(archive: Path, read: Callable[[], Got]) -> Got:
    """What `read` gives; DataError for what a damaged archive makes gzip and tarfile raise: almost anything."""
    try:
        return read()
    except DataError as error:
        raise DataError(f"{archive}: {error}") from None
    except Exception as error:
        raise DataError(
            f"{archive} is no tar.gz, cut off or damaged ({type(error).__name__}: {error}): fetch it again"
        ) from error


@dataclass
class _Bounded:
    """A stream that gives no more than was last allowed: a megabyte of gzip can hold a gigabyte of header."""

    packed: gzip.GzipFile
    left: int = 0

    def allow(self, count: int) -> None:
        self.left = count + tarfile.RECORDSIZE  # tarfile reads ahead by records

    def read(self, count: int) -> bytes:
        block = self.packed.read(min(count, self.left + 1))
        self.left -= len(block)
        if self.left < 0:
            raise DataError("a header, or what follows the last member, is larger than any that is needed")
        return block


@dataclass
class _Names:
    """The paths of an archive so far, by how the least careful file system would tell them apart."""

    archive: Path
    known: dict[tuple[str, ...], tuple[tuple[str, ...], bool]] = field(default_factory=dict)

    def add(self, member: tarfile.TarInfo) -> tuple[str, ...]:
        """The parts of the member's path below the folder; DataError if it leads out, or to where another one lies."""
        name, folder = member.name, member.isdir()
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise DataError(f"{self.archive}: {name!r} leads out of the folder that it is unpacked to")
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in parts) or len(parts) > DEEPEST:
            raise DataError(
                f"{self.archive}: the path {name[:80]!r}... has a part of more than {LONGEST_NAME} bytes, or more "
                f"than {DEEPEST} parts"
            )
        if not parts and not folder:
            raise DataError(f"{self.archive}: {name!r} is a file without a name")
        for end in range(1, len(parts) + 1):
            path = parts[:end]
            key = tuple(unicodedata.normalize("NFC", part.casefold()) for part in path)
            is_folder = folder or end < len(parts)
            # a folder may come again, under its very name; what comes back for a new path is the path itself
            there = self.known.setdefault(key, (path, is_folder))
            if there != (path, is_folder) or (end == len(parts) and not folder and there[0] is not path):
                raise DataError(
                    f"{self.archive}: {name!r} lies where {'/'.join(there[0])!r} does, on some file system or on all"
                )
        return parts
