"""The second engine: each run is a Ray task that starts its command on one of the cluster's nodes.

A task that dies with its node, or ends after its state was saved, is started again by Ray, elsewhere if need be, and
goes on from what the run's folder holds. Nothing is kept in Ray: when this process ends, so do its tasks.
"""

from collections.abc import Sequence
from dataclasses import replace
import os
from typing import Any

from dcvit.errors import RESUMABLE, EnvironmentProblem
from dcvit.job import run_command
from dcvit.runs import Outcome, Place, Run, Watcher
from dcvit.starting import How, arguments_of
from dcvit.status import outcome_of, standings


class StateSaved(Exception):
    """A run was stopped and can go on."""


def _task(arguments: Sequence[str], before: int) -> int:
    """The exit code of a run's command. `before` is that of the run it starts from: Ray waits for it."""
    code = run_command(arguments)
    if code == RESUMABLE:
        raise StateSaved
    return code


def _code(ray: Any, ended: Any) -> str:
    try:
        return f"exit code {ray.get(ended)}"
    except ray.exceptions.RayError as error:
        return str(error)


def make(
    runs: Sequence[Run], place: Place, how: How, *, address: str | None, jobs: int | None, watcher: Watcher
) -> dict[Run, Outcome]:
    """Has all of `runs` trained by the Ray cluster at `address` (None: RAY_ADDRESS, or one on this machine)."""
    try:
        import ray
    except ImportError as error:
        raise EnvironmentProblem(
            "--executor ray needs the package ray: python -m pip install 'dcvit[ray]'"
        ) from error
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address=address, log_to_driver=False, num_cpus=None if address else jobs)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"no Ray cluster at {address or 'this machine'}: {error}. `ray start --head` starts one"
        ) from error
    on_gpu = ray.cluster_resources().get("GPU", 0) > 0 and how.device != "cpu"
    gpus = how.gpus_per_run if on_gpu else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=-1, retry_exceptions=[StateSaved])(_task)
    outcomes: dict[Run, Outcome] = {}
    codes: dict[Run | None, Any] = {}  # run -> its exit code, some day
    try:
        for run in runs:  # those that others start from come first
            codes[run] = task.remote(arguments_of(run, how), codes.get(run.before, 0))
        while left := {code: run for run, code in codes.items() if run and run not in outcomes}:
            (ended,), _ = ray.wait(list(left), num_returns=1)
            run = left[ended]
            folder = place.folder_of(run)
            stands = standings(place.out, [folder])[folder]
            if stands.state == "to do":  # it failed before it could say so in its folder
                stands = replace(stands, state="failed", note=f"its command ended with {_code(ray, ended)}")
            outcomes[run] = outcome_of(run, place, stands)
            watcher.ended(run, outcomes[run])
    finally:
        ray.shutdown()
    return outcomes
