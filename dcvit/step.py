"""The training step: everything that one update changes, and the update itself.

    batch -> erase -> mix -> model -> two-label loss -> update -> difficulty -> next alpha

A batch may go through the model in pieces, in one process or several: gradients, losses and
counts are summed over all of them before anything is changed. The step never waits for the device:
alpha, counts, losses and norms stay there. One whose loss or gradient is not finite is masked on the
device, and so is every one after it, so that the state is the one before it when somebody looks.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcvit.adamw import AdamW
from dcvit.batch import mixed_batch
from dcvit.checkpoint import copied, starting_with
from dcvit.devices import Precision, autocast, prepare
from dcvit.difficulty import HISTOGRAM_BINS, counts_and_histogram, dynamic_alpha
from dcvit.feed import Compiling
from dcvit.layout import Piece, pieces_of
from dcvit.loading import Batch
from dcvit.losses import Loss, two_label_loss
from dcvit.models import build, decay_groups, fit_weights
from dcvit.processes import ALONE, World
from dcvit.recipe import DynamicAlpha, FixedAlpha, Recipe, StagedAlpha, StaticAlpha
from dcvit.rng import seed_global
from dcvit.schedules import learning_rate, staged_alpha, static_alpha
from dcvit.transform import Workspace, workspace_for

READ_EVERY = 50  # updates between two looks at what the device found
NEVER = 2**62  # first_bad of a run in which nothing went wrong
MEASURED = (
    4 + HISTOGRAM_BINS
)  # numbers that pieces and processes add up: the loss, three counts, the histogram


@dataclass
class Tally:
    """Sums over the updates of an epoch, on the device."""

    sums: Tensor  # float64: what is MEASURED, then the gradient's norm and alpha
    updates: int = 0

    @classmethod
    def empty(cls, device: torch.device) -> "Tally":
        return cls(torch.zeros(MEASURED + 2, dtype=torch.float64, device=device))

    @property
    def loss(self) -> Tensor:
        """Of all updates together."""
        return self.sums[0].clone()

    @property
    def counts_3(self) -> Tensor:
        """Easy, moderate and hard samples, int64."""
        return self.sums[1:4].long()

    def means(self, batch: int) -> dict[str, Any]:
        """The epoch's proportions (Eq. 2) and means; waits for the device."""
        loss, easy, moderate, hard, *histogram, gradient_norm, alpha = self.sums.tolist()
        samples = self.updates * batch
        return {
            "easy": easy / samples,
            "moderate": moderate / samples,
            "hard": hard / samples,
            "histogram": [int(count) for count in histogram],
            "alpha": alpha / self.updates,
            "loss": loss / self.updates,
            "gradient_norm": gradient_norm / self.updates,
        }


@dataclass
class State:
    """All that a training step changes."""

    model: nn.Module
    forward: Callable[[Tensor], Tensor]  # the model, compiled where that pays
    parallel: DistributedDataParallel | None  # what sums its gradients over processes, if there are several
    optimizer: AdamW
    parameters: list[nn.Parameter]
    ema: dict[str, Tensor]  # moving average of the weights; empty if the recipe keeps none
    averaged: list[Tensor]  # what it averages, in the same order
    batch_statistics: list[Tensor]  # of BatchNorm layers, which the forward pass changes
    compiling: Compiling  # what `forward` is made by
    alpha: Tensor  # of the next update, if it is dynamic
    first_bad: Tensor  # number of the first update whose loss or gradient was not finite, else NEVER
    norms: Tensor  # gradient norms of the last updates, in a ring that outlasts two looks
    tally: Tally = field(init=False)
    workspace: Workspace | None = None  # of the batch transform, made at the first update

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
    """The state before the first update: fresh weights of this seed, or the given ones, resized to fit.

    ValueError for CUDA graphs in several processes.
    """
    if device.type != "cuda":
        compiling = "off"
    if compiling == "graphs" and world.size > 1:
        raise ValueError(
            f"--compile graphs, {world.size} processes a run: CUDA graphs are for one process, since gradients are "
            "summed over several outside of them. Leave --compile out, or give --gpus-per-run 1"
        )
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
        forward=_compiled(forward, compiling),
        parallel=parallel,
        optimizer=AdamW(decay_groups(model, recipe), betas=recipe.betas, eps=recipe.eps),
        parameters=list(model.parameters()),
        ema=copied(averaged),
        averaged=list(averaged.values()),
        batch_statistics=[
            buffer
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for buffer in module.buffers()
        ],
        compiling=compiling,
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
    return {
        **{f"model.{name}": value for name, value in state.model.state_dict().items()},
        **{f"ema.{name}": value for name, value in state.ema.items()},
        **{f"optimizer.{name}": value for name, value in state.optimizer.tensors().items()},
        "alpha": state.alpha,
    }


def measures_of(state: State) -> dict[str, Tensor]:
    """What has been measured so far and decides about nothing: the last norms, and the sums of this epoch."""
    tally = state.tally
    return {
        "norms": state.norms,
        "tally.sums": tally.sums,
        "tally.updates": torch.as_tensor(tally.updates),
    }


