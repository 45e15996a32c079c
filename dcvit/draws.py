"""What is drawn for a batch before any pixel is touched: one value, from which the pixels follow.

Erasing is drawn on the host, whatever the device: it is a few numbers an image, a GPU would
launch thirty kernels for them, and the host then knows how many pixels are lost, so that a CPU
draws noise for these alone. The streams are named by purpose, update and mixing group, so it
does not matter who else is in the batch. Alpha, and so lambda and its map, are the device's.

Shapes: B images of C channels, H x W pixels, in G mixing groups. An image is R bands of H / R
rows; P pixels are erased.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from dcvit.devices import sent
from dcvit.erasing import draw_patches, draw_rates, draw_rectangles, label_weights, patch_grid
from dcvit.layout import Piece
from dcvit.mixing import cutmix_map, draw_lambda, mixup_map, partner
from dcvit.recipe import NoErasing, PatchErasing, RandomErasing, Recipe
from dcvit.rng import normal, stream


class Noise(NamedTuple):
    """What fills the erased pixels of each image, in the order of channels, rows and columns."""

    values_P: Tensor  # float32, one image's after another's
    begins: tuple[int, ...]  # where those of each image begin; the last one is where they end

    def of(self, images: slice) -> Tensor:
        """What fills these."""
        return self.values_P[self.begins[images.start] : self.begins[images.stop]]


class Draws(NamedTuple):
    """All that a batch was drawn; the same draws give the same batch."""

    map_GHW: Tensor  # weights of the pixels, those of the partner's being 1 - map
    kept_BRW: Tensor | None  # uint8, 0 where a band's column is erased, else 1; None: nothing is erased
    noise: (
        Noise | Tensor | None
    )  # None: zeros. A Tensor: for all pixels, (B, C, H, W), of which a part is used
    weights_B: Tensor  # of the labels
    partner_weights_B: Tensor


def draw_batch(
    shape: Sequence[int],
    recipe: Recipe,
    *,
    alpha: Tensor,
    progress: float,
    seed: int,
    update: int,
    piece: Piece | None = None,
    dense: bool | None = None,
    empty: Callable[[int], Tensor] = torch.empty,
) -> Draws:
    """The draws for a piece of a batch, whose `shape` this is, or for the whole of it.

    `dense` noise is drawn for every pixel: None means where the device, which is alpha's, is no CPU. Noise that is not
    goes into the memory that `empty` gives. A part of a group sees what was drawn for its
    positions in the whole group.
    """
    B, C, H, W = shape
    device = alpha.device
    dense = device.type != "cpu" if dense is None else dense
    groups = range(recipe.groups) if piece is None else piece.groups
    inside = None if piece is None else piece.inside
    size = B // len(groups) if inside is None else recipe.batch // recipe.groups
    drawn = len(groups) * size

    map_GHW, lam_G = _draw_mix(H, W, recipe, groups, alpha=alpha, seed=seed, update=update)
    lam_B = lam_G.repeat_interleave(B // len(groups))

    def streams(purpose: str, device: torch.device | str = "cpu") -> list[torch.Generator]:
        return [stream(seed, purpose, update, group, device=device) for group in groups]

    def mine(values: Tensor) -> Tensor:
        return values if inside is None else values[_positions(inside, values.device)]

    def sparse_noise(erased_B: Tensor) -> Noise:
        begins = (0, *(C * erased_B.numpy()).cumsum().tolist())
        values_P = empty(begins[-1])
        for number, generator in enumerate(streams("noise")):
            values_P[begins[number * size] : begins[(number + 1) * size]].normal_(generator=generator)
        whole = Noise(values_P, begins)
        return whole if inside is None else _picked(whole, inside)

    def dense_noise() -> Tensor:
        return mine(normal(drawn, C, H, W, generator=streams("noise", device)))

    exploring = progress >= recipe.periods.exploration_start
    match recipe.exploration_erasing if exploring else recipe.erasing:
        case NoErasing():
            return Draws(map_GHW, None, None, lam_B, 1 - lam_B)
        case RandomErasing(probability=probability, min_area=least, max_area=most, min_aspect=aspect):
            rows_BH, columns_BW = draw_rectangles(
                drawn,
                H,
                W,
                generator=streams("random erasing"),
                probability=probability,
                min_area=least,
                max_area=most,
                min_aspect=aspect,
            )
            outside_BH, outside_BW = (
                sent(mine(~taken), device).view(torch.uint8) for taken in (rows_BH, columns_BW)
            )
            kept_BHW = outside_BH[:, :, None] | outside_BW[:, None, :]
            if dense:
                return Draws(map_GHW, kept_BHW, dense_noise(), lam_B, 1 - lam_B)
            noise = sparse_noise(rows_BH.sum(1) * columns_BW.sum(1))
            return Draws(map_GHW, kept_BHW, noise, lam_B, 1 - lam_B)
        case PatchErasing(patch_size=patch_size, mu=mu, fill=fill, decay=decay):
            h, w = patch_grid(H, W, patch_size)
            generators = streams("patch erasing")
            gamma = draw_rates(drawn, mu=mu, generator=generators)
            cells_Bhw = draw_patches(gamma, h, w, generator=generators)
            kept_Bhw1 = sent(mine(~cells_Bhw), device).view(torch.uint8)[..., None]
            kept_BhW = kept_Bhw1.expand(-1, -1, -1, patch_size).flatten(2)
            gamma = sent(mine(gamma), device)
            weights = label_weights(lam_B, gamma, partner(gamma, len(groups)), mu, decay=decay)
            if fill == "zero":
                return Draws(map_GHW, kept_BhW, None, *weights)
            if dense:
                return Draws(map_GHW, kept_BhW, dense_noise(), *weights)
            noise = sparse_noise(cells_Bhw.sum((1, 2)) * patch_size**2)
            return Draws(map_GHW, kept_BhW, noise, *weights)


@cache  # making it anew would wait for a GPU at every step
def _positions(inside: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(inside, device=device)


def _picked(noise: Noise, inside: tuple[int, ...]) -> Noise:
    """What these images of a group were drawn."""
    parts = [noise.of(slice(i, i + 1)) for i in inside]
    return Noise(torch.cat(parts), tuple(accumulate(map(len, parts), initial=0)))


def _draw_mix(
    H: int, W: int, recipe: Recipe, groups: range, *, alpha: Tensor, seed: int, update: int
) -> tuple[Tensor, Tensor]:
    """Per group: weights of the pixels (G, H, W), by MixUp or CutMix, and their mean lambda (G,)."""

    def draws(purpose: str) -> torch.Generator:
        return stream(seed, purpose, update, device=alpha.device)

    # a few numbers for all groups of the batch, of which this piece takes its own
    mine = slice(groups.start, groups.stop)
    mixup_lam = draw_lambda(alpha, (recipe.groups,), generator=draws("mixup"))
    mixup = mixup_map(mixup_lam, height=H, width=W)[mine]
    generator = draws("cutmix")
    cutmix_lam = draw_lambda(recipe.cutmix_alpha, (recipe.groups,), generator=generator)
    cutmix = cutmix_map(cutmix_lam, height=H, width=W, generator=generator)[mine]

    switch = torch.rand(recipe.groups, generator=draws("switch"), device=alpha.device)[mine]
    switch = switch < recipe.cutmix_probability
    map_GHW = torch.where(switch[:, None, None], cutmix, mixup)
    # the mean of a constant map would round: MixUp's lambda is its own
    lam_G = torch.where(switch, cutmix.mean(dim=(1, 2)), mixup[:, 0, 0])
    return map_GHW, lam_G
