"""Runs what has no record yet: one after the other here, or side by side in processes.

A run that fails is an outcome like any other and does not stop the rest. Processes are
plain ones that are told one run at a time over a pipe, so a process that dies (killed for
memory, say) costs the run it was at and no other.

With a deadline nothing is started that would not end before it, and what is running then is
paused: its state is saved, and the next call goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import errno
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
import signal
from time import time
import traceback
from typing import TYPE_CHECKING

from dcvit.cost import multiply_adds
from dcvit.errors import DataError, Diverged, EnvironmentProblem, Paused, unwritable
from dcvit.files import write_text
from dcvit.runs import Estimate, Outcome, Place, Run, Watcher, course_of

if TYPE_CHECKING:
    from dcvit.training import Progress

CAUTION = 1.1  # times an estimate must fit before the deadline
HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # the next run would fail alike


def make_all(
    runs: Sequence[Run],
    place: Place,
    *,
    jobs: int,
    watcher: Watcher,
    estimate: Estimate = lambda run, made: 0.0,
) -> dict[Run, Outcome]:
    """Trains all of `runs`, up to `jobs` side by side; none of them may have a record yet.

    A run starts after the one whose weights it needs; if that one has no record, it is not
    started. After a problem of the machine (a full disk) nothing new is started.

    Where there is a deadline, a run starts only if it would end before it: by `estimate`, which
    gives the seconds of a whole run, or, for a paused run, at the pace it had. A paused run of
    which more is left than a whole call has time for goes on all the same, else it never ended.
    """
    asked, waiting = set(runs), sorted(runs, key=_longest_first)
    outcomes: dict[Run, Outcome] = {}
    called = time()

    def why_never(run: Run) -> Outcome | None:
        """What keeps a run from ever being started in this call, if anything."""
        for outcome in outcomes.values():
            if outcome.kind == "environment":
                return Outcome(problem=f"not started: {outcome.problem}", kind="failed")
        if run.before not in outcomes or outcomes[run.before].record is not None:
            return None
        later = outcomes[run.before].kind in ("paused", "postponed")
        why = (
            f"run {run.before.id}, whose weights it needs, {'is not finished' if later else 'has no record'}"
        )
        return Outcome(problem=f"not started: {why}", kind="postponed" if later else "failed")

    def seconds_to_end(run: Run) -> float:
        made = {done: outcome.record for done, outcome in outcomes.items() if outcome.record is not None}
        course = course_of(run, place)
        return CAUTION * (estimate(run, made) if course is None else course.seconds_left)

    def in_time(run: Run) -> bool:
        if place.deadline is None:
            return True
        seconds = seconds_to_end(run)
        if called + seconds > place.deadline and course_of(run, place) is not None:
            seconds = 0.0  # no call like this one would ever end it
        return time() + seconds <= place.deadline

    def next_run() -> Run | None:
        """The longest run that can start now; runs that never can are given their outcome first."""
        while never := next(((run, why) for run in waiting if (why := why_never(run))), None):
            waiting.remove(never[0])
            end(*never)
        ready = (run for run in waiting if run.before not in asked or run.before in outcomes)
        if run := next(filter(in_time, ready), None):
            waiting.remove(run)
        return run

    def no_time(run: Run) -> Outcome:
        assert place.deadline is not None
        left, needed = max(place.deadline - time(), 0.0), seconds_to_end(run)
        why = f"it would take about {needed / 60:.1f} minutes, {left / 60:.1f} are left"
        return Outcome(problem=f"not started: {why}", kind="postponed")

    def end(run: Run, outcome: Outcome) -> None:
        outcomes[run] = outcome
        watcher.ended(run, outcome)

    if jobs == 1:
        while (run := next_run()) is not None:
            end(run, execute(run, place, partial(watcher.progress, run)))
    else:
        _side_by_side(next_run, end, place, jobs=jobs, watcher=watcher)
    while run := next((run for run in waiting if run.before not in waiting), None):
        waiting.remove(run)
        end(run, why_never(run) or no_time(run))
    return outcomes


def _longest_first(run: Run) -> float:
    cost = multiply_adds(run.recipe.backbone, run.recipe.resolution) * run.recipe.epochs
    if run.recipe.pretrained is None:  # others may wait for this one
        cost *= 10
    return -cost


def execute(run: Run, place: Place, observe: Callable[["Progress"], None]) -> Outcome:
    """Trains one run in this process. Whatever goes wrong is an outcome; its traceback goes into the run's folder."""
    import torch

    from dcvit.devices import resolve
    from dcvit.training import fit

    folder = place.folder_of(run)
    threads = torch.get_num_threads()
    try:
        for stale in ("error.txt", "diverged.safetensors"):  # of an earlier try
            (folder / stale).unlink(missing_ok=True)
        device = resolve(place.device)
        if device.type == "cpu":
            # the bits of a result depend on the number of threads, and small networks gain nothing by more
            torch.set_num_threads(1)
        record = fit(
            run.recipe,
            run.seed,
            place.source,
            place.out,
            device,
            workers=place.workers,
            observe=observe,
            deadline=place.deadline,
        )
        return Outcome(record=record)
    except Paused as error:
        return Outcome(problem=str(error), kind="paused")
    except Diverged as error:
        return Outcome(problem=f"diverged: {error}", kind="diverged")
    except (DataError, EnvironmentProblem) as error:
        return Outcome(problem=str(error), kind="environment")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in HOPELESS:
            return Outcome(problem=str(unwritable(place.out, error)), kind="environment")
        where = ""
        try:
            write_text(folder / "error.txt", traceback.format_exc())
            where = f" (see {folder / 'error.txt'})"
        except OSError:  # the disk may be what went wrong
            pass
        first_line = (str(error).splitlines() or [""])[0]
        return Outcome(problem=f"{type(error).__name__}: {first_line}{where}", kind="failed")
    finally:
        torch.set_num_threads(threads)


