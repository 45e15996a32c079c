"""Accuracy on the test images."""

from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcvit.batch import normalise
from dcvit.datasets import Pictures
from dcvit.devices import Precision, autocast
from dcvit.loading import Batch, evaluation_batches
from dcvit.metrics import hits, percent
from dcvit.processes import ALONE, World
from dcvit.recipe import Recipe

HELD_BYTES = 256 << 20  # sets up to here are resized once and held


class Accuracy(NamedTuple):
    """Top-1 and top-5 in percent, and for every test image whether top-1 was right."""

    top1: float
    top5: float
    correct: Tensor  # bool (N,), on the CPU


def share_of(images: int, world: World) -> range:
    """Which of `images` test images this process looks at: the shares are disjoint and together all of them.

    >>> [share_of(7, World(rank=rank, size=3)) for rank in range(3)]
    [range(0, 3), range(3, 6), range(6, 7)]
    """
    most = -(-images // world.size)
    return range(min(world.rank * most, images), min((world.rank + 1) * most, images))


class StillImages:
    """Images cropped as for testing, time and again; resized once where they fit into memory.

    Of several processes each has its share, and all have equally many batches, some of which may be empty.
    """

    def __init__(
        self, images: Pictures, recipe: Recipe, *, workers: int, device: torch.device, world: World = ALONE
    ) -> None:
        self.images, self.share = len(images), share_of(len(images), world)
        self.count = -(-len(share_of(len(images), replace(world, rank=0))) // recipe.batch)
        mine = Pictures(
            images.labels[self.share.start : self.share.stop],
            lambda index: images.open(self.share.start + index),
        )
        self._make = lambda: evaluation_batches(mine, recipe, workers=workers, pinned=device.type == "cuda")
        small = len(mine) * 3 * recipe.resolution**2 <= HELD_BYTES
        self._held = [tuple(part.to(device) for part in batch) for batch in self._make()] if small else None

    def batches(self) -> Generator[Batch, None, None]:
        yield from self._held if self._held is not None else self._make()


def evaluate(
    model: nn.Module,
    test: StillImages,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    precision: Precision,
    world: World,
) -> Accuracy:
    """The accuracy of a model on the test images, of which each process gives the `batches` of its share.

    Every image counts once, and all processes get the accuracy of all of them. Leaves the model in
    evaluation mode.
    """
    right_2N = torch.zeros(2, test.images, dtype=torch.uint8, device=device)
    if test.share:
        mine = _hits(model, batches, device=device, precision=precision)
        right_2N[:, test.share.start : test.share.stop] = mine
    else:
        model.eval()
        for _ in batches:  # whoever watches them wants all to come
            pass
    world.sum(right_2N).wait()
    top1, top5 = right_2N.bool().cpu()
    return Accuracy(percent(top1), percent(top5), top1)


@torch.inference_mode()
def _hits(
    model: nn.Module, batches: Iterable[Batch], *, device: torch.device, precision: Precision
) -> Tensor:
    """Whether the top-1 and the top-5 answers were right, bool (2, N)."""
    model.eval()
    found = []
    for pixels, labels in batches:
        pixels, labels = pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with autocast(device, precision):
            logits = model(normalise(pixels))
        found.append(torch.stack(hits(logits.float(), labels)))
    return torch.cat(found, dim=1)
