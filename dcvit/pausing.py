"""The saved state of a paused run: one file, named by its checksum, which tells without torch where the run was.

    state-SHA256.safetensors    the tensors; in its header, as JSON, the `Course` of the run

It comes by one move and its name tells whether it is whole, so that no half of a state and no
flipped bit is ever taken up. `dcvit.checkpoint` writes and reads the tensors.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
import hashlib
import json
from pathlib import Path
from typing import Any

LONGEST_HEADER = 100 << 20  # bytes; safetensors refuses longer ones too


@dataclass(frozen=True, kw_only=True)
class Course:
    """Where a run is and what it has gathered, but for its tensors. Times in seconds."""

    maker: dict[
        str, Any
    ]  # run, images, code, versions, device: a run goes on only where all are as they were
    update: int  # so many are done
    updates: int  # of the whole run
    evolution: list[dict[str, Any]]  # the finished epochs, as in a record
    best: dict[str, float]
    started: str
    seconds: float
    epoch_seconds: float  # of them in the epoch that is not finished

    @property
    def seconds_left(self) -> float:
        """How long the rest of the run takes at the pace it had."""
        return self.seconds / self.update * (self.updates - self.update)


class UnusableState(ValueError):
    """A saved state from which a run can't go on; the message says why."""


def find(folder: Path) -> Path | None:
    """The newest state in a run's folder, usable or not."""
    return max(_states(folder), key=lambda path: path.stat().st_mtime_ns, default=None)


def forget(folder: Path, *, but: Path | None = None) -> None:
    """Removes the states in a run's folder."""
    for path in _states(folder):
        if path != but:
            path.unlink()


def _states(folder: Path) -> Iterator[Path]:
    return folder.glob("state-*.safetensors")


def path_of(folder: Path, content: bytes) -> Path:
    """Where a state of this content belongs."""
    return folder / f"state-{hashlib.sha256(content).hexdigest()}.safetensors"


def header_of(course: Course) -> dict[str, str]:
    """What `read_course` finds in the header of a state."""
    return {"course": json.dumps(asdict(course), allow_nan=False)}


def read_course(path: Path) -> Course:
    """The course in the header of a state, whose checksum is not looked at. UnusableState if there is none."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        return Course(**json.loads(header["__metadata__"]["course"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableState(f"{path} can't be read as the state of a run ({error})") from error


def require_same(maker: dict[str, Any], course: Course, path: Path) -> None:
    """UnusableState names what differs, if anything, between who saved a state and who wants to go on from it."""
    names = sorted(maker.keys() | course.maker.keys())
    changed = [
        f"{name} {course.maker.get(name)} (now {maker.get(name)})"
        for name in names
        if course.maker.get(name) != maker.get(name)
    ]
    if changed:
        raise UnusableState(f"{path} was saved with {', '.join(changed)}")


@cache  # the code that runs is the one that was there at first
def code_digest() -> str:
    """12 hex digits that change with dcvit's code. A commit would not do: it says nothing of a changed tree."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
