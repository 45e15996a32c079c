"""Who trains a run: a lease in the run's folder, so that two who are told the same train it once. No torch.

    claim-0001.json, claim-0002.json, ...    the highest number counts

A claim comes by one link of a finished file, which only one of several can make; whoever takes
over a dead holder's claim makes the next number, and the holder, should it be alive after all,
sees that at its next heartbeat and stops. No number is used twice while the run has no record,
so nobody can take away what he has not seen.

On this machine a holder is dead as soon as its process is gone (process number and start time);
one on another machine is, when its claim has not been renewed for ten minutes. Ages are
differences between times that the file system gave, so that wrong clocks do not matter.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
import errno
import json
import os
from pathlib import Path
import re
import socket
import tempfile
from time import monotonic, time
from typing import Any, Literal

from dcvit.files import remove_leftovers, write_text

STALE = 600.0  # seconds without a heartbeat after which a holder on another machine counts as dead
BEAT = 15.0  # seconds between two heartbeats

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system without hard links

JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")  # of the schedulers


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who made a claim, as the claim says, and whether there is still such a process."""

    number: int
    host: str
    boot: str  # differs between machines of one name, and after a reboot
    pid_namespace: str  # differs between containers
    pid: int
    started: str  # of the process, in ticks since the machine began
    job: str  # the scheduler's number, if there is one
    released: bool
    progress: Mapping[str, Any]
    age: float  # seconds since the last heartbeat

    @property
    def alive(self) -> bool | None:
        """Whether the holder is at work; None if it is on another machine and was silent for ten minutes."""
        if self.released:
            return False
        if (self.host, self.boot, self.pid_namespace) == _machine():
            return _start_of(self.pid) == self.started
        return True if self.age <= STALE else None

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


class Held(Exception):
    """A run that somebody else trains right now."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"{holder} is at it")
        self.holder = holder


class TakenOver(Exception):
    """This process was silent for so long that another one took its run over."""


@dataclass
class Claim:
    """A run that this process may train, until it is released or taken over."""

    folder: Path
    number: int
    written: dict[str, Any]
    renewed: float = field(default_factory=monotonic)

    def beat(self, progress: Callable[[], Mapping[str, Any]] | None = None, *, every: float = BEAT) -> None:
        """Says that this process is at work, unless it has just said so. Raises TakenOver."""
        if monotonic() - self.renewed < every:
            return
        self.require()
        if progress is not None:
            self.written["progress"] = dict(progress())
        try:
            write_text(_path(self.folder, self.number), json.dumps(self.written))
        except OSError:  # a full disk costs no run: the old words with a new time, which takes no room
            with suppress(OSError):
                os.utime(_path(self.folder, self.number))
        self.renewed = monotonic()

    def require(self) -> None:
        """Raises TakenOver if another process has the run now."""
        if (newest := max(_numbers(self.folder), default=0)) != self.number:
            raise TakenOver(
                f"{self.folder} was taken over by another process (claim {newest} after claim {self.number}): "
                "this one was silent for too long. It goes on there, nothing is lost"
            )

    def release(self, *, finished: bool) -> None:
        """Lets others have the run; one that has its record needs no claims any more."""
        if max(_numbers(self.folder), default=0) != self.number:
            return
        if finished:
            for number in _numbers(self.folder):
                _path(self.folder, number).unlink(missing_ok=True)
            remove_leftovers(self.folder, of=("claim-", "now."))
        else:
            path = _path(self.folder, self.number)
            try:
                write_text(path, json.dumps({**self.written, "released": True}))
            except OSError:  # a full disk lets files go
                path.unlink()


def claim(folder: Path) -> Claim:
    """The claim on a run's folder. Raises Held if a living process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        holder = holder_of(folder)
        if holder is not None and holder.alive:
            raise Held(holder)
        number = holder.number + 1 if holder else 1
        host, boot, namespace = _machine()
        written = {
            "host": host,
            "boot": boot,
            "pid_namespace": namespace,
            "pid": os.getpid(),
            "started": _start_of(os.getpid()) or "",
            "job": next((os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)), ""),
            "released": False,
            "progress": {},
        }
        if _create(_path(folder, number), json.dumps(written)):
            return Claim(folder, number, written)


def holder_of(folder: Path) -> Holder | None:
    """Who has, or last had, the run; None for a run that nobody ever claimed."""
    for number in sorted(_numbers(folder), reverse=True):
        path = _path(folder, number)
        try:
            age = _age(path)
        except FileNotFoundError:  # released by its holder between two looks
            continue
        try:
            return Holder(number=number, age=age, **_facts(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (
            OSError,
            ValueError,
            TypeError,
            RecursionError,
        ):  # not written by us: only its age can be judged
            return Holder(
                number=number,
                host="an unknown machine",
                boot="",
                pid_namespace="",
                pid=0,
                started="",
                job="",
                released=False,
                progress={},
                age=age,
            )
    return None


def state_of(folder: Path) -> Literal["free", "held", "lost"]:
    """Whether a run is held by a living process, by one that has died, or by none."""
    holder = holder_of(folder)
    if holder is None or holder.released:
        return "free"
    return "held" if holder.alive else "lost"


# --- files ---------------------------------------------------------------------------------


def _path(folder: Path, number: int) -> Path:
    return folder / f"claim-{number:04}.json"


def _numbers(folder: Path) -> list[int]:
    def of(names: Iterator[str]) -> Iterator[int]:
        for name in names:
            if found := re.fullmatch(r"claim-([0-9]{4,})\.json", name):
                yield int(found[1])

    try:
        return list(of(iter(os.listdir(folder))))
    except FileNotFoundError:
        return []


def _facts(text: str) -> dict[str, Any]:
    """What a claim says. ValueError or TypeError if it is not what `claim` writes."""
    facts = json.loads(text)
    strings = ("host", "boot", "pid_namespace", "started", "job")
    kinds = {**dict.fromkeys(strings, str), "pid": int, "released": bool, "progress": dict}
    if not isinstance(facts, dict) or {name: type(value) for name, value in facts.items()} != kinds:
        raise TypeError("no claim")
    return facts


def _create(path: Path, text: str) -> bool:
    """Makes a file with this text in one move; False if there is one already."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.link(name, path)
    except FileExistsError:
        try:
            return os.stat(name).st_nlink == 2  # the link was made and the answer lost on its way (NFS)
        except FileNotFoundError:
            return False
    except FileNotFoundError:  # a run that ended just now was tidied up
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:  # exclusive creation, then the text
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
    return True


def _age(path: Path) -> float:
    """Seconds since a file was written, by the clock of the file system that it is on."""
    written = path.stat().st_mtime
    try:
        handle, name = tempfile.mkstemp(prefix=".now.", dir=path.parent)
    except OSError:  # who may only look
        return time() - written
    try:
        os.write(handle, b"1")  # an empty file may get its time from this machine
        os.fsync(handle)
        return os.fstat(handle).st_mtime - written
    except OSError:  # a full disk
        return time() - written
    finally:
        os.close(handle)
        with suppress(FileNotFoundError):
            os.unlink(name)


# --- processes -----------------------------------------------------------------------------


def _machine() -> tuple[str, str, str]:
    """Name, boot and process namespace: where process numbers mean the same."""
    return socket.gethostname(), _read("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid")


def _start_of(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None if there is no such process."""
    stat = _read(f"/proc/{pid}/stat")
    if stat:
        state, *rest = stat.rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]  # a zombie trains nothing
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc (macOS): the number must do
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
