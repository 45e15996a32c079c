"""Has runs trained elsewhere, by Slurm or Ray. What is true of a run is always what its folder says. No torch."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
import sys
from time import monotonic, sleep, time
from typing import Any, Literal

from dcvit import slurm
from dcvit.baselines import batch_warnings
from dcvit.display import Display
from dcvit.errors import EnvironmentProblem
from dcvit.runs import Outcome, Place, Run, check_images, image_count
from dcvit.schedules import updates_per_epoch
from dcvit.starting import How
from dcvit.status import NEEDS_A_WORD, Standing, outcome_of, standings

Executor = Literal["local", "slurm", "ray"]
POLL = 5.0  # seconds between two questions to Slurm
SETTLE = 10.0  # seconds that a run must look lost: a file may take a while from one machine to another
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Who trains, and what that one is told besides the runs."""

    executor: Executor = "local"
    slurm: Mapping[str, Any] = field(default_factory=dict)  # as `slurm_options.parse` gives it
    ray_address: str | None = None
    jobs: int | None = None  # so many side by side
    resubmit: bool = False


def make(
    runs: Sequence[Run], place: Place, how: How, names: Mapping[Run, str], engine: Engine, *, say: Say
) -> dict[Run, Outcome]:
    """Has all of `runs` trained, none of which may have a usable record; returns how each ended.

    Until `place.deadline`, if there is one: what is not finished then stays in Slurm's queue.
    """
    for warning in batch_warnings(run.recipe for run in runs):
        print(f"warning: {warning}", file=sys.stderr)
    for run in runs:
        updates_per_epoch(image_count(run.recipe, place.source), run.recipe)
    check_images(runs, place.source)  # once, and not by each job in turn
    with Display({run: names[run] for run in runs}) as display:
        if engine.executor == "ray":
            from dcvit import ray_engine

            return ray_engine.make(
                runs, place, how, address=engine.ray_address, jobs=engine.jobs, watcher=display.watcher
            )
        slurm.require()
        return _Queue(runs, place, how, names, engine, display, say).make()


@dataclass
class _Queue:
    """One call that submits and watches."""

    runs: Sequence[Run]
    place: Place
    how: How
    names: Mapping[Run, str]
    engine: Engine
    display: Display
    say: Say
    outcomes: dict[Run, Outcome] = field(default_factory=dict)
    lost_since: dict[Run, float] = field(default_factory=dict)
    told: str = ""

    def make(self) -> dict[Run, Outcome]:
        self._submit(self._look(self.runs))
        try:
            while left := [run for run in self.runs if run not in self.outcomes]:
                stands = self._look(left)
                for run in left:
                    if (outcome := self._ended(run, stands[run])) is not None:
                        self._end(run, outcome)
                self._tell(stands)
                if len(self.outcomes) == len(self.runs):
                    break
                if self.place.deadline is not None and time() + POLL > self.place.deadline:
                    for run in left:
                        if run not in self.outcomes:
                            self._end(run, _still(stands[run]))
                    break
                sleep(POLL)
        except KeyboardInterrupt:
            print("The jobs stay in the queue; the same command picks them up", file=sys.stderr)
            raise
        return self.outcomes

    def _look(self, runs: Sequence[Run]) -> dict[Run, Standing]:
        found = standings(self.place.out, [self.place.folder_of(run) for run in runs])
        return {run: found[self.place.folder_of(run)] for run in runs}

    def _submit(self, stands: Mapping[Run, Standing]) -> None:
        """Submits what nobody has submitted, and with --resubmit what was and did not end well."""
        if any(one.state == "unknown" for one in stands.values()):
            raise EnvironmentProblem(
                "squeue gives no answer, so that nobody knows which jobs are still there: call again when it does"
            )
        again = [run for run in self.runs if stands[run].job and stands[run].state in NEEDS_A_WORD]
        for run in again:
            if not self.engine.resubmit or stands[run].state == "diverged":
                hint = "" if stands[run].state == "diverged" else ". --resubmit starts it again"
                ended = outcome_of(run, self.place, stands[run])
                self._end(run, Outcome(problem=ended.problem + hint, kind=ended.kind))
        for run in self.runs:  # those that others start from come first
            base = run.before
            if base is not None and base in self.outcomes:
                why = f"not started: run {base.id}, whose weights it needs, has no record"
                self._end(run, Outcome(problem=why, kind=self.outcomes[base].kind))
            elif base is not None and base in stands and _is_elsewhere(stands[base]):
                why = f"not started: run {base.id}, whose weights it needs, is being trained by {stands[base].note}"
                self._end(run, Outcome(problem=why, kind="postponed"))
        new = [
            run
            for run in self.runs
            if run not in self.outcomes and stands[run].state not in ("running", "queued", "unknown", "done")
        ]
        queued = {
            run: stands[run].job
            for run in self.runs
            if stands[run].job and stands[run].state in ("running", "queued")
        }
        going = len(self.runs) - len(self.outcomes) - len(new)
        self.say(
            f"runs to do: {len(self.runs)}; {len(new)} are submitted now, {going} are queued or running; records go "
            f"to {self.place.out}. This can be stopped and called again: the jobs stay in the queue"
        )
        for entry in slurm.submit(
            new,
            self.place,
            self.how,
            self.names,
            options=self.engine.slurm,
            at_once=self.engine.jobs,
            queued=queued,
        ):
            self.say(f"  {entry.name}: job {entry.job}, log {entry.log}")

    def _ended(self, run: Run, stands: Standing) -> Outcome | None:
        """How a run ended, if it did."""
        if stands.state in ("running", "queued", "unknown"):
            self.lost_since.pop(run, None)
            return None
        if stands.state not in ("done", "failed", "diverged"):  # gone without a word
            since = self.lost_since.setdefault(run, monotonic())
            if monotonic() - since < SETTLE:
                return None
            ended = outcome_of(run, self.place, stands)
            return Outcome(problem=f"{ended.problem}. --resubmit starts it again", kind="failed")
        return outcome_of(run, self.place, stands)

    def _end(self, run: Run, outcome: Outcome) -> None:
        if run not in self.outcomes:
            self.outcomes[run] = outcome
            self.display.watcher.ended(run, outcome)

    def _tell(self, stands: Mapping[Run, Standing]) -> None:
        """Says how many runs stand how, when that has changed."""
        counts = Counter(stands[run].state for run in stands if run not in self.outcomes)
        text = ", ".join(f"{count} {state}" for state, count in counts.items())
        if text and text != self.told:
            self.say(f"  in the queue: {text}")
        self.told = text


def _is_elsewhere(stands: Standing) -> bool:
    """Whether somebody trains a run who is not in the queue, so that no job can wait for the end of it."""
    return stands.state == "running" and not stands.job


def _still(stands: Standing) -> Outcome:
    job = f" as job {stands.job}" if stands.job else ""
    return Outcome(problem=f"{stands.state}{job}: it goes on in the queue", kind="paused")
