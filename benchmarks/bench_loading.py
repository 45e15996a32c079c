"""From JPEG files to cropped uint8 batches, per core: Pillow as timm and DeiT use it, and ours.

One thread, in processor time, in interleaved rounds of one process: machines differ and move, so what counts
is the ratio of the medians in `extra_info`. The images are made here: 500 x 375 pixels, quality 94, 4:2:0,
about 95 KB each, which is what ImageNet's look like to a decoder.

    python -m pytest benchmarks/bench_loading.py -s      also prints how many cores each network keeps busy
"""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
from PIL import Image
import pytest
from timm.data.transforms import RandomResizedCropAndInterpolation
import torch

from dcvit import datasets
from dcvit.datasets import Pictures
from dcvit.feed import Feed
from dcvit.loading import training_batches
from dcvit.recipe import Augmentation, Recipe, VisionTransformer, WarmupCosine
from dcvit.sources import KINDS

IMAGES, ROUNDS, RESOLUTION = 64, 9, 224
# Images/s of training on one H100 in bfloat16: what 798 TFLOP/s and 3.0 TB/s allow where computing and moving
# follow one another, and 80 % of that (Swin 60 %).
NEEDS = {
    "DeiT-T": (22_100, 17_700),
    "DeiT-S": (9_400, 7_500),
    "DeiT-B": (3_630, 2_900),
    "DeiT-B at 384": (970, 780),
    "Swin-T": (7_300, 4_400),
    "Swin-S": (4_300, 2_600),
    "Swin-B": (2_970, 1_790),
    "ResNet-50": (10_200, 8_200),
}


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
def one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    """The batches of a run, one at a call; flips and RandAugment follow on the device and are left out here."""
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


def rates(ways: dict[str, Callable[[], object]], images: int, rounds: int) -> dict[str, float]:
    """Images per second of processor time, by medians of interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, call in ways.items():
            begin = process_time()
            call()
            seconds[name].append(process_time() - begin)
    return {name: images / max(median(values[1:]), 1e-9) for name, values in seconds.items()}


def cores_needed(per_core: float) -> dict[str, tuple[int, int]]:
    """How many cores keep one H100 busy at so many images/s a core: at the ceiling, and at what can be hoped for.

    >>> cores_needed(1000)["DeiT-S"]
    (10, 8)
    """
    return {name: (ceil(most / per_core), ceil(hoped / per_core)) for name, (most, hoped) in NEEDS.items()}


def table(found: dict[str, float]) -> str:
    """Cores for each network and each way to load, one line a network."""
    lines = [f"{'cores for one H100':20}" + "".join(f"{name:>22}" for name in found)]
    lines.append(f"{'images/s of a core':20}" + "".join(f"{rate:22,.0f}" for rate in found.values()))
    for name, (_, hoped) in NEEDS.items():
        cores = (cores_needed(rate)[name] for rate in found.values())
        label = f"{name} ({hoped:,})"
        lines.append(f"{label:20}" + "".join(f"{few:12} (max. {many:3})" for many, few in cores))
    return "\n".join(lines)


def test_loading_against_pillow(benchmark, files, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "HELD_BYTES", 0)
    quick = benchmark.disabled
    side, rounds = (16, 1) if quick else (RESOLUTION, ROUNDS)
    ways = {
        "Pillow": by_pillow(files, side),
        "ours": by_us(files, side),
        "ours, 3 views": by_us(files, side, repeats=3),
        "ours, cache": by_us(files, side, cache=tmp_path / "cache"),
    }
    found = rates(ways, len(files), rounds)
    benchmark.extra_info.update(
        times_faster_than_pil=found["ours"] / found["Pillow"],
        # against decoding for every view anew, also by us
        repeats_times_faster=found["ours, 3 views"] / found["ours"],
        # against the original files, decoded by us; and by Pillow
        cache_times_faster=found["ours, cache"] / found["ours"],
        cache_times_faster_than_pil=found["ours, cache"] / found["Pillow"],
        images_per_second_per_core=found["ours"],
        images_per_second_per_core_of_pil=found["Pillow"],
        kilobytes_an_image=sum(path.stat().st_size for path in files) / len(files) / 1000,
        cores_for_an_h100={name: few for name, (_, few) in cores_needed(found["ours"]).items()},
    )
    benchmark.pedantic(ways["ours"], rounds=rounds)
    if not quick:
        print(f"\n{table(found)}\n{benchmark.extra_info}")
