"""What happens inside of a job: the command of one run as a child, and what its exit code means to the scheduler.

Python's standard library only, since every task of every job starts with it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
import os
import signal
import subprocess
import sys
from time import sleep
from types import FrameType

from dcvit.errors import OK, RESUMABLE, RUN_FAILED

RESTARTS = 3  # of a job of several tasks of which one died
ASKS, PAUSE = 5, 10.0  # how often squeue is asked before it counts as having no answer, and seconds between
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def run_command(arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> int:
    """Runs `python ARGUMENTS` and returns its exit code; 75 also where it was stopped before it could save anything.

    Whoever stops a job may tell this process alone, so its child is told, too.
    """
    child: subprocess.Popen[bytes] | None = None
    told: list[int] = []

    def tell(number: int, frame: FrameType | None) -> None:
        told.append(number)
        os.write(
            2, f"told to stop by {signal.Signals(number).name}\n".encode()
        )  # print is nothing for a handler
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)

    with _handling(tell):
        if not told:
            child = subprocess.Popen([sys.executable, *arguments], env={**os.environ, **(environment or {})})
        if child is not None and told:  # between the two lines above
            child.send_signal(signal.SIGTERM)
        code = RESUMABLE if child is None else child.wait()
    if code < 0 and told:  # ended by the signal itself: it had not begun to listen
        return RESUMABLE
    return code if code >= 0 else 128 - code


@contextmanager
def _handling(tell: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Calls `tell` for the signals that stop a job."""
    before = {number: signal.signal(number, tell) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def slurm_task(arguments: Sequence[str]) -> None:
    """A task of a Slurm job: runs the command; one whose state was saved is queued again by the first task.

    So is, three times at most, one of several tasks of which one died: it goes on from the last state.

    Only a job that Slurm still counts as running is: one that was cancelled, or is being preempted by requeue,
    is Slurm's own affair. Ends the process with the command's exit code if that says that the run ended badly.
    """
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    code = run_command(arguments, environment=_rendezvous() if several else None)
    again = int(os.environ.get("SLURM_RESTART_COUNT", "0")) < RESTARTS
    if code == RESUMABLE or (several and again and (code == RUN_FAILED or code > 128)):
        if int(os.environ.get("SLURM_PROCID", "0")) == 0:
            _queue_again(_own_job())
        return  # all tasks of a job end well, else srun might kill the first one before it has asked
    if code != OK:
        sys.exit(code)


def _own_job() -> str:
    """This job as Slurm's commands want it: the number alone may mean the whole array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def _queue_again(job: str) -> None:
    for _ in range(ASKS):
        asked = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode == 0:
            break
        sleep(PAUSE)  # a controller that is busy, or starts again
    state = asked.stdout.strip()
    if state != "RUNNING":
        print(f"job {job} is {state or 'gone'}: it is not queued again here", flush=True)
        return
    print(f"job {job} queues itself again and goes on from the last state", flush=True)
    subprocess.run(["scontrol", "requeue", job], check=True)


def _rendezvous() -> dict[str, str]:
    """Where the processes of a run meet: the first node of the job, at a port that other jobs hardly take."""
    job = int(os.environ["SLURM_JOB_ID"])
    if int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) == 1:
        address = "127.0.0.1"
    else:
        nodes = os.environ["SLURM_JOB_NODELIST"]
        asked = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        )
        address = asked.stdout.split()[0]
    return {"MASTER_ADDR": address, "MASTER_PORT": str(20_000 + job % 10_000)}
