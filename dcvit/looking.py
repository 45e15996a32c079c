"""How hard a fixed sample of training images is when no more than an erasing has touched them (Fig. 9, A.2).

Shapes: B images, three numbers (easy, moderate, hard).
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from dcvit.batch import normalise
from dcvit.datasets import Pictures
from dcvit.devices import Precision, autocast
from dcvit.difficulty import difficulty_counts
from dcvit.erasing import draw_rates, erase_patches, erase_rectangles
from dcvit.errors import Diverged
from dcvit.loading import Batch
from dcvit.recipe import DifficultyProbe, RandomErasing, Recipe
from dcvit.rng import stream
from dcvit.sources import File, subset

USUAL = (
    RandomErasing()
)  # which the paper compares with; its settings are not said there, these are chosen here


def look_epochs(epochs: int, times: int) -> tuple[int, ...]:
    """After which epochs (counted from 1) to look: `times` equal steps, rounded up, the last after the last epoch.

    Every epoch once where there are fewer than `times`.

    >>> look_epochs(300, 10)
    (30, 60, 90, 120, 150, 180, 210, 240, 270, 300)
    >>> look_epochs(7, 3), look_epochs(2, 10)
    ((3, 5, 7), (1, 2))
    """
    return tuple(sorted({-(-step * epochs // times) for step in range(1, times + 1)}))


def sample_of(images: Pictures, count: int) -> Pictures:
    """The first `count` images, taken from the classes in turn; all where there are fewer."""
    labels = images.labels.tolist()
    files = [File(str(index), label, 0) for index, label in enumerate(labels)]
    taken = sorted(int(file.path) for file in subset(files, min(count, len(files))))
    return Pictures(images.labels[taken], lambda index: images.open(taken[index]))


@torch.inference_mode()
def look(
    model: nn.Module,
    batches: Iterable[Batch],
    probe: DifficultyProbe,
    recipe: Recipe,
    *,
    seed: int,
    epoch: int,
    device: torch.device,
    precision: Precision,
) -> dict[str, dict[str, float]]:
    """Shares of easy, moderate and hard images (Eq. 2), clean and under each erasing, after an epoch.

    What is erased depends on the seed and on the number of the batch alone, so that looks at
    different times, and at different runs of a seed, differ by their models only. Leaves the
    model in evaluation mode. Raises Diverged, with the epoch, if the model's output is not finite.
    """
    model.eval()
    counts: dict[str, Tensor] = {}
    images = 0
    for number, (pixels, _) in enumerate(batches):
        images += len(pixels)
        for name, seen in _ways(pixels.to(device, non_blocking=True), probe, seed=seed, batch=number):
            with autocast(device, precision):
                logits = model(seen)
            found = difficulty_counts(logits, easy_above=recipe.easy_above, hard_below=recipe.hard_below)
            counts[name] = counts.get(name, 0) + found
    return {name: _shares(found, images, epoch) for name, found in counts.items()}


def _ways(pixels: Tensor, probe: DifficultyProbe, *, seed: int, batch: int) -> Iterator[tuple[str, Tensor]]:
    """The three ways to show a batch, by name."""
    images = normalise(pixels)
    yield "clean", images
    yield (
        "random_erasing",
        erase_rectangles(
            images,
            generator=stream(seed, "look random erasing", batch, device=images.device),
            probability=USUAL.probability,
            min_area=USUAL.min_area,
            max_area=USUAL.max_area,
            min_aspect=USUAL.min_aspect,
        ),
    )
    generator = stream(seed, "look patch erasing", batch, device=images.device)
    gamma = draw_rates(len(images), mu=probe.mu, generator=generator)
    yield "patch_erasing", erase_patches(images, gamma, patch_size=probe.patch_size, generator=generator)


def _shares(counts_3: Tensor, images: int, epoch: int) -> dict[str, float]:
    easy, moderate, hard = counts_3.tolist()
    if easy + moderate + hard < images:
        raise Diverged(
            f"after epoch {epoch} the outputs for {images - easy - moderate - hard} of the {images} images of the "
            "difficulty probe were not finite"
        )
    return {"easy": easy / images, "moderate": moderate / images, "hard": hard / images}
