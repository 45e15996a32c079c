"""Counts of right answers; they add up over batches and processes.

Shapes: B samples, K classes.
"""

from typing import NamedTuple

from torch import Tensor


class Hits(NamedTuple):
    """Which samples had their label among the first one or five classes."""

    top1_B: Tensor  # bool
    top5_B: Tensor  # bool


def hits(logits: Tensor, labels: Tensor) -> Hits:
    """Right answers of logits (B, K) for labels (B,); with fewer than five classes all of them count.

    >>> import torch
    >>> hits(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).top1_B
    tensor([ True, False])
    """
    first_BT = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right_BT = first_BT == labels[:, None]
    return Hits(right_BT[:, 0], right_BT.any(dim=1))


def percent(right: Tensor) -> float:
    """The share of True in a bool tensor, in percent; waits for the device.

    >>> import torch
    >>> percent(torch.tensor([True, True, False, False]))
    50.0
    """
    return 100 * int(right.sum()) / len(right)