def put_back(state: State, tensors: Mapping[str, Tensor]) -> None:
    """Makes a state that has just begun the one whose `tensors_of` and `measures_of` these are.

    `first_bad` is not among them: a state in which it says anything is never gone on from.
    """
    state.model.load_state_dict(starting_with("model.", tensors))
    for name, value in starting_with("ema.", tensors).items():
        state.ema[name].copy_(value)
    state.optimizer.put_back(starting_with("optimizer.", tensors))
    state.alpha = tensors["alpha"].to(state.device)
    state.norms.copy_(tensors["norms"])
    state.tally = Tally(tensors["tally.sums"].to(state.device), int(tensors["tally.updates"]))


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

    workspace = _workspace(state, max(map(len, pieces)), recipe)
    statistics = _gathered(state.batch_statistics)
    found = torch.zeros(MEASURED, dtype=torch.float64, device=device)
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
            workspace=workspace,
        )
        seed_global(device, seed, "drop path", update, piece.positions[0])
        last = number == len(pieces) - 1
        if state.compiling == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        with _summing(state, last):
            with autocast(device, precision):
                logits = state.forward(mixed.images)
            loss = two_label_loss(logits, *mixed[1:], smoothing=recipe.label_smoothing)
            if number == 0:  # those of the official process 0, which its code gives to the others
                new_statistics = _gathered(state.batch_statistics)
            found += _measured(loss, recipe, share=len(piece) / recipe.batch)
            if last:
                summed = world.sum(found)  # on its way during the last backward pass
            (loss.mean / len(pieces)).backward()
        if state.compiling == "graphs" and not last:
            _own_gradients(state.parameters)
    norm = _clip(state.parameters, recipe.clip_norm)
    summed.wait()

    finite = torch.isfinite(found[0] + norm)
    state.first_bad = torch.where(finite, state.first_bad, state.first_bad.clamp(max=update))
    sound = state.first_bad == NEVER
    state.optimizer.step(learning_rate(recipe, update, updates_per_epoch), sound)
    _keep(state.batch_statistics, new_statistics, statistics, sound=sound, world=world)
    if state.ema:
        _average(state, decay=recipe.ema_decay or 0.0, sound=sound)

    if isinstance(recipe.alpha, DynamicAlpha):
        easy, _, hard = found[1:4].float() / recipe.batch
        moved = dynamic_alpha(state.alpha, easy, hard, tau=recipe.alpha.tau)
        state.alpha = torch.where(sound, moved, state.alpha)
    state.norms[update % len(state.norms)] = norm
    state.tally.sums += torch.cat([found, torch.stack([norm, alpha])])
    state.tally.updates += 1


def _workspace(state: State, images: int, recipe: Recipe) -> Workspace:
    """Where the transform puts a piece of so many images."""
    if state.workspace is None or len(state.workspace.images) < images:
        side = recipe.resolution
        compiled = None if state.device.type == "cpu" else state.compiling != "off"
        state.workspace = workspace_for((images, 3, side, side), state.device, compiled=compiled)
    return state.workspace


def _own_gradients(parameters: list[nn.Parameter]) -> None:
    """Moves gradients out of the memory of a CUDA graph, which its next run will write to."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


def _summing(state: State, last: bool) -> AbstractContextManager[Any]:
    """Gradients are summed over processes with the last piece, not before."""
    return nullcontext() if last or state.parallel is None else state.parallel.no_sync()


def _measured(loss: Loss, recipe: Recipe, *, share: float) -> Tensor:
    """What adds up over pieces and processes, float64: the loss times the piece's share, counts, histogram."""
    mean = loss.mean.detach().double() * share
    counts = counts_and_histogram(loss.top_B, easy_above=recipe.easy_above, hard_below=recipe.hard_below)
    return torch.cat([mean[None], counts])


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
    """The norm of the whole gradient, which is then scaled down to `clip_norm` where it is above.

    What `torch.nn.utils.clip_grad_norm_` does.
    """
    gradients = [parameter.grad for parameter in parameters]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if clip_norm is not None:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _gathered(buffers: list[Tensor]) -> list[Tensor]:
    """A copy of many small tensors, in one or two: floating-point numbers, and counts."""
    kinds = (
        [buffer.flatten() for buffer in buffers if buffer.is_floating_point() == floating]
        for floating in (True, False)
    )
    return [torch.cat(kind) for kind in kinds if kind]


def _keep(
    live: list[Tensor], new: list[Tensor], before: list[Tensor], *, sound: Tensor, world: World
) -> None:
    """BatchNorm's statistics: those of the batch's first group, in every process; unsound ones are put back."""
    if not live:
        return
    world.share([values for values in new if values.is_floating_point()])
    for kept, old in zip(new, before, strict=True):
        floating = kept.is_floating_point()
        buffers = [buffer for buffer in live if buffer.is_floating_point() == floating]
        parts = torch.where(sound, kept, old).split([buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))


def _average(state: State, *, decay: float, sound: Tensor) -> None:
    """ema += (1 - decay) (weights - ema), for a sound step; integer buffers are no averages and stay out."""
    averages = list(state.ema.values())
    moves = torch._foreach_sub(state.averaged, averages)
    torch._foreach_mul_(moves, torch.where(sound, 1 - decay, 0.0))
    torch._foreach_add_(averages, moves)
