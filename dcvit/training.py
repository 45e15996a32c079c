"""One training run, from a recipe and a seed to a record.

    uint8 batch -> erase -> mix -> model -> two-label loss -> update -> difficulty -> next alpha

The step never waits for the device: alpha, counts, losses and norms stay there, and are read
every 50 updates and at the end of an epoch. A step whose loss or gradient is not finite is
masked on the device, and so is every one after it, until that is read and the run stops.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dcvit import ledger
from dcvit.augmentation import global_generators_kept
from dcvit.batch import mixed_batch
from dcvit.checkpoint import copied, load_weights, save_weights
from dcvit.datasets import Pictures, pictures
from dcvit.devices import Precision, autocast, best_precision, describe, prepare
from dcvit.difficulty import HISTOGRAM_BINS, count_by_difficulty, dynamic_alpha, top_score_histogram
from dcvit.errors import Diverged
from dcvit.evaluating import Accuracy, evaluate
from dcvit.loading import Batch, evaluation_batches, training_batches, updates_per_epoch
from dcvit.losses import two_label_loss
from dcvit.models import build, decay_groups, fit_weights
from dcvit.provenance import provenance
from dcvit.recipe import DynamicAlpha, FixedAlpha, Recipe, StagedAlpha, StaticAlpha, as_data, run_id
from dcvit.rng import seed_global
from dcvit.schedules import learning_rate, staged_alpha, static_alpha
from dcvit.sources import Source

READ_EVERY = 50  # updates between two looks at what the device found
NEVER = 2**62  # first_bad of a run in which nothing went wrong
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

    Deterministic in (recipe, seed, data) on one machine, whatever `workers` is; torch's,
    numpy's and Python's global generators are left as they were. Raises Diverged when a loss
    or gradient is not finite, after the state before that step was saved; DataError when the
    images do not fit the recipe; ValueError when the run that it starts from is not there.
    """
    with global_generators_kept(device):
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


# --- the step ------------------------------------------------------------------------------


@dataclass
class Tally:
    """Sums over the updates of an epoch, on the device."""

    counts_3: Tensor  # easy, moderate, hard
    histogram_N: Tensor  # of top scores
    loss: Tensor
    gradient_norm: Tensor
    alpha: Tensor
    updates: int = 0

    @classmethod
    def empty(cls, device: torch.device) -> "Tally":
        zero = torch.zeros((), device=device)
        return cls(
            counts_3=torch.zeros(3, dtype=torch.int64, device=device),
            histogram_N=torch.zeros(HISTOGRAM_BINS, dtype=torch.int64, device=device),
            loss=zero,
            gradient_norm=zero,
            alpha=zero,
        )

    def means(self, batch: int) -> dict[str, Any]:
        """The epoch's proportions (Eq. 2) and means; waits for the device."""
        easy, moderate, hard = self.counts_3.tolist()
        samples = self.updates * batch
        return {
            "easy": easy / samples,
            "moderate": moderate / samples,
            "hard": hard / samples,
            "histogram": self.histogram_N.tolist(),
            "alpha": float(self.alpha) / self.updates,
            "loss": float(self.loss) / self.updates,
            "gradient_norm": float(self.gradient_norm) / self.updates,
        }


@dataclass
class State:
    """All that a training step changes."""

    model: nn.Module
    forward: Callable[[Tensor], Tensor]  # the model, compiled where that pays
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    ema: dict[str, Tensor]  # moving average of the weights; empty if the recipe keeps none
    averaged: list[Tensor]  # what it averages, in the same order
    batch_statistics: list[Tensor]  # of BatchNorm layers, which the forward pass changes
    alpha: Tensor  # of the next update, if it is dynamic
    first_bad: Tensor  # number of the first update whose loss or gradient was not finite, else NEVER
    norms: Tensor  # gradient norms of the last updates, in a ring that outlasts two looks
    tally: Tally = field(init=False)

    @property
    def device(self) -> torch.device:
        return self.alpha.device


def begin_state(
    recipe: Recipe, seed: int, device: torch.device, *, weights: dict[str, Tensor] | None = None
) -> State:
    """The state before the first update: fresh weights of this seed, or the given ones, resized to fit."""
    seed_global(torch.device("cpu"), seed, "weights")
    model = build(recipe)
    if weights is not None:
        model.load_state_dict(fit_weights(weights, model))
    model = prepare(model, device)
    averaged = {} if recipe.ema_decay is None else model.state_dict()
    averaged = {name: value for name, value in averaged.items() if value.is_floating_point()}
    return State(
        model=model,
        forward=torch.compile(model) if device.type == "cuda" else model,
        optimizer=torch.optim.AdamW(
            decay_groups(model, recipe), lr=0.0, betas=recipe.betas, eps=recipe.eps, fused=True
        ),
        parameters=list(model.parameters()),
        ema=copied(averaged),
        averaged=list(averaged.values()),
        batch_statistics=[
            buffer
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for buffer in module.buffers()
        ],
        alpha=torch.full(
            (), recipe.alpha.start if isinstance(recipe.alpha, DynamicAlpha) else 0.0, device=device
        ),
        first_bad=torch.full((), NEVER, device=device),
        norms=torch.zeros(2 * READ_EVERY, device=device),
    )


