"""The loss of a mixed batch, from two labels and two weights an image.

Shapes: B samples, K classes.
"""

from typing import NamedTuple

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
    mean_log_p_B = log_p_BK.mean(dim=1)

    def cross_entropy(labels_B: Tensor) -> Tensor:
        own_B = log_p_BK.gather(1, labels_B[:, None]).squeeze(1)
        return -(1 - smoothing) * own_B - smoothing * mean_log_p_B

    loss_B = weights * cross_entropy(labels) + partner_weights * cross_entropy(partner_labels)
    return Loss(loss_B.mean(), log_p_BK.detach().amax(dim=1).exp())
