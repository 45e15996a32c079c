"""Accuracy on the test images."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcvit.batch import normalise
from dcvit.devices import Precision, autocast
from dcvit.loading import Batch
from dcvit.metrics import hits, percent


class Accuracy(NamedTuple):
    """Top-1 and top-5 in percent, and for every test image whether top-1 was right."""

    top1: float
    top5: float
    correct: Tensor  # bool (N,), on the CPU


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
