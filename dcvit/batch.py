"""From a uint8 batch to what the model sees: normalised, erased, mixed, with two weighted labels an image.

Every draw comes from a stream named by its purpose, the number of the update and the mixing
group, on the images' device, so that it does not matter who else is in the batch. Shapes: B
images in G groups.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcvit.erasing import draw_rates, erase_patches, erase_rectangles, label_weights
from dcvit.layout import Piece
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
    pixels: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    alpha: Tensor,
    progress: float,
    seed: int,
    update: int,
    piece: Piece | None = None,
) -> MixedBatch:
    """A piece of the batch of update number `update`, at `progress` in [0, 1] of training (Eq. 4 and 7).

    Each source image is erased first, then mixed with its partner, so both labels pay for
    what their own image lost. `alpha` is a scalar tensor on the images' device. Without a
    `piece` the images are the whole batch.
    """
    groups = range(recipe.groups) if piece is None else piece.groups
    if piece is not None and piece.inside is not None:
        return _part_of_group(
            pixels, labels, recipe, piece, alpha=alpha, progress=progress, seed=seed, update=update
        )
    images = normalise(pixels)
    map_GHW, lam_G = _draw_mix(images, recipe, groups, alpha=alpha, seed=seed, update=update)
    lam_B = lam_G.repeat_interleave(len(images) // len(lam_G))
    weights, partner_weights = lam_B, 1 - lam_B

    def draws(purpose: str) -> list[torch.Generator]:
        return [stream(seed, purpose, update, group, device=images.device) for group in groups]

    exploring = progress >= recipe.periods.exploration_start
    match recipe.exploration_erasing if exploring else recipe.erasing:
        case RandomErasing(probability=probability, min_area=least, max_area=most, min_aspect=aspect):
            images = erase_rectangles(
                images,
                generator=draws("random erasing"),
                probability=probability,
                min_area=least,
                max_area=most,
                min_aspect=aspect,
            )
        case PatchErasing(patch_size=patch_size, mu=mu, fill=fill, decay=decay):
            generator = draws("patch erasing")
            gamma = draw_rates(len(images), mu=mu, generator=generator)
            images = erase_patches(images, gamma, patch_size=patch_size, generator=generator, fill=fill)
            weights, partner_weights = label_weights(
                lam_B, gamma, partner(gamma, len(groups)), mu, decay=decay
            )
        case NoErasing():
            pass
    return MixedBatch(
        mix_images(images, map_GHW), labels, partner(labels, len(groups)), weights, partner_weights
    )


def _part_of_group(pixels: Tensor, labels: Tensor, recipe: Recipe, piece: Piece, **draws: Any) -> MixedBatch:
    """The same for a part of a group: what is drawn for the rest is drawn, too, and thrown away."""
    assert piece.inside is not None
    at = _positions(piece.inside, pixels.device)
    size = recipe.batch // recipe.groups
    all_pixels, all_labels = (
        value.new_zeros(size, *value.shape[1:]).index_copy(0, at, value) for value in (pixels, labels)
    )
    mixed = mixed_batch(all_pixels, all_labels, recipe, piece=Piece(piece.groups, ()), **draws)
    return MixedBatch(*(value[at] for value in mixed))


@cache  # making it anew would wait for a GPU at every step
def _positions(inside: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(inside, device=device)


def _draw_mix(
    images: Tensor, recipe: Recipe, groups: range, *, alpha: Tensor, seed: int, update: int
) -> tuple[Tensor, Tensor]:
    """Per group: weights of the pixels (G, H, W), by MixUp or CutMix, and their mean lambda (G,)."""
    height, width = images.shape[2:]

    def draws(purpose: str) -> torch.Generator:
        return stream(seed, purpose, update, device=images.device)

    # a few numbers for all groups of the batch, of which this piece takes its own
    mine = slice(groups.start, groups.stop)
    mixup_lam = draw_lambda(alpha, (recipe.groups,), generator=draws("mixup"))
    mixup = mixup_map(mixup_lam, height=height, width=width)[mine]
    generator = draws("cutmix")
    cutmix_lam = draw_lambda(recipe.cutmix_alpha, (recipe.groups,), generator=generator)
    cutmix = cutmix_map(cutmix_lam, height=height, width=width, generator=generator)[mine]

    switch = torch.rand(recipe.groups, generator=draws("switch"), device=images.device)[mine]
    switch = switch < recipe.cutmix_probability
    map_GHW = torch.where(switch[:, None, None], cutmix, mixup)
    # the mean of a constant map would round: MixUp's lambda is its own
    lam_G = torch.where(switch, cutmix.mean(dim=(1, 2)), mixup[:, 0, 0])
    return map_GHW, lam_G
