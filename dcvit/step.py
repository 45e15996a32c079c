"""The training step: one update of a state.

    batch -> erase -> mix -> model -> two-label loss -> update -> difficulty -> next alpha

A batch may go through the model in pieces, in one process or several: gradients, losses and
counts are summed over all of them before anything is changed. The step never waits for the device:
alpha, counts, losses and norms stay there. One whose loss or gradient is not finite is masked on the
device, and so is every one after it, so that the state is the one before it when somebody looks.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dcvit.batch import mixed_batch
from dcvit.devices import Precision, autocast
from dcvit.difficulty import counts_and_histogram, dynamic_alpha
from dcvit.layout import Piece, pieces_of
from dcvit.loading import Batch
from dcvit.losses import Loss, two_label_loss
from dcvit.processes import ALONE, World
from dcvit.recipe import DynamicAlpha, FixedAlpha, Recipe, StagedAlpha, StaticAlpha
from dcvit.rng import seed_global
from dcvit.schedules import learning_rate, staged_alpha, static_alpha
from dcvit.state import MEASURED, NEVER, State
from dcvit.transform import Workspace, workspace_for


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
