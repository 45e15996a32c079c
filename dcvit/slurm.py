"""Hands runs to Slurm through submitit: job arrays, each run after the one whose weights it needs. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
import re
import shutil
import subprocess
from typing import Any
from uuid import uuid4

from dcvit import job, queueing
from dcvit.errors import EnvironmentProblem
from dcvit.queueing import Submitted
from dcvit.runs import Place, Run
from dcvit.slurm_options import tasks_per_node
from dcvit.starting import How, arguments_of

NEEDED = ("sbatch", "scontrol", "squeue", "srun")
REQUEUES = 1000  # submitit counts any signal in a short job as a time-out, and gives up after so many
LARGEST_ARRAY = 1001  # Slurm's own default


def require() -> None:
    """EnvironmentProblem says what this machine lacks to submit anything."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        raise EnvironmentProblem(
            f"--executor slurm: {', '.join(missing)} not found. Call it on a machine from which jobs are submitted "
            "(Debian: apt install slurm-client), or use --print-commands for another scheduler"
        )
    _submitit()


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise EnvironmentProblem(
            "--executor slurm needs the package submitit: python -m pip install 'dcvit[slurm]'"
        ) from error
    return submitit


def submit(
    runs: Sequence[Run],
    place: Place,
    how: How,
    names: Mapping[Run, str],
    *,
    options: Mapping[str, Any],
    at_once: int | None,
    queued: Mapping[Run, str],
) -> Iterator[Submitted]:
    """Submits runs, notes each below OUT/queue, and yields what it noted.

    `queued` are jobs of other runs that are not finished; a run waits for the job of the one that it starts from. It
    waits for its end, whatever that is: a run without the weights that it needs says so itself.
    """
    job_of, waiting, largest = dict(queued), list(runs), _largest_array()
    while waiting:
        ready = [run for run in waiting if run.before not in waiting]
        waiting = [run for run in waiting if run not in ready]
        for before, group in _by_job(ready, job_of).items():
            for part in (group[first : first + largest] for first in range(0, len(group), largest)):
                for entry, run in zip(
                    _submit_array(part, place, how, names, options, at_once, before), part, strict=True
                ):
                    queueing.write(place.out, entry)
                    job_of[run] = entry.job
                    yield entry


def _by_job(runs: Sequence[Run], job_of: Mapping[Run, str]) -> dict[str | None, list[Run]]:
    """The runs by the job for whose end they wait; None for those that can start at once."""
    groups: dict[str | None, list[Run]] = {}
    for run in runs:
        groups.setdefault(None if run.before is None else job_of.get(run.before), []).append(run)
    return groups


def _submit_array(
    runs: Sequence[Run],
    place: Place,
    how: How,
    names: Mapping[Run, str],
    options: Mapping[str, Any],
    at_once: int | None,
    before: str | None,
) -> list[Submitted]:
    submitit = _submitit()
    job_name = f"dcvit-{uuid4().hex[:8]}"
    executor = submitit.SlurmExecutor(
        (queueing.queue_of(place.out) / "jobs").absolute(), max_num_timeout=REQUEUES
    )
    executor.update_parameters(
        **_parameters(options),
        job_name=job_name,
        ntasks_per_node=tasks_per_node(how.gpus_per_run, options),
        array_parallelism=at_once or len(runs),
        stderr_to_stdout=True,
        dependency=None if before is None else f"afterany:{before}",
    )
    commands = [arguments_of(run, how) for run in runs]
    try:
        with executor.batch():
            jobs = [executor.submit(job.slurm_task, command) for command in commands]
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
        raise EnvironmentProblem(f"Slurm did not take the jobs: {_last_words(error)}") from error
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return [
        Submitted(
            run=run.id,
            name=names[run],
            folder=place.folder_of(run).name,
            job=handed.job_id,
            job_name=job_name,
            log=str(handed.paths.stdout),
            command=command,
            submitted=now,
        )
        for run, handed, command in zip(runs, jobs, commands, strict=True)
    ]


def _parameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """What submitit calls the options; what it has no name for goes to sbatch as it is."""
    named = dict(options)
    more = {"reservation": named.pop("reservation")} if "reservation" in named else {}
    no_time = {"time": None}  # submitit's default is 5 minutes, None leaves it to the partition
    # a task that ends badly ends the others, which may be waiting for it
    together = {"srun_args": ["--kill-on-bad-exit=1"]}
    return {**no_time, **named, **together, "additional_parameters": {"requeue": True, **more}}


def _last_words(error: Exception) -> str:
    text = str(error.stderr or error) if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else type(error).__name__)


def _largest_array() -> int:
    """How many jobs an array may have here."""
    asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    found = re.search(r"^MaxArraySize\s*=\s*([0-9]+)", asked.stdout, flags=re.MULTILINE)
    return max(int(found[1]), 1) if found else LARGEST_ARRAY
