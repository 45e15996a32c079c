"""Batches of a run: which images at which update, and their pixels.

What a batch holds depends on (seed, epoch, image, view) alone, or, where the device augments, on (seed,
update, position): it is the same for any number of workers, and update 1000 can be made without the 999
before it.

Shapes: B samples of G groups, S updates an epoch; C channels, H x W pixels.
"""

import atexit
from collections.abc import Generator, Iterator, Sequence
from functools import partial
import signal
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dcvit.augmentation import evaluation_transform, seed_transform, training_transform
from dcvit.datasets import Pictures
from dcvit.feed import Feed
from dcvit.feeding import Batch, Update, fed
from dcvit.recipe import Recipe
from dcvit.rng import stream
from dcvit.schedules import updates_per_epoch

__all__ = ["Batch"]  # from here for all who use batches
CPU = torch.device("cpu")


def epoch_order(images: int, recipe: Recipe, *, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Which image each sample of an epoch is, and which view of it: two int64 (S, B).

    The images are shuffled anew every epoch. With repeated augmentation (Hoffer et al. 2020,
    DeiT's sampler) every image comes `repeats` times in a row and the epoch ends after as many
    samples as there are images, so it sees about 1 / repeats of them. Sample i goes to group
    i mod G, as it would to one of G processes: the views of an image do not meet in a group.
    """
    repeats = recipe.augmentation.repeats
    shuffled = torch.randperm(images, generator=stream(seed, "order", epoch))
    position = torch.arange(images)
    image_N, view_N = shuffled[position // repeats], position % repeats
    updates, size = updates_per_epoch(images, recipe), recipe.batch // recipe.groups

    def dealt(values_N: Tensor) -> Tensor:
        used = values_N[: updates * recipe.batch].view(updates * size, recipe.groups)
        return used.view(updates, size, recipe.groups).transpose(1, 2).reshape(updates, recipe.batch)

    return dealt(image_N), dealt(view_N)


def training_batches(
    pictures: Pictures,
    recipe: Recipe,
    *,
    seed: int,
    start: int = 0,
    workers: int = 0,
    pinned: bool = False,
    positions: Sequence[int] | None = None,
    feed: Feed = Feed(),
    device: torch.device = CPU,
) -> Generator[Batch, None, None]:
    """All batches of a run from update number `start` on, epoch after epoch; of each the samples at `positions`.

    With augmentation "device" `workers` are threads, and a batch may lie on the device already; else they are
    processes. ValueError, DataError or EnvironmentProblem if the images can't be fed so.
    """
    at = slice(None) if positions is None else list(positions)
    if feed.augmentation == "device":
        updates = (
            Update(epoch * len(image_SB) + number, image_SB[number, at].tolist())
            for epoch, image_SB, _, first in _epochs(len(pictures), recipe, seed=seed, start=start)
            for number in range(first, len(image_SB))
        )
        return fed(
            pictures,
            recipe,
            updates,
            seed=seed,
            positions=at,
            workers=workers,
            pinned=pinned,
            feed=feed,
            device=device,
        )
    if problem := feed.problem(device.type):
        raise ValueError(problem)
    keys = (
        [(epoch, image, view) for image, view in zip(images, views, strict=True)]
        for epoch, image_SB, view_SB, first in _epochs(len(pictures), recipe, seed=seed, start=start)
        for images, views in zip(image_SB[first:, at].tolist(), view_SB[first:, at].tolist(), strict=True)
    )
    return loaded(_Views(pictures, recipe, seed), keys, workers=workers, pinned=pinned)


def _epochs(
    images: int, recipe: Recipe, *, seed: int, start: int
) -> Iterator[tuple[int, Tensor, Tensor, int]]:
    """The epochs that are left at update number `start`: number, order (images, views), updates that are done."""
    updates = updates_per_epoch(images, recipe)
    for epoch in range(start // updates, recipe.epochs):
        image_SB, view_SB = epoch_order(images, recipe, seed=seed, epoch=epoch)
        yield epoch, image_SB, view_SB, max(start - epoch * updates, 0)


def evaluation_batches(
    pictures: Pictures, recipe: Recipe, *, workers: int = 0, pinned: bool = False
) -> Iterator[Batch]:
    """The test images in order, in batches of the recipe's size; the last may be smaller."""
    keys = in_order(len(pictures), recipe.batch)
    yield from loaded(_EvaluationViews(pictures, recipe), keys, workers=workers, pinned=pinned)


def in_order(images: int, batch: int) -> Iterator[list[int]]:
    """The indices of all images, so many at a time; the last may be fewer.

    >>> list(in_order(5, 2))
    [[0, 1], [2, 3], [4]]
    """
    indices = list(range(images))
    return (indices[start : start + batch] for start in range(0, images, batch))


def loaded(
    dataset: Dataset, list_of_keys: Iterator[list[Any]], *, workers: int, pinned: bool
) -> Generator[Batch, None, None]:
    """Batches of the items with these keys, made by loading processes or here; no global generator is touched.

    The processes are started when the first batch is asked for, and end with this iterator or with Python.
    """
    batches = iter(
        DataLoader(
            dataset,
            batch_sampler=list_of_keys,
            num_workers=workers,
            pin_memory=pinned,
            generator=stream(0, "workers"),  # unused by us, but else drawn from the global one
            worker_init_fn=_undisturbed,
            # also in a process that was itself spawned, where torch would have to pickle what it loads
            multiprocessing_context="fork" if workers else None,
        )
    )
    if not workers:
        yield from batches
        return
    # Torch does this when somebody collects the iterator. Whoever keeps an exception that came through it also keeps
    # the processes, and Python would wait for them at its end: they ignore the signal by which it ends its children.
    end = partial(_end_workers, batches)
    atexit.register(end)
    try:
        yield from batches
    finally:
        atexit.unregister(end)
        end()


def _end_workers(batches: Any) -> None:
    """Ends the loading processes of an iterator of torch's, also one that hangs in a read."""
    batches._shutdown_workers()  # tells them, waits for some seconds, and then sends the signal that they ignore
    for process in batches._workers:
        if process.is_alive():
            process.kill()
            process.join()


def _undisturbed(worker: int) -> None:
    """Signals that are meant for the run reach its loading processes too; these end when the run tells them."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)


class _Views(Dataset):
    """Augmented training images by (epoch, image, view)."""

    def __init__(self, pictures: Pictures, recipe: Recipe, seed: int) -> None:
        self.pictures, self.seed = pictures, seed
        self.transform = training_transform(recipe)

    def __getitem__(self, key: tuple[int, int, int]) -> Any:
        epoch, image, view = key
        seed_transform(self.seed, "augmentation", epoch, image, view)
        return self.transform(self.pictures.open(image)), int(self.pictures.labels[image])


class _EvaluationViews(Dataset):
    """Test images by index."""

    def __init__(self, pictures: Pictures, recipe: Recipe) -> None:
        self.pictures = pictures
        self.transform = evaluation_transform(recipe)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.pictures.open(index)), int(self.pictures.labels[index])