def train_step(
    state: State,
    recipe: Recipe,
    batch: Batch,
    *,
    update: int,
    updates_per_epoch: int,
    seed: int,
    precision: Precision,
) -> None:
    """One update of `state`, in place, without waiting for the device; the model's mode is the caller's."""
    device, progress = state.device, update / (recipe.epochs * updates_per_epoch)
    pixels, labels = (part.to(device, non_blocking=True) for part in batch)
    alpha = _alpha(state, recipe, progress)
    mixed = mixed_batch(pixels, labels, recipe, alpha=alpha, progress=progress, seed=seed, update=update)

    seed_global(device, seed, "drop path", update)
    statistics = [torch.clone(buffer) for buffer in state.batch_statistics]
    with autocast(device, precision):
        logits = state.forward(mixed.images)
    loss = two_label_loss(logits, *mixed[1:], smoothing=recipe.label_smoothing)
    loss.mean.backward()
    norm = _clip(state.parameters, recipe.clip_norm)

    finite = torch.isfinite(loss.mean.detach()) & torch.isfinite(norm)
    state.first_bad = torch.where(finite, state.first_bad, state.first_bad.clamp(max=update))
    sound = state.first_bad == NEVER
    _update(state, learning_rate(recipe, update, updates_per_epoch), sound=sound)
    _keep(state.batch_statistics, statistics, sound=sound)
    if state.ema:
        _average(state, decay=recipe.ema_decay or 0.0, sound=sound)

    counts = count_by_difficulty(loss.top_B, easy_above=recipe.easy_above, hard_below=recipe.hard_below)
    if isinstance(recipe.alpha, DynamicAlpha):
        easy, _, hard = counts / recipe.batch
        state.alpha = torch.where(
            sound, dynamic_alpha(state.alpha, easy, hard, tau=recipe.alpha.tau), state.alpha
        )
    state.norms[update % len(state.norms)] = norm
    tally = state.tally
    tally.counts_3 = tally.counts_3 + counts
    tally.histogram_N = tally.histogram_N + top_score_histogram(loss.top_B)
    tally.loss = tally.loss + loss.mean.detach()
    tally.gradient_norm = tally.gradient_norm + norm
    tally.alpha = tally.alpha + alpha
    tally.updates += 1


def _alpha(state: State, recipe: Recipe, progress: float) -> Tensor:
    """MixUp's alpha of this update, a scalar on the device."""
    match recipe.alpha:
        case DynamicAlpha():
            return state.alpha
        case FixedAlpha(alpha=alpha):
            value = alpha
        case StaticAlpha() as rule:
            value = static_alpha(progress, recipe.periods, rule=rule)
        case StagedAlpha() as rule:
            value = staged_alpha(progress, recipe.periods, rule)
    return torch.full((), value, device=state.device)


def _clip(parameters: list[nn.Parameter], clip_norm: float | None) -> Tensor:
    """The norm of the whole gradient, which is then scaled down to `clip_norm` where it is above."""
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm


def _update(state: State, rate: float, *, sound: Tensor) -> None:
    """Moves the weights, unless this or an earlier step was not sound."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    # the fused update looks at this on the device and leaves weights and moments alone where it is 1
    state.optimizer.found_inf = (~sound).to(torch.float32)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def _keep(live: list[Tensor], before: list[Tensor], *, sound: Tensor) -> None:
    """Puts BatchNorm's statistics back to what they were if the step was not sound."""
    for buffer, old in zip(live, before, strict=True):
        buffer.copy_(torch.where(sound, buffer, old))


def _average(state: State, *, decay: float, sound: Tensor) -> None:
    """ema += (1 - decay) (weights - ema), for a sound step; integer buffers are no averages and stay out."""
    averages = list(state.ema.values())
    moves = torch._foreach_sub(state.averaged, averages)
    torch._foreach_mul_(moves, torch.where(sound, 1 - decay, 0.0))
    torch._foreach_add_(averages, moves)


# --- around the steps ----------------------------------------------------------------------


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
