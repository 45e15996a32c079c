"""The loop of a run: epochs of updates, a test after each, and the record.

The device is looked at every 50 updates and at the end of an epoch. A run whose loss or
gradient was not finite stops there, with the state before that step on disk.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcvit import ledger, pausing
from dcvit.checkpoint import save_weights
from dcvit.claims import Claim
from dcvit.devices import Precision
from dcvit.errors import Diverged, Paused
from dcvit.evaluating import Accuracy, StillImages, evaluate
from dcvit.keeping import Keeper
from dcvit.layout import Piece
from dcvit.looking import look, look_epochs
from dcvit.origin import division_of, environment_of
from dcvit.pausing import Course
from dcvit.processes import World
from dcvit.recipe import Recipe, as_data, run_id
from dcvit.schedules import learning_rate
from dcvit.sources import Source
from dcvit.state import NEVER, READ_EVERY, State, Tally, tensors_of
from dcvit.step import train_step


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


@dataclass(frozen=True)
class Orders:
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
class Loop:
    """A run on its way. `course` is where it was at the beginning of this call."""

    recipe: Recipe
    seed: int
    data: Source
    manner: dict[str, Any]  # of loading and compiling, as the record names it
    folder: Path
    device: torch.device
    precision: Precision
    orders: Orders
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
        with closing(self._watched(self.test_set)) as batches:
            accuracy = evaluate(
                state.model,
                self.test_set,
                batches,
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
            with closing(self._watched(self.sample)) as batches:
                entry["probe"] = look(
                    state.model,
                    batches,
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

    def _watched(self, images: StillImages) -> Generator[Any, None, None]:
        """The batches of still images; between two of them the run can be stopped. All processes have as many."""
        with closing(images.batches()) as batches:
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
