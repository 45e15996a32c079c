"""What a run will cost, by arithmetic and by what others took. Estimates, and printed as such. No torch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from dcvit.feed import Augmenting
from dcvit.recipe import Backbone, Recipe, ResNet, SwinTransformer, VisionTransformer

GPU_FLOPS = 2.0e14  # sustained by one H100 in bfloat16, within a factor of two for these models
CORE_FLOPS = 3.0e10  # one CPU core, small matrices in float32
CORE_UPDATE = 0.016  # seconds of Python and small operations in an update on a CPU
# full-size images a second and core of a Xeon (pytest benchmarks/bench_end_to_end.py -s):
CORE_DECODES = 240  # by PIL: decode, crop, RandAugment
CORE_DECODES_DEVICE = 600  # by threads that only decode and crop, for a device that does the rest
RESNET_50_MACS = 4.1e9  # at 224 px
STEM = 64  # channels of a ResNet's first convolution, whatever the width of its stages
HALF, FULL = 2, 4  # bytes of a number in bfloat16 and in float32
INDEX = 8  # bytes of an int64


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


# --- memory --------------------------------------------------------------------------------


def parameters(recipe: Recipe) -> int:
    """How many weights the recipe's network has: `models.parameter_count` by arithmetic."""
    classes = recipe.classes
    match recipe.backbone:
        case VisionTransformer(width=width, depth=depth, patch_size=patch_size):
            tokens = (recipe.resolution // patch_size) ** 2 + 1
            embedding = 3 * patch_size**2 * width + width + (1 + tokens) * width
            return embedding + depth * _block_parameters(width) + 2 * width + (width + 1) * classes
        case SwinTransformer(width=width, depths=depths, heads=heads, patch_size=patch_size, window=window):
            total = 3 * patch_size**2 * width + 3 * width
            for stage, depth in enumerate(depths):
                wide = width << stage
                if stage:  # merging: a norm of four patches beside each other, then half as many channels
                    total += 2 * 2 * wide + 2 * wide * wide
                total += depth * (_block_parameters(wide) + (2 * window - 1) ** 2 * heads[stage])
            return total + 2 * wide + (wide + 1) * classes
        case ResNet() as resnet:
            total = 3 * 7**2 * STEM + 2 * STEM
            for block in _bottlenecks(resnet, recipe.resolution):
                wide, out = block.wide, 4 * block.wide
                total += block.into * wide + 9 * wide**2 + wide * out + 2 * (2 * wide + out)
                total += (block.into * out + 2 * out) * block.projects
            return total + (out + 1) * classes


def _block_parameters(width: int) -> int:
    """Of a transformer block: two norms, queries, keys, values, a projection, two layers of four times the width."""
    return 12 * width**2 + 13 * width


def state_bytes(recipe: Recipe) -> float:
    """Bytes that a run holds whatever the batch: float32 weights, gradients, two moments, and the average if any."""
    return FULL * parameters(recipe) * (4 if recipe.ema_decay is None else 5)


def activation_bytes(recipe: Recipe) -> float:
    """Bytes held for the backward pass of ONE image of a training step, under bfloat16 autocast.

    A sum over what autograd saves in an eager step, each storage once; 2 bytes where autocast computes
    in bfloat16 (matrix products, convolutions), 4 where it does in float32 (norms, softmax).

        transformer block, a token of C channels and H heads
            2 norms         their inputs in float32, mean and deviation     2 (4 C + 8)
            queries ...     input, queries, keys, values; projection's input      2 (1 + 3 + 1) C
            MLP             input, before and behind GELU                   2 (1 + 4 + 4) C
            attention       ViT, fused: log of the sum, float32             4 H
                            Swin, not fused: softmax of M^2 scores in float32, its copy in bfloat16     6 H M^2
        in all: ViT (36 C + 16 + 4 H), Swin (36 C + 16 + 6 H M^2) bytes a token and block

        bottleneck, a place: what goes into each BatchNorm and what comes out of each ReLU     2 + 2 bytes a channel

    timm fuses Swin's attention only on demand. The image itself, the stem, merging and the last norm are counted; the
    head, dropped paths and the batch's statistics, below 1 %, are not. What does not grow with the batch is not either:
    `state_bytes`, and 2 bytes a weight for autocast's copies. A compiled step recomputes what is cheap
    and holds less; what a kernel needs while it runs comes on top (allow 20 %).
    """
    side = recipe.resolution
    image = HALF * 3 * side**2
    match recipe.backbone:
        case VisionTransformer(width=width, heads=head_count, depth=depth, patch_size=patch_size):
            tokens = (side // patch_size) ** 2 + 1
            return image + tokens * (depth * (_block_bytes(width) + FULL * head_count) + _norm_bytes(width))
        case SwinTransformer(width=width, depths=depths, heads=heads, patch_size=patch_size, window=window):
            tokens = (side // patch_size) ** 2
            total = image + tokens * _norm_bytes(width)
            for stage, depth in enumerate(depths):
                tokens, wide = (side // patch_size >> stage) ** 2, width << stage
                if stage:
                    total += tokens * (_norm_bytes(2 * wide) + HALF * 2 * wide)
                scores = heads[stage] * window**2
                total += depth * tokens * (_block_bytes(wide) + (FULL + HALF) * scores)
            return total + tokens * _norm_bytes(wide)
        case ResNet() as resnet:
            places, pooled = (-(-side // 2)) ** 2, (-(-side // 4)) ** 2
            total = image + 2 * HALF * places * STEM + (HALF + INDEX) * pooled * STEM
            for block in _bottlenecks(resnet, side):
                before, after = block.side_before**2, block.side**2
                total += 2 * HALF * block.wide * (before + after + 4 * after)
                total += HALF * 4 * block.wide * after * block.projects
            return total


def _norm_bytes(channels: int) -> int:
    """What a LayerNorm holds of a token: its input, mean and deviation, in float32."""
    return FULL * channels + 2 * FULL


def _block_bytes(channels: int) -> int:
    """What a transformer block holds of a token, but for the attention's scores."""
    return 2 * _norm_bytes(channels) + HALF * (1 + 3 + 1) * channels + HALF * (1 + 4 + 4) * channels


class _Bottleneck(NamedTuple):
    into: int  # channels
    wide: int  # of its middle; four times as many come out
    side_before: int  # places
    side: int
    projects: bool  # its shortcut is a convolution


def _bottlenecks(resnet: ResNet, resolution: int) -> Iterator[_Bottleneck]:
    into, side = STEM, -(-resolution // 4)
    for stage, depth in enumerate(resnet.depths):
        wide = resnet.width << stage
        for number in range(depth):
            halves = stage > 0 and number == 0
            after = -(-side // 2) if halves else side
            yield _Bottleneck(into, wide, side, after, halves or into != 4 * wide)
            into, side = 4 * wide, after


# --- time ----------------------------------------------------------------------------------


def estimated_seconds(
    recipe: Recipe, *, images: int, gpu: bool, cores: int, augmentation: Augmenting | None = None
) -> float:
    """Wall time of a run on one GPU fed by `cores` cores, or on one core of a CPU; a rough estimate.

    Without a word about augmentation it is the GPU's own. On a CPU it makes no difference here: a core that
    trains waits little for images, and smoke's are decoded once.
    """
    samples = recipe.epochs * images
    flops = 6 * multiply_adds(recipe.backbone, recipe.resolution) * samples
    if gpu:
        fed = loading_seconds(recipe, images=images, cores=cores, augmentation=augmentation or "device")
        return max(flops / GPU_FLOPS, fed)
    return flops / CORE_FLOPS + samples / recipe.batch * CORE_UPDATE


def loading_seconds(
    recipe: Recipe, *, images: int, cores: int, augmentation: Augmenting, a_core: float | None = None
) -> float:
    """How long `cores` cores load the images of a run, at `a_core` images a second each (None: the constants above).

    For a device that augments, an image that comes several times in an epoch is decoded once.

    >>> from dcvit.baselines import DEIT_T
    >>> [loading_seconds(DEIT_T, images=480_000, cores=1, augmentation=how, a_core=240) for how in ("pil", "device")]
    [600000.0, 200000.0]
    """
    rates = {"pil": CORE_DECODES, "device": CORE_DECODES_DEVICE}
    views = recipe.augmentation.repeats if augmentation == "device" else 1
    return recipe.epochs * images / views / ((a_core or rates[augmentation]) * cores)


class Took(NamedTuple):
    """What a finished run took."""

    recipe: Recipe
    images: int  # of training
    gpu: bool
    seconds: float
    augmentation: Augmenting = "pil"


Base = Callable[[Recipe, int, Augmenting], float]  # of a recipe, number of images and augmentation
Size = tuple[Backbone, int, int, int, int, Augmenting]  # runs of one size are alike


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What finished runs on one kind of device say of others; the more there are, the better."""

    base: Base  # such as `estimated_seconds`
    runs: int  # that it stands on
    alike: Mapping[Size, float]  # median of the seconds that runs of a size took
    factor: float  # median ratio of what runs took to what `base` says of them

    def seconds(self, recipe: Recipe, images: int, augmentation: Augmenting) -> float:
        """Wall time of a run: what those took that are alike, in seconds, else what `base` says times the factor.

        Alike are runs of the same backbone, resolution, epochs, batch, number of images and augmentation.
        """
        known = self.alike.get(_size(recipe, images, augmentation))
        return self.base(recipe, images, augmentation) * self.factor if known is None else known


def calibrate(finished: Iterable[Took], base: Base, *, gpu: bool) -> Calibration:
    """What the finished runs on GPUs, or those on CPUs, say of others; without any, that is `base` alone.

    All are looked at once, here, and not again for each run of a plan, which may have a thousand.
    """
    here = [took for took in finished if took.gpu == gpu]
    times: dict[Size, list[float]] = {}
    for took in here:
        times.setdefault(_size(took.recipe, took.images, took.augmentation), []).append(took.seconds)
    ratios = [took.seconds / base(took.recipe, took.images, took.augmentation) for took in here]
    return Calibration(
        base=base,
        runs=len(here),
        alike={size: median(seconds) for size, seconds in times.items()},
        factor=median(ratios or [1.0]),
    )


def _size(recipe: Recipe, images: int, augmentation: Augmenting) -> Size:
    return recipe.backbone, recipe.resolution, recipe.epochs, recipe.batch, images, augmentation
