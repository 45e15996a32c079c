"""What happens to a single image on its way into a batch: timm's transforms, as DeiT and Swin use them.

Or the same for a whole batch on its device: what is done is then drawn here for all of it (`draw`), crops
are cut wherever the images are, and `augmented` flips them and does RandAugment.

Shapes: B samples of a batch, C channels, H x W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
import random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize as timm_posterize
import torch
from torch import Tensor

from dcvit import randaugment
from dcvit.crops import Crops, draw_crops, draw_flips
from dcvit.devices import sent
from dcvit.randaugment import Operation
from dcvit.recipe import Recipe
from dcvit.rng import host_stream, stream_seed

Transform = Callable[[Image.Image], Tensor]  # RGB image -> uint8 (3, H, W)


def training_transform(recipe: Recipe) -> Transform:
    """Random resized crop (bicubic), flip and RandAugment; erasing and mixing come later, on the batch."""
    augmentation = recipe.augmentation
    transform = create_transform(
        recipe.resolution,
        is_training=True,
        use_prefetcher=True,  # uint8 out: normalisation comes later, on the device
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        hflip=augmentation.flip,
        color_jitter=augmentation.color_jitter,
        auto_augment=augmentation.randaugment,
        interpolation="bicubic",
        re_prob=0.0,
    )
    for step in transform.transforms:
        for operation in getattr(step, "ops", ()):  # RandAugment's
            if operation.aug_fn is timm_posterize:
                operation.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keeps the highest `bits` bits of each channel, 0 to 8, as timm does.

    RandAugment's strongest level keeps none and gives a black image. Pillow did that up to version 12;
    13 raises instead, so that two of a hundred such operations would end a run.
    """
    return timm_posterize(image, bits) if bits > 0 else image.point(lambda value: 0)


class Draws(NamedTuple):
    """What happens to each sample of a batch."""

    crops: Crops
    flip_B: NDArray[np.bool_]
    choices: randaugment.Choices | None

    def at(self, positions: Sequence[int] | slice) -> "Draws":
        """What happens to some of the samples."""
        return Draws(
            self.crops.at(positions),
            self.flip_B[positions],
            None if self.choices is None else self.choices[positions],
        )


def require_on_device(recipe: Recipe) -> None:
    """ValueError if the recipe's augmentation has no version for whole batches."""
    if recipe.augmentation.randaugment is not None:
        randaugment.settings(recipe.augmentation.randaugment)


def draw_jitter(strength: float, images: int, rng: np.random.Generator) -> randaugment.Choices:
    """Brightness, contrast and saturation for each image, in an order of its own: torchvision's ColorJitter.

    Factors are Unif[max(0, 1 - strength), 1 + strength].
    """
    kinds = [Operation.BRIGHTNESS, Operation.CONTRAST, Operation.COLOR]
    each = np.repeat(np.array(kinds, dtype=np.int8)[:, None], images, axis=1)
    factor = rng.uniform(max(0.0, 1 - strength), 1 + strength, each.shape)
    return randaugment.Choices(rng.permuted(each, axis=0), factor)


def draw(recipe: Recipe, *, seed: int, update: int) -> Draws:
    """Crops, flips and operations of all samples of one update, each from a stream of its own."""
    augmentation, batch = recipe.augmentation, recipe.batch
    choices = None
    if augmentation.randaugment is not None:
        choices = randaugment.draw(
            randaugment.settings(augmentation.randaugment),
            batch,
            recipe.resolution,
            host_stream(seed, "randaugment", update),
        )
    elif augmentation.color_jitter is not None:
        choices = draw_jitter(augmentation.color_jitter, batch, host_stream(seed, "color jitter", update))
    crops = draw_crops(
        batch,
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        rng=host_stream(seed, "crops", update),
    )
    return Draws(crops, draw_flips(batch, augmentation.flip, host_stream(seed, "flips", update)), choices)


def augmented(pixels_BCHW: Tensor, draws: Draws) -> Tensor:
    """Cropped uint8 images, flipped and with RandAugment; where they are, and possibly in their place."""
    flipped = np.flatnonzero(draws.flip_B)
    if len(flipped):
        where = sent(flipped, pixels_BCHW.device)
        pixels_BCHW.index_copy_(0, where, pixels_BCHW.index_select(0, where).flip(3))
    return pixels_BCHW if draws.choices is None else randaugment.apply(pixels_BCHW, draws.choices)


def evaluation_transform(recipe: Recipe) -> Transform:
    """Resized to resolution / test_crop, then the centre (or squashed to a square), bicubic."""
    return create_transform(
        recipe.resolution,
        is_training=False,
        use_prefetcher=True,
        interpolation="bicubic",
        crop_pct=1.0 if recipe.test_squash else recipe.test_crop,
        crop_mode="squash" if recipe.test_squash else "center",
    )


def seed_transform(seed: int, *purpose: str | int) -> None:
    """Points the three global generators that timm's transforms draw from at one named stream.

    Done before every image, so an image's view depends on nothing but its name: not on the
    number of workers, not on what was drawn before.
    """
    bits = stream_seed(seed, *purpose)
    random.seed(bits)
    np.random.seed(bits % 2**32)
    torch.default_generator.manual_seed(bits)


@contextmanager
def global_generators_kept(device: torch.device | None = None) -> Iterator[None]:
    """Leaves the global generators (Python's, numpy's, torch's on the CPU and `device`) as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
