"""One training run, from a recipe and a seed to a record.

The device is looked at every 50 updates and at the end of an epoch; a run whose loss or
gradient was not finite stops there, with the state before that step on disk.
"""

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcvit import ledger
from dcvit.augmentation import global_generators_kept
from dcvit.checkpoint import copied, load_weights, save_weights
from dcvit.datasets import Pictures, pictures
from dcvit.devices import best_precision, describe, flushed_denormals
from dcvit.errors import Diverged
from dcvit.evaluating import Accuracy, evaluate
from dcvit.loading import Batch, evaluation_batches, training_batches
from dcvit.provenance import provenance
from dcvit.recipe import Recipe, as_data, run_id
from dcvit.schedules import learning_rate, updates_per_epoch
from dcvit.sources import Source
from dcvit.step import NEVER, READ_EVERY, State, Tally, begin_state, train_step

HELD_BYTES = 256 << 20  # test sets up to here are resized once and held


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
) -> ledger.Record:
    """Trains one run and writes its record and weights into its folder below `out`.

    Deterministic in (recipe, seed, data) on the CPU of one machine, whatever `workers` is; torch's,
    numpy's and Python's global generators are left as they were. Raises Diverged when a loss
    or gradient is not finite, after the state before that step was saved; DataError when the
    images do not fit the recipe; ValueError when the run that it starts from is not there.
    """
    with global_generators_kept(device), flushed_denormals():
        return _fit(recipe, seed, data, out, device, workers, observe or (lambda progress: None))


def _fit(
    recipe: Recipe,
    seed: int,
    data: Source,
    out: Path,
    device: torch.device,
    workers: int,
    observe: Observer,
) -> ledger.Record:
    started, begin = datetime.now(timezone.utc), perf_counter()
    folder = ledger.folder_of(out, recipe, seed, data.fingerprint)
    train, test = pictures(data, "train", recipe), pictures(data, "val", recipe)
    updates = updates_per_epoch(len(train), recipe)
    precision = best_precision(device)
    state = begin_state(recipe, seed, device, weights=_pretrained(recipe, seed, data, out))
    test_set = _TestSet(test, recipe, workers=workers, device=device)
    batches = training_batches(train, recipe, seed=seed, workers=workers, pinned=device.type == "cuda")

    evolution: list[dict[str, Any]] = []
    best: dict[str, float] = {"top1": -1.0}
    best_weights: dict[str, Tensor] = {}
    top1 = None

    def report(update: int) -> None:
        images = (update + 1) * recipe.batch
        total = recipe.epochs * updates * recipe.batch
        observe(Progress(update // updates + 1, recipe.epochs, images, total, perf_counter() - begin, top1))

    for epoch in range(recipe.epochs):
        epoch_begin = perf_counter()
        state.tally = Tally.empty(device)
        state.model.train(recipe.train_mode)
        for update in range(epoch * updates, (epoch + 1) * updates):
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
        if accuracy.top1 > best["top1"]:
            best = {"top1": accuracy.top1, "top5": accuracy.top5, "epoch": epoch + 1}
            best_weights = copied(state.model.state_dict())
        report(update)

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
        started=started.isoformat(timespec="seconds"),
        seconds=perf_counter() - begin,
    )
    ledger.write(folder, record)
    return record


def _stop_if_bad(state: State, recipe: Recipe, updates: int, folder: Path) -> None:
    """Reads what the device found; if a step was not finite, saves the state before it and raises Diverged."""
    first_bad = int(state.first_bad)
    if first_bad == NEVER:
        return
    norms = state.norms.roll(-(first_bad % len(state.norms)) - 1).tolist()[-min(first_bad + 1, 5) :]
    moments = {
        f"optimizer.{number}.{name}": value
        for number, moment in enumerate(state.optimizer.state.values())
        for name, value in moment.items()
    }
    save_weights(
        folder / "diverged.safetensors",
        {
            **{f"model.{name}": value for name, value in state.model.state_dict().items()},
            **{f"ema.{name}": value for name, value in state.ema.items()},
            **moments,
            "alpha": state.alpha,
        },
    )
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


class _TestSet:
    """The test images, resized once where they fit into memory."""

    def __init__(self, test: Pictures, recipe: Recipe, *, workers: int, device: torch.device) -> None:
        self._make = lambda: evaluation_batches(test, recipe, workers=workers, pinned=device.type == "cuda")
        small = len(test) * 3 * recipe.resolution**2 <= HELD_BYTES
        self._held = [tuple(part.to(device) for part in batch) for batch in self._make()] if small else None

    def batches(self) -> Iterator[Batch]:
        return iter(self._held) if self._held is not None else self._make()


def _packed(accuracy: Accuracy) -> str:
    return np.packbits(accuracy.correct.numpy()).tobytes().hex()
