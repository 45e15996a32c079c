"""The saved states of a run: one file each, named by its checksum, which tells without torch where the run was.

    state-UPDATE-SHA256.safetensors    the tensors; in its header, as JSON, the `Course` of the run

A state comes by one move and its name tells whether it is whole, so that no half of a state and no
flipped bit is ever taken up. The last two are kept. `dcvit.checkpoint` writes and reads the tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
import hashlib
import json
from pathlib import Path
import re
from typing import Any

from dcvit.errors import EnvironmentProblem

KEPT = 2  # states of a run
IDENTITY = ("run", "images", "weights")  # a state of other ones is of another run
# What may change between stop and go: bits are then equal no more, and the record says so.
MACHINE = ("device_name", "platform", "threads", "processes", "pieces")
LONGEST_HEADER = 100 << 20  # bytes; safetensors refuses longer ones too


@dataclass(frozen=True, kw_only=True)
class Course:
    """Where a run is and what it has gathered, but for its tensors. Times in seconds."""

    maker: dict[str, Any]  # run, images, code, versions, device
    update: int  # so many are done
    updates: int  # of the whole run
    evolution: list[dict[str, Any]]  # the finished epochs, as in a record
    best: dict[str, float]
    started: str
    seconds: float
    epoch_seconds: float  # of them in the epoch that is not finished
    changes: Sequence[str] = ()  # of the maker, in words, and after which update

    @property
    def seconds_left(self) -> float:
        """How long the rest of the run takes at the pace it had."""
        return self.seconds / max(self.update, 1) * (self.updates - self.update)


class UnusableState(ValueError):
    """A saved state from which a run can't go on; the message says why."""


def find(folder: Path) -> Path | None:
    """The newest state in a run's folder, usable or not."""
    return next(iter(states(folder)), None)


def forget(folder: Path) -> None:
    """Removes the states in a run's folder."""
    for path in states(folder):
        path.unlink(missing_ok=True)


def forget_older(newest: Path) -> None:
    """Of the states beside a new one leaves those that were saved just before it, `KEPT` in all.

    One of as many updates or more goes, too: it could not be used, or the run would have gone on from it, and
    counted as the newest it would push out those that can be.
    """
    others = [path for path in states(newest.parent) if path != newest]
    before = [path for path in others if _update_of(path) < _update_of(newest)]
    for path in {*others} - {*before[: KEPT - 1]}:
        path.unlink(missing_ok=True)


def states(folder: Path) -> list[Path]:
    """The states in a run's folder, newest first: by the updates that were done, as clocks may jump."""

    def age(path: Path) -> tuple[int, int]:
        try:
            return _update_of(path), path.stat().st_mtime_ns
        except FileNotFoundError:  # the run, in another process, has just saved a newer one
            return _update_of(path), 0

    return sorted(folder.glob("state-*.safetensors"), key=age, reverse=True)


def _update_of(path: Path) -> int:
    found = re.match(r"state-([0-9]+)-", path.name)
    return int(found[1]) if found else -1


def path_of(folder: Path, update: int, content: bytes) -> Path:
    """Where a state of this content belongs."""
    return folder / f"state-{update:09}-{hashlib.sha256(content).hexdigest()}.safetensors"


def is_whole(path: Path, content: bytes) -> bool:
    """Whether a state holds what its name says."""
    return path.name.endswith(f"-{hashlib.sha256(content).hexdigest()}.safetensors")


def header_of(course: Course) -> dict[str, str]:
    """What `read_course` finds in the header of a state."""
    return {"course": json.dumps(asdict(course), allow_nan=False)}


def read_course(path: Path) -> Course:
    """The course in the header of a state, whose checksum is not looked at. UnusableState if there is none."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        facts = json.loads(header["__metadata__"]["course"])
        return Course(**{**facts, "changes": tuple(facts["changes"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableState(f"{path} can't be read as the state of a run ({error})") from error


def changes(maker: Mapping[str, Any], course: Course, path: Path, *, allowed: bool) -> list[str]:
    """What of the machine changed between who saved a state and who wants to go on from it, in words.

    Raises UnusableState for the state of another run, and EnvironmentProblem for one of other
    versions, code, kind of device or precision, unless that is `allowed`.
    """
    names = sorted(maker.keys() | course.maker.keys())
    changed = {
        name: f"{name} {course.maker.get(name)} (now {maker.get(name)})"
        for name in names
        if course.maker.get(name) != maker.get(name)
    }
    if foreign := [words for name, words in changed.items() if name in IDENTITY]:
        raise UnusableState(f"{path} was saved with {', '.join(foreign)}")
    versions = [words for name, words in changed.items() if name not in MACHINE]
    if versions and not allowed:
        raise EnvironmentProblem(
            f"{path} was saved with {', '.join(versions)}: a run that goes on would be made by two of them. Go back "
            "to what it was, or go on with --allow-version-change (its record will say so), or remove the file and "
            "what else is named state-* there to begin anew"
        )
    return list(changed.values())


@cache  # the code that runs is the one that was there at first
def code_digest() -> str:
    """12 hex digits that change with dcvit's code. A commit would not do: it says nothing of a changed tree."""
    digest = hashlib.sha256()
    code = Path(__file__).parent
    for path in sorted([*code.glob("*.py"), *code.glob("*.c")]):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
