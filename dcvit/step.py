"""The training step: everything that one update changes, and the update itself.

    batch -> erase -> mix -> model -> two-label loss -> update -> difficulty -> next alpha

A batch may go through the model in pieces, in one process or several: gradients, losses and
counts are summed over all of them before anything is changed. The step never waits for the device:
alpha, counts, losses and norms stay there. One whose loss or gradient is not finite is masked on the
device, and so is every one after it, so that the state is the one before it when somebody looks.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcvit.batch import mixed_batch
from dcvit.checkpoint import copied, starting_with
from dcvit.devices import Precision, autocast, prepare
from dcvit.difficulty import HISTOGRAM_BINS, count_by_difficulty, dynamic_alpha, top_score_histogram
from dcvit.feed import Compiling
from dcvit.layout import Piece, pieces_of
from dcvit.loading import Batch
from dcvit.losses import Loss, two_label_loss
from dcvit.models import build, decay_groups, fit_weights
from dcvit.processes import ALONE, World
from dcvit.recipe import DynamicAlpha, FixedAlpha, Recipe, StagedAlpha, StaticAlpha
from dcvit.rng import seed_global
from dcvit.schedules import learning_rate, staged_alpha, static_alpha

READ_EVERY = 50  # updates between two looks at what the device found
NEVER = 2**62  # first_bad of a run in which nothing went wrong


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
    parallel: DistributedDataParallel | None  # what sums its gradients over processes, if there are several
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
    recipe: Recipe,
    seed: int,
    device: torch.device,
    *,
    weights: dict[str, Tensor] | None = None,
    world: World = ALONE,
    compiling: Compiling = "default",
) -> State:
    """The state before the first update: fresh weights of this seed, or the given ones, resized to fit."""
    seed_global(torch.device("cpu"), seed, "weights")
    model = build(recipe)
    if weights is not None:
        model.load_state_dict(fit_weights(weights, model))
    model = prepare(model, device)
    if device.type == "cuda":
        torch.compiler.reset()  # what earlier runs of this process compiled would count against this one
    averaged = {} if recipe.ema_decay is None else model.state_dict()
    averaged = {name: value for name, value in averaged.items() if value.is_floating_point()}
    parallel = _parallel(model) if world.size > 1 else None
    forward = parallel or model
    return State(
        model=model,
        forward=_compiled(forward, compiling) if device.type == "cuda" else forward,
        parallel=parallel,
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


def _compiled(forward: Callable[[Tensor], Tensor], compiling: Compiling) -> Callable[[Tensor], Tensor]:
    """What runs on a GPU; with graphs, kernels of a whole pass are launched at once, which small networks gain by."""
    if compiling == "off":
        return forward
    mode = "reduce-overhead" if compiling == "graphs" else None
    compiled: Callable[[Tensor], Tensor] = torch.compile(forward, dynamic=False, mode=mode)
    return compiled


def _parallel(model: nn.Module) -> DistributedDataParallel:
    """The model with gradients that are summed over processes; BatchNorm's statistics are `train_step`'s business."""
    named = "forward_sync_buffers"  # torch 2.14's name of what was `broadcast_buffers`
    if named not in signature(DistributedDataParallel.__init__).parameters:
        named = "broadcast_buffers"
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **{named: False})


def tensors_of(state: State) -> dict[str, Tensor]:
    """What decides about all updates to come, by name: weights, their average, the optimiser's moments, alpha."""
    moments = {
        f"optimizer.{number}.{name}": value
        for number, moment in state.optimizer.state_dict()["state"].items()
        for name, value in moment.items()
    }
    return {
        **{f"model.{name}": value for name, value in state.model.state_dict().items()},
        **{f"ema.{name}": value for name, value in state.ema.items()},
        **moments,
        "alpha": state.alpha,
    }


def measures_of(state: State) -> dict[str, Tensor]:
    """What has been measured so far and decides about nothing: the last norms, and the sums of this epoch."""
    sums = {f"tally.{each.name}": getattr(state.tally, each.name) for each in fields(Tally)}
    return {"norms": state.norms, **{name: torch.as_tensor(value) for name, value in sums.items()}}


def put_back(state: State, tensors: Mapping[str, Tensor]) -> None:
    """Makes a state that has just begun the one whose `tensors_of` and `measures_of` these are.

    `first_bad` is not among them: a state in which it says anything is never gone on from.
    """
    device = state.device
    state.model.load_state_dict(starting_with("model.", tensors))
    for name, value in starting_with("ema.", tensors).items():
        state.ema[name].copy_(value)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in starting_with("optimizer.", tensors).items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = torch.clone(value)
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.alpha = tensors["alpha"].to(device)
    state.norms.copy_(tensors["norms"])
    sums = {name: value.to(device) for name, value in starting_with("tally.", tensors).items()}
    state.tally = Tally(**{**sums, "updates": int(sums["updates"])})


