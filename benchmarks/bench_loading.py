"""From JPEG files to cropped uint8 batches, per core: Pillow as timm and DeiT use it, and ours.

One thread, in processor time. The images are made here: 500 x 375 pixels, quality 94, 4:2:0, about 95 KB each,
which is what ImageNet's look like to a decoder. Their number is a multiple of three, so that no image has its three
views in two batches.

    python -m pytest benchmarks/bench_loading.py -s      also prints how many cores each network keeps busy
"""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image
import pytest
from timm.data.transforms import RandomResizedCropAndInterpolation
import torch

from benchmarks.measuring import Result, copy_rate, interleaved, one_thread, result_of
from benchmarks.networks import H100
from dcvit import datasets
from dcvit.cache import fitted, side_for
from dcvit.datasets import Pictures
from dcvit.decoding import decoded
from dcvit.feed import Feed
from dcvit.loading import training_batches
from dcvit.recipe import Augmentation, Recipe, VisionTransformer, WarmupCosine
from dcvit.sources import KINDS

IMAGES, ROUNDS, RESOLUTION = 96, 9, 224


def picture(number: int, height: int, width: int) -> Image.Image:
    """Something as smooth, and as noisy, as a photograph."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(96, 160, (height // 4, width // 4, 3), dtype=np.uint8))
    layers = [
        np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
        for layer in (coarse, fine)
    ]
    grain = rng.normal(0, 4.2, (height, width, 1))
    return Image.fromarray(np.clip(sum(layers) - 128 + grain, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def files(tmp_path_factory, request):
    """Paths of the images; two tiny ones where only the code is tried."""
    quick = request.config.getoption("benchmark_disable")
    count, height, width = (2, 24, 32) if quick else (IMAGES, 375, 500)
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        picture(number, height, width).save(path, quality=94, subsampling=2)
    return paths


@pytest.fixture(autouse=True)
def _one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with one_thread():
        yield


def of(files: list[Path]) -> Pictures:
    """The files as a training set that is not held in memory."""
    return Pictures(
        torch.arange(len(files)),
        lambda index: opened(files[index]),
        lambda index: files[index].read_bytes(),
        sum(path.stat().st_size for path in files),
        identity="synthetic photographs",
    )


def opened(path: Path) -> Image.Image:
    with Image.open(path, formats=KINDS) as image:
        return image.convert("RGB")


def by_pillow(files: list[Path], side: int) -> Callable[[], object]:
    """The peer: decoded and cropped as timm's transforms do it, and the batch put together as its loader does."""
    crop = RandomResizedCropAndInterpolation(side, interpolation="bicubic")

    def batch() -> torch.Tensor:
        out = torch.empty(len(files), 3, side, side, dtype=torch.uint8)
        for slot, path in zip(out, files, strict=True):
            slot.copy_(torch.from_numpy(np.array(crop(opened(path))).transpose(2, 0, 1)))
        return out

    return batch


def by_us(
    files: list[Path], side: int, *, repeats: int = 1, cache: Path | None = None
) -> Callable[[], object]:
    """The batches of a run, one at a call; flips and RandAugment, which follow, are left out."""
    recipe = Recipe(
        backbone=VisionTransformer(width=16, heads=2, patch_size=8),
        resolution=side,
        epochs=100_000,
        batch=len(files),
        schedule=WarmupCosine(peak=1, warmup=1, final=1, warmup_epochs=1, scales="peak", every="update"),
        augmentation=Augmentation(flip=0.0, randaugment=None, repeats=repeats),
    )
    feed = Feed(augmentation="device", cache=cache)
    batches = training_batches(of(files), recipe, seed=0, feed=feed)
    return lambda: next(batches)


def cores_needed(per_core: float) -> dict[str, tuple[int, int]]:
    """How many cores keep one H100 busy at so many images/s a core: at its ceiling, and at the goal.

    >>> cores_needed(1000)["DeiT-S"]
    (10, 8)
    """
    return {
        name: (ceil(wanted.ceiling / per_core), ceil(wanted.goal / per_core)) for name, wanted in H100.items()
    }


def table(found: dict[str, float]) -> str:
    """Cores for each network and each way to load, one line a network."""
    lines = [f"{'cores for one H100':20}" + "".join(f"{name:>22}" for name in found)]
    lines.append(f"{'images/s of a core':20}" + "".join(f"{rate:22,.0f}" for rate in found.values()))
    for name, wanted in H100.items():
        cores = (cores_needed(rate)[name] for rate in found.values())
        label = f"{name} ({wanted.goal:,})"
        lines.append(f"{label:20}" + "".join(f"{few:12} (max. {many:3})" for many, few in cores))
    return "\n".join(lines)


def test_loading_against_pillow(benchmark, files, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "HELD_BYTES", 0)
    quick = benchmark.disabled
    side, rounds = (16, 1) if quick else (RESOLUTION, ROUNDS)
    contents = of(files)
    ways = {
        "Pillow": by_pillow(files, side),
        "ours": by_us(files, side),
        "ours, 3 views": by_us(files, side, repeats=3),
        "ours, cache": by_us(files, side, cache=tmp_path / "cache"),
        "decoding": lambda: [decoded(contents, index) for index in range(len(files))],
    }
    times = benchmark.pedantic(lambda: interleaved(ways, rounds=rounds), rounds=1)
    decoding = min(times["decoding"].cpu) / len(files)

    # of a cached image the part that is cropped is read, and the crop is written
    height, width = fitted(*decoded(contents, 0).shape[1:], side_for(side))
    cropped = fmean(Augmentation().crop_scale) * 3 * height * width
    copying = (cropped + 3 * side**2) / copy_rate()

    def result(ours: str, peer: str, bound: float, bound_of: str) -> Result:
        return result_of(
            times,
            peer=peer,
            ours=ours,
            what=f"JPEG files to crops of {side} px, {ours}",
            unit="an image",
            per=len(files),
            bound=bound,
            bound_of=bound_of,
            clock="cpu",
        )

    plain = result("ours", "Pillow", decoding, "decoding")
    repeats = result("ours, 3 views", "ours", decoding / 3, "decoding once")
    cache = result("ours, cache", "ours", copying, "bytes of the crop")
    cache_and_pillow = result("ours, cache", "Pillow", copying, "bytes of the crop")
    benchmark.extra_info.update(
        results=[each.as_data() for each in (plain, repeats, cache, cache_and_pillow)],
        times_faster_than_pil=plain.ratio,
        repeats_times_faster=repeats.ratio,
        cache_times_faster=cache.ratio,
        cache_times_faster_than_pil=cache_and_pillow.ratio,
        images_per_second_per_core=1 / plain.ours_seconds,
        images_per_second_per_core_of_pil=1 / plain.peer_seconds,
        kilobytes_an_image=sum(path.stat().st_size for path in files) / len(files) / 1000,
        cores_for_an_h100=", ".join(
            f"{name} {few}" for name, (_, few) in cores_needed(1 / plain.ours_seconds).items()
        ),
    )
    found = {
        "Pillow": 1 / plain.peer_seconds,
        "ours": 1 / plain.ours_seconds,
        "ours, 3 views": 1 / repeats.ours_seconds,
        "ours, cache": 1 / cache.ours_seconds,
    }
    if not quick:
        print(f"\n{table(found)}\n{benchmark.extra_info}")
