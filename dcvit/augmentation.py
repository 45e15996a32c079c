"""What happens to a single image on its way into a batch: timm's transforms, as DeiT and Swin use them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import random

import numpy as np
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize as timm_posterize
import torch
from torch import Tensor

from dcvit.recipe import Recipe
from dcvit.rng import stream_seed

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