def train_step(
    state: State,
    recipe: Recipe,
    batch: Batch,
    *,
    update: int,
    updates_per_epoch: int,
    seed: int,
    precision: Precision,
    pieces: Sequence[Piece] | None = None,
    world: World = ALONE,
) -> None:
    """One update of `state`, in place, without waiting for the device; the model's mode is the caller's.

    `batch` holds this process's `pieces`, one after the other; without them it is the whole batch.
    """
    device, progress = state.device, update / (recipe.epochs * updates_per_epoch)
    pixels, labels = (part.to(device, non_blocking=True) for part in batch)
    alpha = _alpha(state, recipe, progress)
    pieces = pieces or pieces_of(recipe)[0]

    statistics = [torch.clone(buffer) for buffer in state.batch_statistics]
    found = torch.zeros(4 + HISTOGRAM_BINS, dtype=torch.float64, device=device)
    begin = 0
    for number, piece in enumerate(pieces):
        here = slice(begin, begin := begin + len(piece))
        mixed = mixed_batch(
            pixels[here],
            labels[here],
            recipe,
            alpha=alpha,
            progress=progress,
            seed=seed,
            update=update,
            piece=piece,
        )
        seed_global(device, seed, "drop path", update, piece.positions[0])
        last = number == len(pieces) - 1
        with _summing(state, last):
            with autocast(device, precision):
                logits = state.forward(mixed.images)
            loss = two_label_loss(logits, *mixed[1:], smoothing=recipe.label_smoothing)
            if number == 0:  # those of the official process 0, which its code gives to the others
                new_statistics = [torch.clone(buffer) for buffer in state.batch_statistics]
            found += _measured(loss, recipe, share=len(piece) / recipe.batch)
            if last:
                summed = world.sum(found)  # on its way during the last backward pass
            (loss.mean / len(pieces)).backward()
    norm = _clip(state.parameters, recipe.clip_norm)
    summed.wait()
    mean_loss, counts, histogram = found[0].float(), found[1:4].long(), found[4:].long()

    finite = torch.isfinite(mean_loss) & torch.isfinite(norm)
    state.first_bad = torch.where(finite, state.first_bad, state.first_bad.clamp(max=update))
    sound = state.first_bad == NEVER
    _update(state, learning_rate(recipe, update, updates_per_epoch), sound=sound)
    _keep(state.batch_statistics, new_statistics, statistics, sound=sound, world=world)
    if state.ema:
        _average(state, decay=recipe.ema_decay or 0.0, sound=sound)

    if isinstance(recipe.alpha, DynamicAlpha):
        easy, _, hard = counts / recipe.batch
        state.alpha = torch.where(
            sound, dynamic_alpha(state.alpha, easy, hard, tau=recipe.alpha.tau), state.alpha
        )
    state.norms[update % len(state.norms)] = norm
    tally = state.tally
    tally.counts_3 = tally.counts_3 + counts
    tally.histogram_N = tally.histogram_N + histogram
    tally.loss = tally.loss + mean_loss
    tally.gradient_norm = tally.gradient_norm + norm
    tally.alpha = tally.alpha + alpha
    tally.updates += 1


def _summing(state: State, last: bool) -> AbstractContextManager[Any]:
    """Gradients are summed over processes with the last piece, not before."""
    return nullcontext() if last or state.parallel is None else state.parallel.no_sync()


def _measured(loss: Loss, recipe: Recipe, *, share: float) -> Tensor:
    """What adds up over pieces and processes, float64: the loss times the piece's share, counts, histogram."""
    counts = count_by_difficulty(loss.top_B, easy_above=recipe.easy_above, hard_below=recipe.hard_below)
    mean = loss.mean.detach().double() * share
    return torch.cat([mean[None], counts.double(), top_score_histogram(loss.top_B).double()])


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


def _keep(
    live: list[Tensor], new: list[Tensor], before: list[Tensor], *, sound: Tensor, world: World
) -> None:
    """BatchNorm's statistics: those of the batch's first group, in every process; unsound ones are put back."""
    world.share([buffer for buffer in new if buffer.is_floating_point()])
    for buffer, kept, old in zip(live, new, before, strict=True):
        buffer.copy_(torch.where(sound, kept, old))


def _average(state: State, *, decay: float, sound: Tensor) -> None:
    """ema += (1 - decay) (weights - ema), for a sound step; integer buffers are no averages and stay out."""
    averages = list(state.ema.values())
    moves = torch._foreach_sub(state.averaged, averages)
    torch._foreach_mul_(moves, torch.where(sound, 1 - decay, 0.0))
    torch._foreach_add_(averages, moves)
