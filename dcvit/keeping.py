"""When a run saves its state, what is in it, and how a run goes on from one.

A state is saved every few minutes, at the end of every epoch, and when the run is paused. It costs
time (a checksum, a copy to the disk), so at the ends of short epochs it waits until the one before
has paid off.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from torch import Tensor

from dcvit import pausing
from dcvit.checkpoint import copied, load_state, save_state, starting_with
from dcvit.claims import Claim
from dcvit.errors import Paused
from dcvit.files import remove_leftovers
from dcvit.pausing import Course, UnusableState
from dcvit.state import State, measures_of, put_back, tensors_of
from dcvit.telling import note

SHARE = 1 / 20  # of the time that saving may take, at the ends of epochs


@dataclass
class Keeper:
    """Saves the states of one run. Only process 0 writes, the others are told what came of it."""

    folder: Path
    state: State
    leads: bool
    every: float  # seconds between two states in the middle of an epoch
    claim: Claim | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    saved_at: float = field(default_factory=monotonic)
    took: float = 0.0

    def improved(self) -> None:
        """Keeps a copy of the weights, which are the best so far."""
        self.best_weights = copied(self.state.model.state_dict())

    def at_epoch_end(self, course: Callable[[], Course]) -> None:
        """Saves a state, if the one before was not just saved."""
        if monotonic() - self.saved_at >= self.took / SHARE:
            self._save_if_possible(course())

    def at_look(self, course: Callable[[], Course]) -> None:
        """Saves a state if the last one is old."""
        if monotonic() - self.saved_at >= self.every:
            self._save_if_possible(course())

    def pause(self, course: Course, why: str, *, together: Callable[[], Any]) -> Paused:
        """Saves a state, which must succeed, and gives the exception that says so; `together` waits for all."""
        if self.leads:
            self.save(course)
        together()  # whoever ends first may take the others with it
        return Paused(f"paused after {course.update} of {course.updates} updates ({why}); its state is saved")

    def save(self, course: Course) -> None:
        """Saves a state. OSError if the disk refuses, TakenOver if this run is another process's now."""
        begin = monotonic()
        if self.claim is not None:
            self.claim.require()
        best = {f"best.{name}": value for name, value in self.best_weights.items()}
        save_state(self.folder, {**tensors_of(self.state), **measures_of(self.state), **best}, course)
        self.saved_at = monotonic()
        self.took = self.saved_at - begin

    def _save_if_possible(self, course: Course) -> None:
        if not self.leads:
            return
        try:
            self.save(course)
        except OSError as error:  # the states before are whole, and there may be room next time
            self.saved_at = monotonic()
            note(
                f"the state of update {course.update} could not be saved in {self.folder} "
                f"({error.strerror or error}). The run goes on"
            )


def gone_on(
    folder: Path, state: State, fresh: Course, *, allow_changes: bool
) -> tuple[Course, dict[str, Tensor]]:
    """The course and best weights of the newest usable state in a folder, which `state` then is.

    A damaged state is named on stderr and the one before it is used; without any the run is `fresh`.
    What may not change in the middle of a run but did is an EnvironmentProblem; what may is in the course.
    """
    for path in pausing.states(folder):
        try:
            tensors, course = load_state(path)
            changed = pausing.changes(fresh.maker, course, path, allowed=allow_changes)
        except UnusableState as error:
            note(f"{error}. It is not used")
            continue
        put_back(state, tensors)
        best = {name: value.to(state.device) for name, value in starting_with("best.", tensors).items()}
        said = [f"after update {course.update}: {words}" for words in changed]
        for words in said:
            note(words)
        return replace(course, maker=fresh.maker, changes=(*course.changes, *said)), best
    return fresh, {}


def clean(folder: Path) -> None:
    """Removes half-written files that a killed process left in a run's folder, which is claimed."""
    remove_leftovers(
        folder,
        of=(
            *("state-", "record.json", "last.safetensors", "best.safetensors", "ema.safetensors"),
            *("diverged.safetensors", "outcome.json", "error"),
        ),
    )
