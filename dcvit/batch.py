"""From a uint8 batch to what the model sees: normalised, erased, mixed, with two weighted labels an image."""

from typing import NamedTuple

import torch
from torch import Tensor

from dcvit.draws import draw_batch
from dcvit.layout import Piece
from dcvit.mixing import partner
from dcvit.recipe import Recipe
from dcvit.transform import IMAGENET_MEAN, IMAGENET_STD, Workspace, normalise, transform

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "MixedBatch", "mixed_batch", "normalise"]


class MixedBatch(NamedTuple):
    """What a training step takes: `two_label_loss(model(images), *rest)`."""

    images: Tensor  # float32 (B, 3, H, W)
    labels: Tensor  # int64 (B,)
    partner_labels: Tensor
    weights: Tensor  # float32 (B,)
    partner_weights: Tensor


def mixed_batch(
    pixels: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    alpha: Tensor,
    progress: float,
    seed: int,
    update: int,
    piece: Piece | None = None,
    workspace: Workspace | None = None,
) -> MixedBatch:
    """A piece of the batch of update number `update`, at `progress` in [0, 1] of training (Eq. 4 and 7).

    Each source image is erased first, then mixed with its partner, so both labels pay for
    what their own image lost. `alpha` is a scalar tensor on the images' device. Without a
    `piece` the images are the whole batch. With a `workspace` they are put there, and stay until
    the next batch.
    """
    draws = draw_batch(
        pixels.shape,
        recipe,
        alpha=alpha,
        progress=progress,
        seed=seed,
        update=update,
        piece=piece,
        empty=torch.empty if workspace is None else workspace.empty,
    )
    partner_labels = partner(labels, len(draws.map_GHW))
    images = transform(pixels, draws, workspace)
    return MixedBatch(images, labels, partner_labels, draws.weights_B, draws.partner_weights_B)
