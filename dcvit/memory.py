"""How many images fit into a GPU at once, and what to say when they did not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dcvit.cost import activation_bytes, state_bytes
from dcvit.recipe import Recipe

USED = 0.7  # of what is left after weights and moments; the rest: held images (`stored.SHARE`), workspaces, allocator


class OutOfMemory(RuntimeError):
    """The GPU had too little memory for a piece of a batch."""


def fitting(recipe: Recipe, device: torch.device, processes: int, *, sharing: int = 1) -> int | None:
    """Images that may go through the network at once, by arithmetic; None where no limit is needed (CPUs).

    `sharing` is how many runs have the device together, each an equal part of its memory.
    """
    if device.type != "cuda":
        return None
    memory = torch.cuda.get_device_properties(device).total_memory
    return fitting_into(memory / sharing, recipe, processes)


def fitting_into(memory: float, recipe: Recipe, processes: int) -> int:
    """The same for a device of so many bytes: at least one, at most a process's share of the batch."""
    room = USED * (memory - state_bytes(recipe))
    return max(1, min(int(room / activation_bytes(recipe)), recipe.batch // processes))


@contextmanager
def out_of_memory(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Gives an error for lack of GPU memory words that say what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        name = type(recipe.backbone).__name__
        raise OutOfMemory(
            f"out of memory on {device}: a {name} of width {recipe.backbone.width} at {recipe.resolution} px, batch "
            f"{recipe.batch} ({str(error).splitlines()[0]}). Give --micro-batch N with fewer images at a time (the "
            "numbers stay those of the whole batch), or --gpus-per-run N with more GPUs"
        ) from error
