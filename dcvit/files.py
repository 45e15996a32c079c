"""Files that are either there in full or not at all."""

from collections.abc import Callable, Sequence
from contextlib import suppress
import errno
import hashlib
import os
from pathlib import Path
import tempfile


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path`, then puts the result in its place.

    A reader sees the old file or the new one; a full disk or a kill leaves the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's files are private, results are to be shared
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text, in UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the file system can do that for folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, *, of: Sequence[str]) -> None:
    """Removes what `write_atomically` left of files of these names (or beginnings) when it was killed."""
    for name in of:
        for path in folder.glob(f".{name}*"):
            path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where dcvit keeps what it can make again: XDG_CACHE_HOME/dcvit, ~/.cache/dcvit by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dcvit")


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
