"""What a run will cost, by arithmetic and by what others took. Estimates, and printed as such. No torch."""

from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

from dcvit.recipe import Backbone, Recipe, ResNet, SwinTransformer, VisionTransformer

GPU_FLOPS = 2.0e14  # sustained by one H100 in bfloat16, within a factor of two for these models
CORE_FLOPS = 3.0e10  # one CPU core, small matrices in float32
CORE_UPDATE = 0.016  # seconds of Python and small operations in an update on a CPU
CORE_DECODES = 240  # full-size images a second and core: decode, crop, RandAugment
RESNET_50_MACS = 4.1e9  # at 224 px


def multiply_adds(backbone: Backbone, resolution: int) -> float:
    """Multiply-adds of one forward pass of one image."""
    match backbone:
        case VisionTransformer(width=width, depth=depth, patch_size=patch_size):
            tokens = (resolution // patch_size) ** 2 + 1
            return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
        case SwinTransformer(width=width, depths=depths, patch_size=patch_size, window=window):
            total = 0.0
            for stage, depth in enumerate(depths):
                tokens, wide = (resolution // patch_size >> stage) ** 2, width << stage
                total += depth * tokens * (12 * wide**2 + 2 * window**2 * wide)
            return total
        case ResNet(depths=depths, width=width):
            return RESNET_50_MACS * (resolution / 224) ** 2 * sum(depths) / 16 * (width / 64) ** 2


def estimated_seconds(recipe: Recipe, *, images: int, gpu: bool, cores: int) -> float:
    """Wall time of a run on one GPU fed by `cores` cores, or on one core of a CPU; a rough estimate."""
    samples = recipe.epochs * images
    flops = 6 * multiply_adds(recipe.backbone, recipe.resolution) * samples
    if gpu:
        return max(flops / GPU_FLOPS, samples / (CORE_DECODES * cores))
    return flops / CORE_FLOPS + samples / recipe.batch * CORE_UPDATE


class Took(NamedTuple):
    """What a finished run took."""

    recipe: Recipe
    images: int  # of training
    gpu: bool
    seconds: float


def calibrated_seconds(
    recipe: Recipe, finished: Iterable[Took], *, images: int, gpu: bool, cores: int
) -> float:
    """Wall time of a run, by the finished ones on the same kind of device; a better estimate the more there are.

    Where runs are alike (backbone, resolution, epochs, batch, number of images), the median of
    what those took. Else the arithmetic of `estimated_seconds` times the median ratio of
    measured to arithmetic; without any, arithmetic alone.
    """
    here = [took for took in finished if took.gpu == gpu]
    alike = [took.seconds for took in here if _size(took.recipe, took.images) == _size(recipe, images)]
    if alike:
        return median(alike)
    ratios = [
        took.seconds / estimated_seconds(took.recipe, images=took.images, gpu=gpu, cores=cores)
        for took in here
    ]
    return estimated_seconds(recipe, images=images, gpu=gpu, cores=cores) * median(ratios or [1.0])


def _size(recipe: Recipe, images: int) -> tuple[Backbone, int, int, int, int]:
    return recipe.backbone, recipe.resolution, recipe.epochs, recipe.batch, images
