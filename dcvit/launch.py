"""Runs what has no record yet: one after the other here, or side by side in processes.

A run that another process trains is waited for, and taken over if that one dies. One that fails
is an outcome like any other and does not stop the rest. Processes are plain ones that are told one
run at a time over a pipe, so a process that dies (killed for memory, say) costs the run it was at
and no other.

With a deadline nothing is started that would not end before it, and what is running then is
paused: its state is saved, and the next call goes on. So it is after a signal that asks to stop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
import os
import signal
from time import sleep, time

from dcvit import ledger
from dcvit.claims import state_of
from dcvit.cost import multiply_adds
from dcvit.executing import execute
from dcvit.runs import Estimate, Outcome, Place, Run, Watcher, course_of
from dcvit.stopping import ASKING, listening

CAUTION = 1.1  # times an estimate must fit before the deadline
LATER = ("paused", "postponed", "stopped")  # the same call will go on
GRACE = 15.0  # seconds that a process has to save its state when this one is interrupted
POLL = 1.0  # seconds between two looks at what others train, and at signals


def make_all(
    runs: Sequence[Run],
    place: Place,
    *,
    jobs: int,
    watcher: Watcher,
    estimate: Estimate = lambda made: lambda run: 0.0,
    stopped: Callable[[], str] = str,
    gpus: Sequence[int] = (),
) -> dict[Run, Outcome]:
    """Trains all of `runs`, up to `jobs` side by side; none of them may have a record yet.

    Of `gpus` each run side by side gets `place.gpus_per_run`, if there are that many; those beyond share GPUs,
    which have equally many runs each. Once `stopped` gives a reason, what runs is paused and nothing new is started.

    A run starts after the one whose weights it needs; if that one has no record, it is not
    started. After a problem of the machine (a full disk) nothing new is started.

    Where there is a deadline, a run starts only if it would end before it: by `estimate`, which is
    told what has been made and gives the seconds of a whole run, or, for a paused run, at the pace it had. A paused
    run of which more is left than a whole call has time for goes on all the same, else it never ended.
    """
    asked, waiting = set(runs), sorted(runs, key=_longest_first)
    elsewhere: set[Run] = set()  # other processes are at them
    outcomes: dict[Run, Outcome] = {}
    called = time()
    deadline = inf if place.deadline is None else place.deadline

    def why_never(run: Run) -> Outcome | None:
        """What keeps a run from ever being started in this call, if anything."""
        for outcome in outcomes.values():
            if outcome.kind == "environment":
                return Outcome(problem=f"not started: {outcome.problem}", kind="failed")
        if run.before not in outcomes or outcomes[run.before].record is not None:
            return None
        later = outcomes[run.before].kind in LATER
        why = (
            f"run {run.before.id}, whose weights it needs, {'is not finished' if later else 'has no record'}"
        )
        return Outcome(problem=f"not started: {why}", kind="postponed" if later else "failed")

    def to_end() -> Callable[[Run], float]:
        """A function that gives the seconds until a run's end, by what is known now."""
        if deadline == inf:
            return lambda run: 0.0  # there is time for everything
        made = {run: outcome.record for run, outcome in outcomes.items() if outcome.record is not None}
        whole = estimate(made)

        def seconds(run: Run) -> float:
            course = course_of(run, place)
            return CAUTION * (whole(run) if course is None else course.seconds_left)

        return seconds

    def in_time(run: Run, left: Callable[[Run], float]) -> bool:
        seconds = left(run)
        if called + seconds > deadline and course_of(run, place) is not None:
            seconds = 0.0  # no call like this one would ever end it
        return time() + seconds <= deadline

    def next_run() -> Run | None:
        """The longest run that can start now; runs that never can are given their outcome first."""
        if stopped():
            return None
        for other in list(elsewhere):
            look_elsewhere(other)
        while never := next(((run, why) for run in waiting if (why := why_never(run))), None):
            waiting.remove(never[0])
            end(*never)
        ready = [
            run
            for run in waiting
            if run not in elsewhere and (run.before not in asked or run.before in outcomes)
        ]
        if not ready:  # estimates of a full ledger take time, and this is asked again every second
            return None
        if run := next(filter(partial(in_time, left=to_end()), ready), None):
            waiting.remove(run)
        return run

    def look_elsewhere(run: Run) -> None:
        """Whether another process has finished a run, or left it."""
        if state_of(place.folder_of(run)) == "held":
            return
        elsewhere.remove(run)
        try:
            record = ledger.find(place.out, run.recipe, run.seed, place.source.fingerprint)
        except ledger.UnusableRecord as error:
            waiting.remove(run)
            end(run, Outcome(problem=str(error), kind="failed"))
            return
        if record is not None:
            waiting.remove(run)
            end(run, Outcome(record=record))

    def no_time(run: Run, left: Callable[[Run], float]) -> Outcome:
        if why := stopped():
            return Outcome(problem=f"not started: {why}", kind="stopped")
        if run in elsewhere:
            return Outcome(problem="not finished here: another process is at it", kind="stopped")
        there = max(deadline - time(), 0.0)
        why = f"it would take about {left(run) / 60:.1f} minutes, {there / 60:.1f} are left"
        return Outcome(problem=f"not started: {why}", kind="postponed")

    def end(run: Run, outcome: Outcome) -> None:
        if outcome.kind == "held":  # it is looked at again
            waiting.append(run)
            elsewhere.add(run)
            watcher.waits(run, outcome)
        else:
            outcomes[run] = outcome
            watcher.ended(run, outcome)

    def nothing_to_wait_for() -> bool:
        return not elsewhere or bool(stopped()) or time() >= deadline

    while True:
        if jobs == 1:
            while (run := next_run()) is not None:
                mine = replace(place, gpus=gpus_of(0, gpus, place.gpus_per_run))
                end(run, execute(run, mine, partial(watcher.progress, run), stopped))
        else:
            _side_by_side(next_run, end, place, jobs=jobs, watcher=watcher, stopped=stopped, gpus=gpus)
        if nothing_to_wait_for():
            break
        sleep(POLL)
    left = to_end()
    while run := next((run for run in waiting if run.before not in waiting), None):
        waiting.remove(run)
        end(run, why_never(run) or no_time(run, left))
    return outcomes


