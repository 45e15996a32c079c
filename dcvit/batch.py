"""From a uint8 batch to what the model sees: normalised, erased, mixed, with two weighted labels an image.

Every draw comes from a stream named by its purpose and the number of the update, on the
images' device. Shapes: B images in G groups.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from dcvit.erasing import draw_rates, erase_patches, erase_rectangles, label_weights
from dcvit.mixing import cutmix_map, draw_lambda, mix_images, mixup_map, partner
from dcvit.recipe import NoErasing, PatchErasing, RandomErasing, Recipe
from dcvit.rng import stream

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class MixedBatch(NamedTuple):
    """What a training step takes: `two_label_loss(model(images), *rest)`."""

    images: Tensor  # float32 (B, 3, H, W)
    labels: Tensor  # int64 (B,)
    partner_labels: Tensor
    weights: Tensor  # float32 (B,)
    partner_weights: Tensor


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float32 of about zero mean and unit variance, by ImageNet's statistics."""
    mean, std = _statistics(pixels.device)
    return (pixels.float() - mean) / std


@cache  # making them anew would wait for a GPU at every step
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # whoever asks first may be evaluating
        mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return mean.view(3, 1, 1) * 255, std.view(3, 1, 1) * 255


def mixed_batch(
    pixels: Tensor, labels: Tensor, recipe: Recipe, *, alpha: Tensor, progress: float, seed: int, update: int
) -> MixedBatch:
    """The batch of update number `update`, at `progress` in [0, 1] of training (Eq. 4 and 7).

    Each source image is erased first, then mixed with its partner, so both labels pay for
    what their own image lost. `alpha` is a scalar tensor on the images' device.
    """
    images = normalise(pixels)
    map_GHW, lam_G = _draw_mix(images, recipe, alpha=alpha, seed=seed, update=update)
    lam_B = lam_G.repeat_interleave(len(images) // len(lam_G))
    weights, partner_weights = lam_B, 1 - lam_B

    exploring = progress >= recipe.periods.exploration_start
    match recipe.exploration_erasing if exploring else recipe.erasing:
        case RandomErasing(probability=probability, min_area=least, max_area=most, min_aspect=aspect):
            images = erase_rectangles(
                images,
                generator=stream(seed, "random erasing", update, device=images.device),
                probability=probability,
                min_area=least,
                max_area=most,
                min_aspect=aspect,
            )
        case PatchErasing(patch_size=patch_size, mu=mu, fill=fill, decay=decay):
            generator = stream(seed, "patch erasing", update, device=images.device)
            gamma = draw_rates(len(images), mu=mu, generator=generator)
            images = erase_patches(images, gamma, patch_size=patch_size, generator=generator, fill=fill)
            weights, partner_weights = label_weights(
                lam_B, gamma, partner(gamma, recipe.groups), mu, decay=decay
            )
        case NoErasing():
            pass
    return MixedBatch(
        mix_images(images, map_GHW), labels, partner(labels, recipe.groups), weights, partner_weights
    )


def _draw_mix(
    images: Tensor, recipe: Recipe, *, alpha: Tensor, seed: int, update: int
) -> tuple[Tensor, Tensor]:
    """Per group: weights of the pixels (G, H, W), by MixUp or CutMix, and their mean lambda (G,)."""
    groups, (height, width) = recipe.groups, images.shape[2:]

    def draws(purpose: str) -> torch.Generator:
        return stream(seed, purpose, update, device=images.device)

    mixup = mixup_map(draw_lambda(alpha, (groups,), generator=draws("mixup")), height=height, width=width)
    generator = draws("cutmix")
    cutmix_lam = draw_lambda(recipe.cutmix_alpha, (groups,), generator=generator)
    cutmix = cutmix_map(cutmix_lam, height=height, width=width, generator=generator)

    switch = torch.rand(groups, generator=draws("switch"), device=images.device) < recipe.cutmix_probability
    map_GHW = torch.where(switch[:, None, None], cutmix, mixup)
    # the mean of a constant map would round: MixUp's lambda is its own
    lam_G = torch.where(switch, cutmix.mean(dim=(1, 2)), mixup[:, 0, 0])
    return map_GHW, lam_G
