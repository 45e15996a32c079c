"""Trains one run, in this process or in several together; whatever goes wrong is an outcome.

Before anything a run is claimed (`dcvit.claims`), so that two who are told the same train it once. In its
folder a run that ended badly leaves `outcome.json`, what happened in a sentence, for whoever asks later.
No torch until there is something to train.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
import errno
import json
import os
from pathlib import Path
import signal
import sys
import tempfile
from threading import Event, Thread
import traceback
from typing import TYPE_CHECKING

from dcvit import ledger, pausing
from dcvit.claims import Claim, Held, TakenOver, claim, holder_of
from dcvit.errors import (
    RESUMABLE,
    DataError,
    Diverged,
    EnvironmentProblem,
    Paused,
    RankLost,
    unwritable,
)
from dcvit.files import write_text
from dcvit.host import cores
from dcvit.runs import Outcome, Place, Run, left
from dcvit.stopping import ASKING, listening

if TYPE_CHECKING:
    import torch

    from dcvit.loop import Progress
    from dcvit.processes import World

Observe = Callable[["Progress"], None]
Stopped = Callable[[], str]

HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # the next run would fail alike
RESTARTS = 3  # of a run whose processes die, by the agent that watches them
WATCH = 2.0  # seconds between two looks at the progress of processes that are watched


def execute(run: Run, place: Place, observe: Observe, stopped: Stopped = str) -> Outcome:
    """Trains one run. Its traceback, if it fails, goes into its folder.

    Starts as many processes as `place.gpus_per_run` says, unless this is one of them already.
    """
    if place.gpus_per_run > 1 and not place.is_member:
        return _watched(run, place, observe)
    return _in_this_process(run, place, observe, stopped)


def _in_this_process(run: Run, place: Place, observe: Observe, stopped: Stopped) -> Outcome:
    import torch

    from dcvit.processes import ALONE, joined

    threads = torch.get_num_threads()
    try:
        device = _device(place)
        if device.type == "cpu":
            # the bits of a result depend on the number of threads, and small networks gain nothing by more
            torch.set_num_threads(1)
        with joined(device) if place.is_member else nullcontext(ALONE) as world:
            # before it is claimed: making a large one takes minutes, in which no claim would give a sign of life
            if place.feed.cache is not None:
                _make_cache(run, place, place.feed.cache, stopped)
            return _claimed(run, place, device, observe, stopped, world)
    except _EndedAlone as ended:
        if (
            ended.outcome.kind == "held"
        ):  # taken over; started again they will all hear that somebody is at it
            raise RankLost(ended.outcome.problem) from ended
        return ended.outcome
    except Paused as error:
        return Outcome(problem=str(error), kind="paused")
    except RankLost:
        raise  # for whoever started the processes: they can be started again
    except Exception as error:
        return _ended_badly(error, place, place.folder_of(run))
    finally:
        torch.set_num_threads(threads)


def _make_cache(run: Run, place: Place, folder: Path, stopped: Stopped) -> None:
    from dcvit.datasets import pictures
    from dcvit.feeding import made_cache

    images = pictures(place.source, "train", run.recipe)
    made_cache(folder, images, run.recipe, threads=place.workers or cores(), stopped=stopped)


class _EndedAlone(Exception):
    """One of several processes has ended a run by itself; the others may be waiting for its next word."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.problem)
        self.outcome = outcome


def _device(place: Place) -> "torch.device":
    """The device of this process: of several on a machine each has its own GPU."""
    import torch

    from dcvit.devices import resolve
    from dcvit.processes import given_rank

    device = resolve(place.device)
    rank = given_rank() if place.is_member else None
    if device.type == "cuda" and (place.gpus or rank is not None):
        local = rank[2] if rank is not None else 0
        device = resolve(f"cuda:{place.gpus[local] if place.gpus else local}")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # else pinning would open a context on the first one
    return device


def _claimed(
    run: Run, place: Place, device: "torch.device", observe: Observe, stopped: Stopped, world: "World"
) -> Outcome:
    """Trains a run if nobody else does, which process 0 finds out."""
    folder = place.folder_of(run)
    mine: Claim | None = None
    held = ""
    if world.leads:
        try:
            mine = claim(folder)
        except Held as error:
            held = str(error)
    if held := world.told(held):
        return Outcome(problem=f"run {run.id} is being trained: {held}", kind="held")
    finished = False
    try:
        outcome = _fitted(run, place, device, observe, stopped, world, mine)
        finished = outcome.record is not None
        if outcome.kind in ("", "paused", "diverged"):
            world.any(False)  # all come here; nobody leaves while another one still writes
        elif world.size > 1:
            raise _EndedAlone(outcome)
        return outcome
    finally:
        if mine is not None:
            with suppress(OSError):  # a full disk: the claim ends with this process
                mine.release(finished=finished)


