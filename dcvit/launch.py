"""Runs what has no record yet: one after the other here, or side by side in processes.

A run that fails is an outcome like any other and does not stop the rest. Processes are
plain ones that are told one run at a time over a pipe, so a process that dies (killed for
memory, say) costs the run it was at and no other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
import errno
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
import signal
import traceback
from typing import TYPE_CHECKING, Literal

from dcvit import ledger
from dcvit.cost import multiply_adds
from dcvit.errors import DataError, Diverged, EnvironmentProblem, unwritable
from dcvit.files import write_text
from dcvit.recipe import Recipe, run_id
from dcvit.sources import Source

if TYPE_CHECKING:
    from dcvit.training import Progress

HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # the next run would fail alike


@dataclass(frozen=True)
class Run:
    """A recipe and a seed."""

    recipe: Recipe
    seed: int

    @property
    def id(self) -> str:
        return run_id(self.recipe, self.seed)

    @property
    def before(self) -> "Run | None":
        """The run whose weights this one starts from."""
        return None if self.recipe.pretrained is None else Run(self.recipe.pretrained, self.seed)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with a record, or with a problem."""

    record: ledger.Record | None = None
    problem: str = ""
    kind: Literal["", "failed", "diverged", "environment"] = ""


@dataclass(frozen=True)
class Place:
    """Where runs find their images and leave their records, and on what they run."""

    source: Source
    out: Path
    device: str | None  # None: a GPU if there is one
    workers: int  # loading processes of a run


@dataclass(frozen=True)
class Watcher:
    """Who is told what happens."""

    progress: Callable[[Run, "Progress"], None] = lambda run, progress: None
    ended: Callable[[Run, Outcome], None] = lambda run, outcome: None


def all_runs(recipes: Iterable[Recipe], seeds: Sequence[int]) -> list[Run]:
    """Every run that the recipes need, once, those that others start from first."""
    runs: dict[Run, None] = {}
    for recipe in recipes:
        for seed in seeds:
            run: Run | None = Run(recipe, seed)
            chain = []
            while run is not None:
                chain.append(run)
                run = run.before
            runs.update(dict.fromkeys(reversed(chain)))
    return list(runs)


def finished(runs: Sequence[Run], place: Place) -> tuple[dict[Run, ledger.Record], dict[Run, str]]:
    """Records of the runs that have one, and why those that have an unusable one can't use it."""
    records, unusable = {}, {}
    for run in runs:
        try:
            record = ledger.find(place.out, run.recipe, run.seed, place.source.fingerprint)
        except ledger.UnusableRecord as error:
            unusable[run] = str(error)
        else:
            if record is not None:
                records[run] = record
    for base in {run.before for run in runs if run not in records and run.before in records}:
        try:  # others will start from its weights
            ledger.checked_weights(place.out, base.recipe, base.seed, place.source.fingerprint)
        except ledger.UnusableRecord as error:
            del records[base]
            unusable[base] = str(error)
    return records, unusable


def make_all(runs: Sequence[Run], place: Place, *, jobs: int, watcher: Watcher) -> dict[Run, Outcome]:
    """Trains all of `runs`, up to `jobs` side by side; none of them may have a record yet.

    A run starts after the one whose weights it needs; if that one has no record, it is not
    started. After a problem of the machine (a full disk) nothing new is started.
    """
    asked, waiting = set(runs), sorted(runs, key=_longest_first)
    outcomes: dict[Run, Outcome] = {}

    def why_not(run: Run) -> str:
        """What keeps a run from ever being started now, if anything."""
        hopeless = next(
            (outcome.problem for outcome in outcomes.values() if outcome.kind == "environment"), ""
        )
        if not hopeless and run.before in outcomes and outcomes[run.before].record is None:
            return f"run {run.before.id}, whose weights it needs, has no record"
        return hopeless

    def next_run() -> Run | None:
        """The longest run that can start now; runs that never can are given their outcome first."""
        while run := next(filter(why_not, waiting), None):
            waiting.remove(run)
            end(run, Outcome(problem=f"not started: {why_not(run)}", kind="failed"))
        ready = (run for run in waiting if run.before not in asked or run.before in outcomes)
        if run := next(ready, None):
            waiting.remove(run)
        return run

    def end(run: Run, outcome: Outcome) -> None:
        outcomes[run] = outcome
        watcher.ended(run, outcome)

    if jobs == 1:
        while (run := next_run()) is not None:
            end(run, execute(run, place, partial(watcher.progress, run)))
    else:
        _side_by_side(next_run, end, place, jobs=jobs, watcher=watcher)
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

    folder = ledger.folder_of(place.out, run.recipe, run.seed, place.source.fingerprint)
    threads = torch.get_num_threads()
    try:
        for stale in ("error.txt", "diverged.safetensors"):  # of an earlier try
            (folder / stale).unlink(missing_ok=True)
        device = resolve(place.device)
        if device.type == "cpu":
            # the bits of a result depend on the number of threads, and small networks gain nothing by more
            torch.set_num_threads(1)
        record = fit(
            run.recipe, run.seed, place.source, place.out, device, workers=place.workers, observe=observe
        )
        return Outcome(record=record)
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
