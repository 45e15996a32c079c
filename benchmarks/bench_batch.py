"""The batch transform against timm's: normalise, erase, mix, 64 x 3 x 224 x 224, one thread.

Both sides are timed in interleaved rounds of one process, since machines differ and move; what
counts is the ratio of the medians in `extra_info`.
"""

from dataclasses import replace
from statistics import median
from time import perf_counter

import pytest
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing as TimmErasing
import torch

from dcvit.baselines import DEIT_T
from dcvit.batch import IMAGENET_MEAN, IMAGENET_STD, mixed_batch
from dcvit.recipe import PatchErasing, Periods

ROUNDS = 7


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def timm_batch(pixels, labels):
    """The peer: what timm's prefetching loader and its training script do to a batch."""
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * 255
    images = TimmErasing(0.25, mode="pixel", device="cpu")(pixels.float().sub_(mean).div_(std))
    return Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=1000)(images, labels)


RECIPES = {
    "random erasing, as timm": DEIT_T,
    "patch erasing, noise": replace(
        DEIT_T, exploration_erasing=PatchErasing(patch_size=16), periods=Periods(0, 0)
    ),
    "patch erasing, zero": replace(
        DEIT_T, exploration_erasing=PatchErasing(patch_size=16, fill="zero"), periods=Periods(0, 0)
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_batch_transform_against_timm(benchmark, one_thread, name):
    quick = benchmark.disabled
    batch, side, rounds = (4, 32, 1) if quick else (64, 224, ROUNDS)
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, 1000, (batch,))
    alpha = torch.tensor(0.8)

    def ours():
        return mixed_batch(pixels, labels, RECIPES[name], alpha=alpha, progress=0.5, seed=0, update=0)

    times = {"timm": [], "ours": []}
    for _ in range(rounds + 1):
        for side_name, call in (("timm", lambda: timm_batch(pixels, labels)), ("ours", ours)):
            begin = perf_counter()
            call()
            times[side_name].append(perf_counter() - begin)
    warm = {side_name: median(values[1:] or values) for side_name, values in times.items()}
    benchmark.extra_info["times_faster_than_timm_default"] = warm["timm"] / warm["ours"]
    benchmark.pedantic(ours, rounds=rounds, warmup_rounds=1)
    if not quick:
        print(
            f"\n{name}: {warm['timm'] / warm['ours']:.2f} times as fast as timm ({warm['ours'] * 1e3:.0f} ms)"
        )
