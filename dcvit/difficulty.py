"""How hard the training samples are for the model right now (section 3 of the paper).

Shapes: B samples, K classes, N bins of a histogram. Nothing here waits for the device.
"""

from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

Real = TypeVar("Real", float, Tensor)

HISTOGRAM_BINS = 100


def difficulty_counts(logits: Tensor, *, easy_above: float = 0.8, hard_below: float = 0.3) -> Tensor:
    """Numbers of easy, moderate and hard samples, int64 (3,), from logits (B, K).

    With p the largest softmax probability of a sample (Eq. 1), it is easy if p > easy_above,
    hard if p < hard_below, moderate otherwise, both bounds included. Counts, not shares: they
    add up over micro-batches and processes, and Eq. 2 divides once at the end. A sample whose
    probabilities are not finite is none of the three, so that the sum tells.

    Raises ValueError unless 0 <= hard_below <= easy_above <= 1.

    >>> difficulty_counts(torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.8, 0.2]]).log())
    tensor([1, 2, 0])
    """
    return count_by_difficulty(
        logits.float().softmax(dim=1).amax(dim=1), easy_above=easy_above, hard_below=hard_below
    )


def count_by_difficulty(top_B: Tensor, *, easy_above: float, hard_below: float) -> Tensor:
    """As `difficulty_counts`, from the largest probabilities (B,) that the loss already has."""
    _require_bounds(easy_above, hard_below)
    easy_B = top_B > easy_above
    hard_B = top_B < hard_below
    moderate_B = (top_B >= hard_below) & (top_B <= easy_above)
    return torch.stack([easy_B.sum(), moderate_B.sum(), hard_B.sum()])


def top_score_histogram(top_B: Tensor, *, bins: int = HISTOGRAM_BINS) -> Tensor:
    """How many of the largest probabilities (B,) fall into each of `bins` equal parts of [0, 1], int64 (N,).

    Part i is (i / bins, (i + 1) / bins], so that the parts above 0.8 hold exactly the easy
    samples; with it every threshold can be read off one run. Scores that are not finite are
    in no part.

    >>> top_score_histogram(torch.tensor([0.2, 0.8, 0.81, 1.0]), bins=5)
    tensor([1, 0, 0, 1, 2])
    """
    edges = torch.arange(1, bins, device=top_B.device, dtype=torch.float32) / bins
    part_B = torch.bucketize(top_B.float(), edges)  # edges[i - 1] < score <= edges[i]
    finite_B = torch.isfinite(top_B).long()
    return torch.zeros(bins, dtype=torch.int64, device=top_B.device).index_add_(0, part_B, finite_B)


def counts_and_histogram(top_B: Tensor, *, easy_above: float, hard_below: float) -> Tensor:
    """`count_by_difficulty` and `top_score_histogram` in one vector, float64 (3 + N,), in four small operations.

    The borders of both cut [0, 1] into parts; a table says for each part which numbers a score in it adds to.
    """
    edges, table = _parts(easy_above, hard_below, top_B.device)
    # what is not finite falls behind the last edge, where the table is zero
    part_B = torch.bucketize(top_B.float().nan_to_num(nan=2.0, posinf=2.0, neginf=2.0), edges)
    return table.index_select(0, part_B).sum(dim=0)


@cache  # making them anew would wait for a GPU at every step
def _parts(easy_above: float, hard_below: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Edges float32 (E,), and which of the 3 + N numbers a score adds 1 to, (E + 1, 3 + N).

    Row i is for scores above edge i - 1 and up to edge i.
    """
    _require_bounds(easy_above, hard_below)
    with torch.inference_mode(False):  # whoever asks first may be evaluating
        inner = torch.arange(1, HISTOGRAM_BINS, dtype=torch.float32) / HISTOGRAM_BINS
        easy, hard = (torch.tensor(value, dtype=torch.float32) for value in (easy_above, hard_below))
        below_hard = hard.nextafter(torch.tensor(-1.0))  # hard_below itself is moderate
        edges = torch.cat([inner, torch.stack([easy, below_hard, torch.tensor(1.0)])]).unique()
        counts = torch.stack(
            [edges > easy, (edges > below_hard) & (edges <= easy), edges <= below_hard], dim=1
        )
        bins = torch.nn.functional.one_hot(torch.bucketize(edges, inner), HISTOGRAM_BINS)
        table = torch.cat([counts, bins], dim=1).double()
        return edges.to(device), torch.cat([table, torch.zeros(1, table.shape[1])]).to(device)


def _require_bounds(easy_above: float, hard_below: float) -> None:
    if not 0 <= hard_below <= easy_above <= 1:
        raise ValueError(
            f"hard_below={hard_below}, easy_above={easy_above}: both are probabilities with "
            "0 <= hard_below <= easy_above <= 1"
        )


def dynamic_alpha(previous: Real, easy: Real, hard: Real, *, tau: float = 0.9) -> Real:
    """The next alpha of Beta(alpha, alpha) from the last proportions of easy and hard samples.

        alpha_t = (easy + 1 - hard) / 2                          (Eq. 5)
        smoothed: tau previous + (1 - tau) alpha_t               (Eq. 6)

    Lies in [0, 1] if all arguments do. Floats or tensors; the caller keeps the state. Raises
    ValueError if tau lies outside [0, 1].

    >>> round(dynamic_alpha(0.5, easy=0.6, hard=0.2), 3)
    0.52
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"tau={tau}: the weight of the past in a moving average, in [0, 1]")
    return tau * previous + (1 - tau) * (easy + 1 - hard) / 2
