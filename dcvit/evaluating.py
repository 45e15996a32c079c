"""Accuracy on the test images."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcvit.batch import normalise
from dcvit.datasets import Pictures
from dcvit.devices import Precision, autocast
from dcvit.loading import Batch, evaluation_batches
from dcvit.metrics import hits, percent
from dcvit.recipe import Recipe

HELD_BYTES = 256 << 20  # sets up to here are resized once and held


class Accuracy(NamedTuple):
    """Top-1 and top-5 in percent, and for every test image whether top-1 was right."""

    top1: float
    top5: float
    correct: Tensor  # bool (N,), on the CPU


class StillImages:
    """Images cropped as for testing, time and again; resized once where they fit into memory."""

    def __init__(self, images: Pictures, recipe: Recipe, *, workers: int, device: torch.device) -> None:
        self._make = lambda: evaluation_batches(images, recipe, workers=workers, pinned=device.type == "cuda")
        small = len(images) * 3 * recipe.resolution**2 <= HELD_BYTES
        self._held = [tuple(part.to(device) for part in batch) for batch in self._make()] if small else None

    def batches(self) -> Iterator[Batch]:
        return iter(self._held) if self._held is not None else self._make()


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], *, device: torch.device, precision: Precision
) -> Accuracy:
    """The accuracy of a model on batches of uint8 images; leaves the model in evaluation mode."""
    model.eval()
    found = []
    for pixels, labels in batches:
        pixels, labels = pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with autocast(device, precision):
            logits = model(normalise(pixels))
        found.append(hits(logits.float(), labels))
    top1 = torch.cat([hit.top1_B for hit in found]).cpu()
    top5 = torch.cat([hit.top5_B for hit in found]).cpu()
    return Accuracy(percent(top1), percent(top5), top1)
