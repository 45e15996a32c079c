"""RandAugment on a batch against timm's with Pillow: rand-m9-mstd0.5-inc1, 64 x 3 x 224 x 224, one thread.

Both sides get the same pictures (smooth, with noise) in the form that they need, PIL images or one uint8 batch;
turning one into the other is not timed. They are timed in processor time; every round draws anew.
"""

import numpy as np
from PIL import Image
import pytest
from timm.data.auto_augment import rand_augment_transform
import torch

from benchmarks.measuring import copy_rate, interleaved, one_thread, result_of
from dcvit import augmentation, randaugment
from dcvit.rng import host_stream

TEXT = "rand-m9-mstd0.5-inc1"
ROUNDS = 15


def pictures(count, side):
    rng = host_stream(0, "benchmark", "pictures")
    coarse = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    smooth = [Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC) for each in coarse]
    noise = rng.integers(-9, 10, (count, side, side, 3))
    return np.clip(np.stack(smooth) + noise, 0, 255).astype(np.uint8)


def timm_transform():
    """As create_transform makes it with interpolation="bicubic"."""
    hparams = dict(
        translate_const=100, img_mean=randaugment.IMAGENET_FILL, interpolation=Image.Resampling.BICUBIC
    )
    transform = rand_augment_transform(TEXT, hparams)
    for operation in transform.ops:
        if operation.aug_fn is augmentation.timm_posterize:
            operation.aug_fn = augmentation.posterize  # Pillow 13 refuses 0 bits
    return transform


@pytest.mark.parametrize("side", [224, 32])
def test_randaugment_against_timm(benchmark, side):
    quick = benchmark.disabled
    count, side, rounds = (4, 16, 1) if quick else (64 if side > 100 else 512, side, ROUNDS)
    arrays = pictures(count, side)
    images = [Image.fromarray(array) for array in arrays]
    batch = torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()
    transform, settings = timm_transform(), randaugment.settings(TEXT)
    rng = host_stream(0, "benchmark", "ours")

    def timm():
        return [transform(image) for image in images]

    def ours():
        return randaugment.apply(batch, randaugment.draw(settings, count, side, rng))

    with one_thread(), augmentation.global_generators_kept():
        augmentation.seed_transform(0, "benchmark", "timm")
        times = benchmark.pedantic(lambda: interleaved({"timm": timm, "ours": ours}, rounds=rounds), rounds=1)
    result = result_of(
        times,
        peer="timm",
        ours="ours",
        what=f"rand-m9-mstd0.5-inc1, {side} px",
        unit="an image",
        per=count,
        bound=2 * batch[0].nbytes / copy_rate(),
        bound_of="bytes read once and written once",
        clock="cpu",
    )
    benchmark.extra_info["results"] = [result.as_data()]
    benchmark.extra_info["times_faster_than_timm"] = result.ratio
    benchmark.extra_info["images_per_second"] = 1 / result.ours_seconds
    benchmark.extra_info["timm_images_per_second"] = 1 / result.peer_seconds
    print(f"\n{result}")
