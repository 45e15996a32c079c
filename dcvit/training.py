"""One training run, from a recipe and a seed to a record.

The device is looked at every 50 updates and at the end of an epoch. A run whose loss or
gradient was not finite stops there, with the state before that step on disk; one whose time is
up stops there too, with a state from which the next call goes on to the bit.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
import sys
from time import perf_counter, time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcvit import ledger, pausing
from dcvit.augmentation import global_generators_kept
from dcvit.checkpoint import copied, load_state, load_weights, save_state, save_weights, starting_with
from dcvit.datasets import pictures
from dcvit.devices import Precision, best_precision, describe, flushed_denormals
from dcvit.errors import Diverged, Paused
from dcvit.evaluating import Accuracy, StillImages, evaluate
from dcvit.loading import training_batches
from dcvit.looking import look, look_epochs, sample_of
from dcvit.pausing import Course, UnusableState
from dcvit.provenance import provenance
from dcvit.recipe import Recipe, as_data, run_id
from dcvit.schedules import learning_rate, updates_per_epoch
from dcvit.sources import Source
from dcvit.step import (
    NEVER,
    READ_EVERY,
    State,
    Tally,
    begin_state,
    measures_of,
    put_back,
    tensors_of,
    train_step,
)


class Progress(NamedTuple):
    """Where a run is."""

    epoch: int  # counted from 1
    epochs: int
    images: int  # seen so far
    total_images: int
    seconds: float
    top1: float | None  # after the last finished epoch


Observer = Callable[[Progress], None]


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
) -> ledger.Record:
    """Trains one run and writes its record and weights into its folder below `out`.

    Deterministic in (recipe, seed, data) on the CPU of one machine, whatever `workers` is and however
    often the run is paused; torch's, numpy's and Python's global generators are left as they were.
    A state that an earlier call saved is gone on from; if that can't be, stderr says why and the run
    starts from the beginning. `deadline` is in seconds of `time.time`.

    Raises Paused at the first look after the deadline, when the state was saved; Diverged when a loss
    or gradient is not finite, after the state before that step was saved; DataError when the
    images do not fit the recipe; ValueError when the run that it starts from is not there.
    """
    with global_generators_kept(device), flushed_denormals():
        return _fit(recipe, seed, data, out, device, workers, observe or (lambda progress: None), deadline)


def _fit(
    recipe: Recipe,
    seed: int,
    data: Source,
    out: Path,
    device: torch.device,
    workers: int,
    observe: Observer,
    deadline: float | None,
) -> ledger.Record:
    started, begin = datetime.now(timezone.utc), perf_counter()
    folder = ledger.folder_of(out, recipe, seed, data.fingerprint)
    train, test = pictures(data, "train", recipe), pictures(data, "val", recipe)
    updates = updates_per_epoch(len(train), recipe)
    precision = best_precision(device)
    state = begin_state(recipe, seed, device, weights=_pretrained(recipe, seed, data, out))
    test_set = StillImages(test, recipe, workers=workers, device=device)
    probe = recipe.difficulty_probe
    looks = look_epochs(recipe.epochs, probe.times) if probe else ()
    sample = (
        StillImages(sample_of(train, probe.images), recipe, workers=workers, device=device) if probe else None
    )

    fresh = Course(
        maker=_maker(recipe, seed, data, out, device, precision),
        update=0,
        updates=recipe.epochs * updates,
        evolution=[],
        best={"top1": -1.0},
        started=started.isoformat(timespec="seconds"),
        seconds=0.0,
        epoch_seconds=0.0,
    )
    course, best_weights = _gone_on(folder, state, fresh)
    evolution, best = course.evolution, course.best
    top1 = evolution[-1]["top1"] if evolution else None
    begin -= course.seconds
    batches = training_batches(
        train, recipe, seed=seed, start=course.update, workers=workers, pinned=device.type == "cuda"
    )

    def report(update: int) -> None:
        images = (update + 1) * recipe.batch
        total = recipe.epochs * updates * recipe.batch
        observe(Progress(update // updates + 1, recipe.epochs, images, total, perf_counter() - begin, top1))

    def pause_if_late(done: int, *, epoch_seconds: float) -> None:
        if deadline is None or time() < deadline:
            return
        tensors = {
            **tensors_of(state),
            **measures_of(state),
            **{f"best.{name}": value for name, value in best_weights.items()},
        }
        now = replace(
            course,
            update=done,
            evolution=evolution,
            best=best,
            seconds=perf_counter() - begin,
            epoch_seconds=epoch_seconds,
        )
        save_state(folder, tensors, now)
        raise Paused(f"paused after {done} of {now.updates} updates; its state is saved")

    for epoch in range(course.update // updates, recipe.epochs):
        first, end = max(course.update, epoch * updates), (epoch + 1) * updates
        epoch_begin = perf_counter()
        if first == epoch * updates:
            state.tally = Tally.empty(device)
        else:
            epoch_begin -= course.epoch_seconds
        state.model.train(recipe.train_mode)
        for update in range(first, end):
            train_step(
                state,
                recipe,
                next(batches),
                update=update,
                updates_per_epoch=updates,
                seed=seed,
                precision=precision,
            )
            if update % READ_EVERY == READ_EVERY - 1:
                _stop_if_bad(state, recipe, updates, folder)
                report(update)
                if update + 1 < end:
                    pause_if_late(update + 1, epoch_seconds=perf_counter() - epoch_begin)
        _stop_if_bad(state, recipe, updates, folder)
        accuracy = evaluate(state.model, test_set.batches(), device=device, precision=precision)
        top1 = accuracy.top1
        evolution.append(
            {
                "epoch": epoch + 1,
                **state.tally.means(recipe.batch),
                "learning_rate": learning_rate(recipe, update, updates),
                "top1": accuracy.top1,
                "top5": accuracy.top5,
                "seconds": perf_counter() - epoch_begin,
            }
        )
        if probe and sample and epoch + 1 in looks:
            evolution[-1]["probe"] = look(
                state.model,
                sample.batches(),
                probe,
                recipe,
                seed=seed,
                epoch=epoch + 1,
                device=device,
                precision=precision,
            )
        if accuracy.top1 > best["top1"]:
            best = {"top1": accuracy.top1, "top5": accuracy.top5, "epoch": epoch + 1}
            best_weights = copied(state.model.state_dict())
        report(update)
        if epoch + 1 < recipe.epochs:
            pause_if_late(end, epoch_seconds=0.0)

    weights = {
        "last.safetensors": save_weights(folder / "last.safetensors", state.model.state_dict()),
        "best.safetensors": save_weights(folder / "best.safetensors", best_weights),
    }
    if state.ema:
        weights["ema.safetensors"] = save_weights(folder / "ema.safetensors", state.ema)
    record = ledger.Record(
        layout=ledger.LAYOUT,
        run_id=run_id(recipe, seed),
        recipe=as_data(recipe),
        seed=seed,
        data={
            "name": data.name,
            "fingerprint": data.fingerprint,
            "classes": len(data.classes),
            "train_images": len(train),
            "test_images": len(test),
        },
        environment={**provenance(), **describe(device, precision)},
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        samples_seen=recipe.epochs * updates * recipe.batch,
        last={"top1": accuracy.top1, "top5": accuracy.top5},
        best=best,
        correct=_packed(accuracy),
        evolution=evolution,
        weights=weights,
        started=course.started,
        seconds=perf_counter() - begin,
    )
    ledger.write(folder, record)
    pausing.forget(folder)
    return record


def _stop_if_bad(state: State, recipe: Recipe, updates: int, folder: Path) -> None:
    """Reads what the device found; if a step was not finite, saves the state before it and raises Diverged."""
    first_bad = int(state.first_bad)
    if first_bad == NEVER:
        return
    norms = state.norms.roll(-(first_bad % len(state.norms)) - 1).tolist()[-min(first_bad + 1, 5) :]
    save_weights(folder / "diverged.safetensors", tensors_of(state))
    raise Diverged(
        f"the loss or its gradient was not finite at update {first_bad} (epoch {first_bad // updates + 1}, learning "
        f"rate {learning_rate(recipe, first_bad, updates):.3g}); the gradient norms up to there were "
        f"{', '.join(f'{norm:.3g}' for norm in norms)}. The state before it is in {folder / 'diverged.safetensors'}"
    )


def _pretrained(recipe: Recipe, seed: int, data: Source, out: Path) -> dict[str, Tensor] | None:
    if recipe.pretrained is None:
        return None
    if ledger.find(out, recipe.pretrained, seed, data.fingerprint) is None:
        raise ValueError(
            f"run {run_id(recipe, seed)} starts from the weights of run {run_id(recipe.pretrained, seed)}, "
            f"which has no record in {out}: train that one first"
        )
    return load_weights(ledger.checked_weights(out, recipe.pretrained, seed, data.fingerprint))


def _maker(
    recipe: Recipe, seed: int, data: Source, out: Path, device: torch.device, precision: Precision
) -> dict[str, Any]:
    """All that the numbers of a run may depend on, so that none are ever made by two of them."""
    made_with = provenance()
    base = recipe.pretrained and ledger.find(out, recipe.pretrained, seed, data.fingerprint)
    return {
        "run": run_id(recipe, seed),
        "images": data.fingerprint,
        "weights": base.weights["last.safetensors"] if base else None,
        "code": pausing.code_digest(),
        "python": made_with["python"],
        **made_with["versions"],
        **describe(device, precision),
    }


def _gone_on(folder: Path, state: State, fresh: Course) -> tuple[Course, dict[str, Tensor]]:
    """The course and best weights of the state saved in a folder, which `state` then is; of a fresh run without one."""
    path = pausing.find(folder)
    if path is None:
        return fresh, {}
    try:
        tensors, course = load_state(path, fresh.maker)
    except UnusableState as error:
        print(f"note: {error}. This run starts from the beginning", file=sys.stderr, flush=True)
        return fresh, {}
    put_back(state, tensors)
    best = {name: value.to(state.device) for name, value in starting_with("best.", tensors).items()}
    return course, best


def _packed(accuracy: Accuracy) -> str:
    return np.packbits(accuracy.correct.numpy()).tobytes().hex()
