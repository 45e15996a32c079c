"""What was handed to a scheduler, and what the scheduler says of it. No torch.

    OUT/queue/RUN.json    the job that was submitted for a run, RUN being the name of its folder in OUT/ledger
    OUT/queue/jobs/       the logs

The scheduler's word is never the truth about a run, which is its folder; see `dcvit.status`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
import json
from pathlib import Path
import shutil
import subprocess

from dcvit.errors import EnvironmentProblem
from dcvit.files import write_text

# What Slurm calls jobs that will never run again by themselves.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}
SLOW = 60.0  # seconds after which a scheduler's command is taken for stuck


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A run that was handed to Slurm."""

    run: str  # its id
    name: str  # as the tables call it
    folder: str  # of the run, below OUT/ledger
    job: str  # 12, or 12_3 in an array
    job_name: str  # differs between submissions, as numbers may not after a cluster was set up anew
    log: str  # path of what it prints
    command: list[str]  # arguments of python
    submitted: str  # UTC


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job."""

    state: str  # PENDING, RUNNING, ...
    reason: str = ""

    @property
    def active(self) -> bool:
        """Whether it runs or may run by itself, now or later."""
        return self.state not in ENDED


def queue_of(out: Path) -> Path:
    """Where a folder of runs keeps what was submitted."""
    return out / "queue"


def write(out: Path, entry: Submitted) -> None:
    """Notes a submitted run, in the place of what was submitted for it before."""
    write_text(queue_of(out) / f"{entry.folder}.json", json.dumps(asdict(entry), indent=1) + "\n")


def submitted(out: Path) -> dict[str, Submitted]:
    """Name of the run's folder -> what was submitted for it. EnvironmentProblem names a file that can't be read."""
    return {path.stem: _read(path) for path in sorted(queue_of(out).glob("*.json"))}


def _read(path: Path) -> Submitted:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Submitted(**{field.name: facts[field.name] for field in fields(Submitted)})
    except (ValueError, TypeError, KeyError) as error:
        raise EnvironmentProblem(
            f"{path} does not say what was submitted ({type(error).__name__}: {error}): look with squeue whether "
            "its job is still there, then remove the file"
        ) from error


# --- Slurm ---------------------------------------------------------------------------------


def slurm_says(entries: Iterable[Submitted]) -> dict[str, Job] | None:
    """Job -> what Slurm says of it, for those it knows. One squeue for all; sacct, where there is one, for the rest.

    None where Slurm can't be asked: no squeue here, or no answer.
    """
    wanted = {entry.job: entry.job_name for entry in entries}
    if not wanted:
        return {}
    names = ",".join(sorted(set(wanted.values())))
    printed = _output(
        ["squeue", "--noheader", "--array", "--states=all", f"--name={names}", "--format=%i|%j|%T|%r"]
    )
    if printed is None:
        return None
    jobs = {}
    for line in printed.splitlines():
        job, name, state, reason = (line.strip().split("|", 3) + [""] * 3)[:4]
        if wanted.get(job) == name:
            jobs[job] = Job(state, "" if reason == "None" else reason)
    return {**_accounted({job: name for job, name in wanted.items() if job not in jobs}), **jobs}


def _accounted(wanted: Mapping[str, str]) -> dict[str, Job]:
    """What the accounts say of jobs that the controller has forgotten; nothing where there are no accounts."""
    if not wanted:
        return {}
    numbers = ",".join(sorted({job.partition("_")[0] for job in wanted}))
    printed = _output(
        [
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            f"--jobs={numbers}",
            "--format=JobID,JobName,State",
        ]
    )
    jobs = {}
    for line in (printed or "").splitlines():
        job, name, state = (line.strip().split("|", 2) + [""] * 2)[:3]
        found = Job(state.partition(" ")[0])  # CANCELLED by 0
        if wanted.get(job) == name and not found.active:  # what the controller has forgotten has ended
            jobs[job] = found
    return jobs


def _output(command: list[str]) -> str | None:
    """What a command prints; None if it is not there, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SLOW, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None
