"""The loss of a mixed batch, from two labels and two weights an image.

Shapes: B samples, K classes, 2 labels.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Loss(NamedTuple):
    """What one pass over the log-probabilities gives."""

    mean: Tensor  # scalar
    top_B: Tensor  # largest probability of each sample, detached: measuring difficulty is free


def two_label_loss(
    logits: Tensor,
    labels: Tensor,
    partner_labels: Tensor,
    weights: Tensor,
    partner_weights: Tensor,
    *,
    smoothing: float = 0.0,
) -> Loss:
    r"""Cross entropy of logits (B, K) against w y + w' y', without the dense rows y.

        mean_i  - sum_k (w_i y_ik + w'_i y'_ik) log p_ik,    y_ik = (1 - s) [k = label_i] + s / K

    Labels are int64 (B,), weights float (B,); the rows are smoothed before they are weighted,
    as in timm's Mixup, and need not sum to 1. Computed in float32 whatever the logits are.

    >>> import torch
    >>> even = torch.zeros(1, 2)
    >>> label = torch.tensor([0])
    >>> round(two_label_loss(even, label, label, torch.tensor([0.7]), torch.tensor([0.3])).mean.item(), 4)
    0.6931
    """
    log_p_BK = logits.float().log_softmax(dim=1)
    own_B2 = log_p_BK.gather(1, torch.stack([labels, partner_labels], dim=1))
    smoothed_B2 = (1 - smoothing) * own_B2 + smoothing * log_p_BK.mean(dim=1, keepdim=True)
    loss_B = -(torch.stack([weights, partner_weights], dim=1) * smoothed_B2).sum(dim=1)
    return Loss(loss_B.mean(), log_p_BK.detach().amax(dim=1).exp())
