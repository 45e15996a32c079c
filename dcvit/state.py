"""All that a training step changes, from the first update on: to be begun, saved, put back and looked at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcvit.adamw import AdamW
from dcvit.checkpoint import copied, starting_with
from dcvit.devices import prepare
from dcvit.difficulty import HISTOGRAM_BINS
from dcvit.feed import Compiling
from dcvit.models import build, decay_groups, fit_weights
from dcvit.processes import ALONE, World
from dcvit.recipe import DynamicAlpha, Recipe
from dcvit.rng import seed_global
from dcvit.transform import Workspace

READ_EVERY = 50  # updates between two looks at what the device found
NEVER = 2**62  # first_bad of a run in which nothing went wrong
# numbers that pieces and processes add up: the loss, three counts, the histogram
MEASURED = 4 + HISTOGRAM_BINS


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