# --- processes -----------------------------------------------------------------------------


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    run: Run | None = None


def _side_by_side(
    next_run: Callable[[], Run | None],
    end: Callable[[Run, Outcome], None],
    place: Place,
    *,
    jobs: int,
    watcher: Watcher,
) -> None:
    context = get_context("spawn")  # a fork would copy threads that are in the middle of something
    workers: list[_Worker] = []

    def busy() -> list[Run]:
        return [worker.run for worker in workers if worker.run is not None]

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, place), daemon=place.workers == 0)
        process.start()
        theirs.close()
        workers.append(_Worker(process, ours))
        return workers[-1]

    def hand_out() -> None:
        """Gives every idle worker a run, and starts workers while there are runs for them."""
        while len(busy()) < jobs and (run := next_run()) is not None:
            while True:
                worker = next((worker for worker in workers if worker.run is None), None) or start()
                try:
                    worker.pipe.send(run)
                except OSError:  # it died while it was idle, which costs nothing
                    workers.remove(worker)
                    continue
                worker.run = run
                break

    try:
        hand_out()
        while busy():
            ready = wait([worker.pipe for worker in workers if worker.run is not None])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                run = worker.run
                assert run is not None
                try:
                    message = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    workers.remove(worker)
                    code = worker.process.exitcode
                    end(run, Outcome(problem=f"its process ended with code {code}, see above", kind="failed"))
                    continue
                if isinstance(message, Outcome):
                    worker.run = None
                    end(run, message)
                else:
                    watcher.progress(run, message)
            hand_out()
    finally:
        for worker in workers:
            worker.pipe.close()  # an idle worker ends by itself
            if worker.run is not None:
                worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _work(pipe: Connection, place: Place) -> None:
    """A process that trains what it is told, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    while True:
        try:
            run = pipe.recv()
        except EOFError:
            return
        pipe.send(execute(run, place, pipe.send))
