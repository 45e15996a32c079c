"""One training run, from a recipe and a seed to a record.

The device is looked at every 50 updates and at the end of an epoch. A run whose loss or
gradient was not finite stops there, with the state before that step on disk. One that is told to
stop, or whose time is up, saves its state, and the next call goes on from there to the bit; so
does a call after a kill, from the last state that was saved on the way.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter, time
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from dcvit import ledger, pausing
from dcvit.augmentation import global_generators_kept
from dcvit.checkpoint import save_weights
from dcvit.claims import Claim
from dcvit.datasets import pictures
from dcvit.devices import Precision, best_precision, flushed_denormals
from dcvit.errors import Diverged, Paused
from dcvit.evaluating import Accuracy, StillImages, evaluate
from dcvit.feed import Compiling, Feed
from dcvit.keeping import Keeper, clean, gone_on
from dcvit.layout import Piece, pieces_of
from dcvit.loading import training_batches
from dcvit.looking import look, look_epochs, sample_of
from dcvit.memory import fitting, out_of_memory
from dcvit.origin import (
    division_of,
    environment_of,
    maker_of,
    manner_of,
    note_statistics,
    pretrained_weights,
)
from dcvit.pausing import Course
from dcvit.processes import ALONE, World
from dcvit.recipe import Recipe, as_data, run_id
from dcvit.schedules import learning_rate, updates_per_epoch
from dcvit.sources import Source
from dcvit.step import (
    NEVER,
    READ_EVERY,
    State,
    Tally,
    begin_state,
    tensors_of,
    train_step,
)

SAVE_EVERY = 600.0  # seconds between two states in the middle of an epoch
T = TypeVar("T")


class Progress(NamedTuple):
    """Where a run is."""

    epoch: int  # counted from 1
    epochs: int
    images: int  # seen so far
    total_images: int
    seconds: float
    top1: float | None  # after the last finished epoch


Observer = Callable[[Progress], None]
Stopped = Callable[[], str]  # why a run is to stop now; empty while it need not


def fit(
    recipe: Recipe,
    seed: int,
    data: Source,
    out: Path,
    device: torch.device,
    *,
    workers: int = 0,
    observe: Observer | None = None,
    deadline: float | None = None,
    stopped: Stopped = str,
    world: World = ALONE,
    at_most: int | None = None,
    sharing: int = 1,
    save_every: float = SAVE_EVERY,
    allow_changes: bool = False,
    claim: Claim | None = None,
    feed: Feed = Feed(),
    compiling: Compiling = "default",
) -> ledger.Record:
    """Trains one run and writes its record and weights into its folder below `out`.

    Deterministic in (recipe, seed, data) on the CPU of one machine, whatever `workers` is and however
    often the run is stopped; torch's, numpy's and Python's global generators are left as they were.
    A state that an earlier call saved is gone on from; stderr names those that can't be used. Several
    processes, a `world`, train the same recipe, and so does one that takes a batch in pieces of `at_most` images;
    sums are then rounded differently. Without `at_most` a piece is what fits into the part of a GPU that one of
    `sharing` runs has. `deadline` is in seconds of `time.time`, `save_every` in seconds.

    Raises Paused, after the state was saved, when `stopped` gives a reason (looked at after every update and
    test batch) or at the first look after the deadline; Diverged when a loss or gradient is not finite, after
    the state before that step was saved; DataError when the images do not fit the recipe; EnvironmentProblem
    when the state is of other versions and that is not allowed; ValueError when the run that it starts from is
    not there; TakenOver when another process has the run.
    """
    with global_generators_kept(device), flushed_denormals(), out_of_memory(recipe, device):
        pieces = pieces_of(
            recipe,
            processes=world.size,
            at_most=at_most or fitting(recipe, device, world.size, sharing=sharing),
        )
        if world.leads:
            clean(ledger.folder_of(out, recipe, seed, data.fingerprint))
            note_statistics(recipe, pieces[0])
        training = _begin(
            recipe,
            seed,
            data,
            out,
            device,
            _Orders(observe or (lambda progress: None), deadline, stopped, world, claim),
            workers=workers,
            pieces=pieces[world.rank],
            save_every=save_every,
            allow_changes=allow_changes,
            feed=feed,
            compiling=compiling,
        )
        with world.talking():
            return training.to_the_end()


@dataclass(frozen=True)
class _Orders:
    """Whom a run listens to and reports to."""

    observe: Observer
    deadline: float | None
    stopped: Stopped
    world: World
    claim: Claim | None

    def why_stop(self, *, looking: bool = False) -> str:
        """Why all processes stop now, if they do; the clock counts only when the device is looked at as well."""
        why = self.stopped()
        if looking and self.deadline is not None and time() >= self.deadline:
            why = why or "the time is up"
        return (why or "another process of it was told to stop") if self.world.any(bool(why)) else ""


@dataclass
class _Training:
    """A run on its way. `course` is where it was at the beginning of this call."""

    recipe: Recipe
    seed: int
    data: Source
    manner: dict[str, Any]  # of loading and compiling, as the record names it
    folder: Path
    device: torch.device
    precision: Precision
    orders: _Orders
    pieces: list[Piece]
    state: State
    keeper: Keeper
    course: Course
    updates: int  # an epoch
    batches: Generator[tuple[Tensor, Tensor], None, None]
    train_images: int
    test_set: StillImages
    sample: StillImages | None  # of the difficulty probe
    begun: float  # so that perf_counter() - begun are the run's seconds
    epoch_begun: float
    done: int  # updates

    def to_the_end(self) -> ledger.Record:
        """All epochs that are left, and the record."""
        recipe, updates, evolution = self.recipe, self.updates, self.course.evolution
        accuracy = None
        for epoch in range(len(evolution), recipe.epochs):
            if self.done == epoch * updates:
                self.state.tally = Tally.empty(self.device)
                self.epoch_begun = perf_counter()
            if self.done < (epoch + 1) * updates:
                self._train((epoch + 1) * updates)
            accuracy = self._end_epoch(epoch)
        assert accuracy is not None, "a run whose epochs are all done has a record"
        # loaders take a while to end; after the record nothing is to do but to let go of the claim
        self.batches.close()
        return self._finish(accuracy)

    def _train(self, end: int) -> None:
        """The updates up to `end`, the end of an epoch."""
        self.state.model.train(self.recipe.train_mode)
        for update in range(self.done, end):
            train_step(
                self.state,
                self.recipe,
                next(self.batches),
                update=update,
                updates_per_epoch=self.updates,
                seed=self.seed,
                precision=self.precision,
                pieces=self.pieces,
                world=self.orders.world,
            )
            self.done = update + 1
            looking = update % READ_EVERY == READ_EVERY - 1
            why = self.orders.why_stop(looking=looking)
            if why or looking:
                self._stop_if_bad()
            if looking:
                self._report(update)
            if why and self.done < end:
                raise self._paused(why)
            if looking:
                self.keeper.at_look(self._course)
            self._beat()
            if why:
                break
        self._stop_if_bad()
        self.keeper.at_epoch_end(self._course)

    def _end_epoch(self, epoch: int) -> Accuracy:
        """Tests the model, and writes the epoch down."""
        recipe, course, state = self.recipe, self.course, self.state
        last = self.done - 1
        accuracy = evaluate(
            state.model,
            self.test_set,
            self._watched(self.test_set),
            device=self.device,
            precision=self.precision,
            world=self.orders.world,
        )
        entry = {
            "epoch": epoch + 1,
            **state.tally.means(recipe.batch),
            "learning_rate": learning_rate(recipe, last, self.updates),
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            "seconds": perf_counter() - self.epoch_begun,
        }
        probe = recipe.difficulty_probe
        if probe and self.sample and epoch + 1 in look_epochs(recipe.epochs, probe.times):
            entry["probe"] = look(
                state.model,
                self._watched(self.sample),
                probe,
                recipe,
                seed=self.seed,
                epoch=epoch + 1,
                device=self.device,
                precision=self.precision,
            )
        course.evolution.append(entry)
        if accuracy.top1 > course.best["top1"]:
            course.best.update(top1=accuracy.top1, top5=accuracy.top5, epoch=epoch + 1)
            self.keeper.improved()
        self._report(last)
        if epoch + 1 < recipe.epochs and (why := self.orders.why_stop(looking=True)):
            raise self._paused(why, between_epochs=True)
        return accuracy

    def _watched(self, images: StillImages) -> Iterator[Any]:
        """The batches of still images; between two of them the run can be stopped. All processes have as many."""
        batches: Iterator[Any] = images.batches()
        for _ in range(images.count):
            if why := self.orders.why_stop():
                raise self._paused(why)
            self._beat()
            if (batch := next(batches, None)) is not None:
                yield batch

    # --- where the run is ------------------------------------------------------------------

    def _course(self) -> Course:
        return replace(
            self.course,
            update=self.done,
            seconds=perf_counter() - self.begun,
            epoch_seconds=perf_counter() - self.epoch_begun,
        )

    def _paused(self, why: str, *, between_epochs: bool = False) -> Paused:
        course = self._course()
        if between_epochs:
            course = replace(course, epoch_seconds=0.0)
        return self.keeper.pause(course, why, together=lambda: self.orders.world.any(False))

    def _progress(self, update: int) -> Progress:
        images, total = (count * self.recipe.batch for count in (update + 1, self.course.updates))
        evolution = self.course.evolution
        top1 = evolution[-1]["top1"] if evolution else None
        epoch = update // self.updates + 1
        return Progress(epoch, self.recipe.epochs, images, total, perf_counter() - self.begun, top1)

    def _report(self, update: int) -> None:
        self.orders.observe(self._progress(update))

    def _beat(self) -> None:
        if self.orders.claim is not None:
            self.orders.claim.beat(lambda: self._progress(self.done - 1)._asdict())

    def _stop_if_bad(self) -> None:
        """Reads what the device found; if a step was not finite, saves the state before it and raises Diverged."""
        state, recipe = self.state, self.recipe
        first_bad = int(state.first_bad)
        if first_bad == NEVER:
            return
        norms = state.norms.roll(-(first_bad % len(state.norms)) - 1).tolist()[-min(first_bad + 1, 5) :]
        path = self.folder / "diverged.safetensors"
        if self.orders.world.leads:
            save_weights(path, tensors_of(state))
        raise Diverged(
            f"the loss or its gradient was not finite at update {first_bad} (epoch {first_bad // self.updates + 1}, "
            f"learning rate {learning_rate(recipe, first_bad, self.updates):.3g}); the gradient norms up to there "
            f"were {', '.join(f'{norm:.3g}' for norm in norms)}. The state before it is in {path}"
        )

    # --- the end ---------------------------------------------------------------------------

    def _finish(self, accuracy: Accuracy) -> ledger.Record:
        """The record, which process 0 writes after the weights."""
        recipe, course, folder, world = self.recipe, self.course, self.folder, self.orders.world
        weights = {}
        if world.leads:
            if self.orders.claim is not None:
                self.orders.claim.require()
            files = {"last": self.state.model.state_dict(), "best": self.keeper.best_weights}
            if self.state.ema:
                files["ema"] = self.state.ema
            weights = {
                f"{name}.safetensors": save_weights(folder / f"{name}.safetensors", tensors)
                for name, tensors in files.items()
            }
        record = ledger.Record(
            layout=ledger.LAYOUT,
            run_id=run_id(recipe, self.seed),
            recipe=as_data(recipe),
            seed=self.seed,
            data={
                "name": self.data.name,
                "fingerprint": self.data.fingerprint,
                "classes": len(self.data.classes),
                "train_images": self.train_images,
                "test_images": self.test_set.images,
            },
            environment=environment_of(
                self.device,
                self.precision,
                division=division_of(world, self.pieces),
                manner=self.manner,
                changes=list(course.changes),
            ),
            parameters=sum(parameter.numel() for parameter in self.state.model.parameters()),
            samples_seen=recipe.epochs * self.updates * recipe.batch,
            last={"top1": accuracy.top1, "top5": accuracy.top5},
            best=course.best,
            correct=np.packbits(accuracy.correct.numpy()).tobytes().hex(),
            evolution=course.evolution,
            weights=weights,
            started=course.started,
            seconds=perf_counter() - self.begun,
        )
        if world.leads:
            if self.orders.claim is not None:
                self.orders.claim.require()  # large weights take a while
            ledger.write(folder, record)
            pausing.forget(folder)
        return record


# --- the beginning -------------------------------------------------------------------------


def _begin(
    recipe: Recipe,
    seed: int,
    data: Source,
    out: Path,
    device: torch.device,
    orders: _Orders,
    *,
    workers: int,
    pieces: list[Piece],
    save_every: float,
    allow_changes: bool,
    feed: Feed,
    compiling: Compiling,
) -> _Training:
    """The run, fresh or where its last state left it."""
    started, begun = datetime.now(timezone.utc), perf_counter()
    world = orders.world
    folder = ledger.folder_of(out, recipe, seed, data.fingerprint)
    train, test = pictures(data, "train", recipe), pictures(data, "val", recipe)
    updates = updates_per_epoch(len(train), recipe)
    precision = best_precision(device)
    manner = manner_of(feed, compiling, device)
    state = begin_state(
        recipe,
        seed,
        device,
        weights=pretrained_weights(recipe, seed, data, out),
        world=world,
        compiling=compiling,
    )
    state.tally = Tally.empty(device)
    probe = recipe.difficulty_probe
    fresh = Course(
        maker=maker_of(
            recipe, seed, data, out, device, precision, division=division_of(world, pieces), manner=manner
        ),
        update=0,
        updates=recipe.epochs * updates,
        evolution=[],
        best={"top1": -1.0},
        started=started.isoformat(timespec="seconds"),
        seconds=0.0,
        epoch_seconds=0.0,
    )
    course, best_weights = gone_on(folder, state, fresh, allow_changes=allow_changes)
    if world.any(
        world.told([course.update, len(course.evolution)]) != [course.update, len(course.evolution)]
    ):
        raise ValueError(
            f"process {world.rank} would go on from update {course.update}, another one from elsewhere: do all see "
            f"the same {folder}?"
        )
    keeper = Keeper(folder, state, world.leads, save_every, orders.claim, best_weights)
    return _Training(
        recipe=recipe,
        seed=seed,
        data=data,
        manner=manner,
        folder=folder,
        device=device,
        precision=precision,
        orders=orders,
        pieces=pieces,
        state=state,
        keeper=keeper,
        course=course,
        updates=updates,
        batches=training_batches(
            train,
            recipe,
            seed=seed,
            start=course.update,
            workers=workers,
            pinned=device.type == "cuda",
            positions=[position for piece in pieces for position in piece.positions],
            feed=feed,
            device=device,
        ),
        train_images=len(train),
        test_set=StillImages(test, recipe, workers=workers, device=device, world=world),
        sample=None
        if probe is None
        else StillImages(sample_of(train, probe.images), recipe, workers=workers, device=device),
        begun=begun - course.seconds,
        epoch_begun=begun - course.epoch_seconds,
        done=course.update,
    )