def _fitted(
    run: Run,
    place: Place,
    device: "torch.device",
    observe: Observe,
    stopped: Stopped,
    world: "World",
    mine: Claim | None,
) -> Outcome:
    from dcvit.training import fit

    folder = place.folder_of(run)
    try:
        # another one may have finished it since this process was told to train it
        record = ledger.find(place.out, run.recipe, run.seed, place.source.fingerprint)
        if world.leads and record is None:
            forget_end(folder)
        if world.told(record is not None):
            if record is None:
                raise EnvironmentProblem(f"{folder} has a record that process {world.rank} does not see")
            if world.leads:  # a kill between the writing of the record and their removal leaves states
                pausing.forget(folder)
            return Outcome(record=record)
        record = fit(
            run.recipe,
            run.seed,
            place.source,
            place.out,
            device,
            workers=place.workers,
            observe=observe,
            deadline=place.deadline,
            stopped=stopped,
            world=world,
            at_most=place.micro_batch,
            sharing=place.runs_per_gpu,
            save_every=place.save_every,
            allow_changes=place.allow_changes,
            claim=mine,
            feed=place.feed,
            compiling=place.compiling,
        )
        return Outcome(record=record)
    except Paused as error:
        return Outcome(problem=str(error), kind="paused")
    except TakenOver as error:
        return Outcome(problem=str(error), kind="held")
    except Diverged as error:
        outcome = Outcome(problem=f"diverged: {error}", kind="diverged")
        _leave(outcome, folder)
        return outcome
    except RankLost:
        raise
    except Exception as error:
        return _ended_badly(error, place, folder)


def _ended_badly(error: Exception, place: Place, folder: Path) -> Outcome:
    """The outcome of a run that raised something, which is left in its folder, too."""
    if isinstance(error, (DataError, EnvironmentProblem)):
        outcome = Outcome(problem=str(error), kind="environment")
    elif isinstance(error, OSError) and error.errno in HOPELESS:
        outcome = Outcome(problem=str(unwritable(place.out, error)), kind="environment")
    else:
        where = ""
        with suppress(OSError):  # the disk may be what went wrong
            write_text(folder / "error.txt", traceback.format_exc())
            where = f" (see {folder / 'error.txt'})"
        first_line = (str(error).splitlines() or [""])[0]
        outcome = Outcome(problem=f"{type(error).__name__}: {first_line}{where}", kind="failed")
    _leave(outcome, folder)
    return outcome


# --- what a run leaves in its folder when it ends badly ------------------------------------


def _leave(outcome: Outcome, folder: Path) -> None:
    """Writes down how a run ended. Of several processes the first one's word counts: others fail because of it."""
    path = folder / "outcome.json"
    with suppress(OSError):  # the disk may be what went wrong
        if not path.exists():
            write_text(path, json.dumps({"kind": outcome.kind, "problem": outcome.problem}))


def forget_end(folder: Path) -> None:
    """Removes what an earlier try left."""
    for name in ("error.txt", "diverged.safetensors", "outcome.json"):
        (folder / name).unlink(missing_ok=True)


# --- several processes on this machine -----------------------------------------------------


def _watched(run: Run, place: Place, observe: Observe) -> Outcome:
    """Starts the processes of a run under torch's elastic agent, which starts them again when one of them dies."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    folder = place.folder_of(run)
    with suppress(OSError):  # whoever trains the run will say what is wrong with its folder
        forget_end(folder)
    # else processes that were started again would find the addresses of the dead
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    before = {number: signal.getsignal(number) for number in ASKING}
    done = Event()
    teller = Thread(target=_tell, args=(folder, observe, done), daemon=True)
    teller.start()
    asked = None
    problem = ""
    try:
        with tempfile.TemporaryDirectory(prefix="dcvit-") as logs:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=place.gpus_per_run,
                run_id=run.id,
                rdzv_backend="c10d",
                rdzv_endpoint="127.0.0.1:0",
                max_restarts=RESTARTS,
                monitor_interval=1.0,
                start_method="spawn",
                signals_to_handle=",".join(number.name for number in ASKING),
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            ended = elastic_launch(config, _member)(run, place)
        outcomes = [outcome for _, outcome in sorted(ended.items())]
        return next((outcome for outcome in outcomes if outcome.record is None), outcomes[0])
    except ChildFailedError as error:
        died = f"{len(error.failures)} of its {place.gpus_per_run} processes died, for the last time of {RESTARTS + 1}"
        problem = f"{died}; see above"
    except SignalException as error:
        asked = error.sigval
    finally:
        done.set()
        teller.join()
        for number, handler in before.items():  # the agent leaves its own
            signal.signal(number, handler)
    if asked is not None:
        signal.raise_signal(asked)  # whoever listens here hears it, too
        problem = f"stopped by {signal.Signals(asked).name}; it goes on from its last saved state"
        return left(folder) or Outcome(problem=problem, kind="paused")
    return left(folder) or Outcome(problem=problem, kind="failed")


class MemberFailed(RuntimeError):
    """One of the processes of a run ended it; raised for the agent, which then stops the others."""


def _member(run: Run, place: Place) -> Outcome:
    """One of the processes of a run. What ended it badly once would do so again, also for the others."""
    folder = place.folder_of(run)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and (found := left(folder)) is not None:
        return found
    # patient: the agent passes on every signal, also one that came here already
    with listening(patient=True) as stopped:
        outcome = _in_this_process(run, replace(place, is_member=True), lambda progress: None, stopped)
        asked = stopped()
    if outcome.kind in ("failed", "environment"):
        raise MemberFailed(outcome.problem)
    if (
        asked
    ):  # one that returns would wait for the agent, which waits for the processes that it has told to stop
        sys.exit(RESUMABLE)
    return outcome


def _tell(folder: Path, observe: Observe, done: Event) -> None:
    """Passes on what the claim of a run says about its progress."""
    from dcvit.loop import Progress

    said = None
    while not done.wait(WATCH):
        holder = holder_of(folder)
        if holder is not None and holder.progress and holder.progress != said:
            said = holder.progress
            with suppress(TypeError):
                observe(Progress(**said))
