"""What the paper's tables take in GPU-hours, on disk and in memory. Arithmetic, and to be printed as such. No torch.

Hours are those of `cost.estimated_seconds`: good to a factor of two until runs have been timed on a GPU.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dcvit.cost import FULL, HALF, activation_bytes, estimated_seconds, parameters, state_bytes
from dcvit.pausing import KEPT
from dcvit.recipe import Recipe

RECORD_BYTES = 230_000  # of 300 epochs and 50,000 test images, as JSON
ENDLESS = 10**9  # cores: the GPU never waits for an image


def finished_bytes(recipe: Recipe) -> float:
    """Bytes that a finished run leaves on disk: last and best weights, their average if any, and the record."""
    return FULL * parameters(recipe) * (2 + (recipe.ema_decay is not None)) + RECORD_BYTES


def saved_bytes(recipe: Recipe, *, kept: int = KEPT) -> float:
    """Bytes of the saved states of a run under way: weights, two moments, best weights, and the average if any."""
    return kept * FULL * parameters(recipe) * (4 + (recipe.ema_decay is not None))


def step_bytes(recipe: Recipe, images: int) -> float:
    """Bytes of GPU memory that a training step of so many images at once holds when its forward pass has ended.

    Kernels and the allocator need more on top: allow 20 %.
    """
    copies = HALF * parameters(recipe)  # autocast's, of the weights
    return state_bytes(recipe) + copies + images * activation_bytes(recipe)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What some runs take on GPUs of one kind. Hours are estimates."""

    runs: int
    hours: float  # of one GPU, waiting for images included
    computing: float  # of these
    longest: float  # the longest run, together with those that it starts from
    disk: float  # bytes of all finished runs

    def wall_hours(self, gpus: int) -> float:
        """Hours of so many GPUs with a run each, at best: a run is not split, and a GPU may be idle at the end."""
        return max(self.longest, self.hours / gpus)


def budget_of(
    recipes: Iterable[Recipe], *, images: Mapping[str, int], seeds: int = 1, cores: int = 16
) -> Budget:
    """The budget of all runs that the recipes need, each once, on one H100 fed by `cores` cores.

    `images` says how many training images a set has, by `Recipe.images`.

    >>> from dcvit.baselines import DEIT_B, DEIT_T, deit_at_384
    >>> budget_of([DEIT_T, deit_at_384(DEIT_B), DEIT_T], images={"imagenet1k": 1_281_167}).runs
    3
    """
    runs = dict.fromkeys(run for recipe in recipes for run in _chain(recipe))
    hours = {run: _hours(run, images, cores=cores) for run in runs}
    return Budget(
        runs=seeds * len(runs),
        hours=seeds * sum(hours.values()),
        computing=seeds * sum(_hours(run, images, cores=ENDLESS) for run in runs),
        longest=max((sum(hours[one] for one in _chain(run)) for run in runs), default=0.0),
        disk=seeds * sum(finished_bytes(run) for run in runs),
    )


def _chain(recipe: Recipe) -> list[Recipe]:
    """A recipe, after those that it starts from."""
    return [*(_chain(recipe.pretrained) if recipe.pretrained else ()), recipe]


def _hours(recipe: Recipe, images: Mapping[str, int], *, cores: int) -> float:
    count = recipe.train_images or images[recipe.images]
    return estimated_seconds(recipe, images=count, gpu=True, cores=cores) / 3600