def _longest_first(run: Run) -> float:
    cost = multiply_adds(run.recipe.backbone, run.recipe.resolution) * run.recipe.epochs
    if run.recipe.pretrained is None:  # others may wait for this one
        cost *= 10
    return -cost


# --- processes -----------------------------------------------------------------------------


def gpus_of(slot: int, gpus: Sequence[int], many: int) -> tuple[int, ...]:
    """The GPUs of a run by its place among those side by side, `many` for each; () where there are not that many.

    >>> [gpus_of(slot, (4, 6), 1) for slot in range(4)]
    [(4,), (6,), (4,), (6,)]
    """
    shares = len(gpus) // many
    first = slot % shares * many if shares else 0
    return tuple(gpus[first : first + many]) if shares else ()


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    slot: int
    run: Run | None = None


def _side_by_side(
    next_run: Callable[[], Run | None],
    end: Callable[[Run, Outcome], None],
    place: Place,
    *,
    jobs: int,
    watcher: Watcher,
    stopped: Callable[[], str],
    gpus: Sequence[int],
) -> None:
    context = get_context("spawn")  # a fork would copy threads that are in the middle of something
    workers: list[_Worker] = []

    def busy() -> list[Run]:
        return [worker.run for worker in workers if worker.run is not None]

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        slot = min(set(range(jobs)) - {worker.slot for worker in workers})
        mine = replace(place, gpus=gpus_of(slot, gpus, place.gpus_per_run))
        childless = place.workers == 0 and place.gpus_per_run == 1
        process = context.Process(target=_work, args=(theirs, mine), daemon=childless)
        process.start()
        theirs.close()
        workers.append(_Worker(process, ours, slot))
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
        told = False
        while busy():
            if stopped() and not told:
                told = True
                for worker in workers:
                    if worker.run is not None and worker.process.pid is not None:
                        os.kill(worker.process.pid, signal.SIGTERM)
            ready = wait([worker.pipe for worker in workers if worker.run is not None], timeout=POLL)
            for worker in [worker for worker in workers if worker.pipe in ready]:
                run = worker.run
                assert run is not None
                try:
                    message = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    workers.remove(worker)
                    code = worker.process.exitcode
                    early = told and code == -signal.SIGTERM  # it had not begun to listen
                    why = "stopped" if early else f"its process ended with code {code}, see above"
                    end(run, Outcome(problem=why, kind="stopped" if early else "failed"))
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
            worker.process.join(GRACE if worker.run is not None else None)
            worker.process.kill()
            worker.process.join()


def _work(pipe: Connection, place: Place) -> None:
    """A process that trains what it is told, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which passes it on
    others = tuple(number for number in ASKING if number != signal.SIGINT)
    with listening(others) as stopped:
        while True:
            try:
                run = pipe.recv()
            except EOFError:
                return
            pipe.send(execute(run, place, pipe.send, stopped))
