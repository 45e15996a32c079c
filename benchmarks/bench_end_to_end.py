"""Images a second from JPEG files on disk to updated weights, against the loop that people write with timm.

The peer is `benchmarks.peers`: timm's loader (Pillow, RandAugment, erasing of pixels, Mixup) and a step that reads the
loss every time. Ours: `loading.training_batches` with either augmentation and `step.train_step`, vanilla as the peer
is: one alpha, RandomErasing, the same network, average, schedule and batch, and as many workers.

Each round begins both loaders anew and counts from the third batch on, so that starting workers is on nobody's bill;
both load ahead beyond the end of a round.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from time import perf_counter, process_time
from typing import Any

import numpy as np
from PIL import Image
import pytest
import torch

from benchmarks.measuring import (
    Times,
    gemm_rate,
    in_turn,
    interleaved,
    multiplying,
    one_thread,
    result_of,
    times_of,
    waiter,
)
from benchmarks.networks import NETWORKS
from benchmarks.peers import comparable, folder, peer_loader, peer_of
from dcvit import augmentation, datasets, feeding, sources
from dcvit.baselines import DEIT_T
from dcvit.decoding import decoded
from dcvit.devices import best_precision, flushed_denormals
from dcvit.feed import Feed
from dcvit.host import cores
from dcvit.loading import training_batches
from dcvit.recipe import Recipe, VisionTransformer, as_data
from dcvit.state import Tally, begin_state
from dcvit.step import train_step

# timm leaves the files that it opened to the garbage collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
CUDA = torch.cuda.is_available()
WARM = 2  # batches of a round that do not count
PEER = "timm"
FEEDS = {"ours, device": Feed(augmentation="device"), "ours, pil": Feed(augmentation="pil")}
GPU_NETWORKS = ("DeiT-T", "DeiT-S", "DeiT-B", "Swin-T", "ResNet-50")


def jpegs(root, *, count: int, classes: int = 2, size: tuple[int, int] = (500, 375)):
    """Writes an ImageFolder of JPEGs as large as ImageNet's (about 100 KB at 500 x 375, quality 94), and gives it."""
    rng = np.random.default_rng(0)
    width, height = size
    for split, images in (("train", count), ("val", classes)):
        for number in range(images):
            place = root / split / f"class{number % classes}"
            place.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            shapes = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
            noise = rng.normal(0, 9, (height, width, 1)) + rng.normal(0, 3, (height, width, 3))
            pixels = np.clip(shapes + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number:05}.jpg", quality=94, subsampling=2)
    return root


def mend(transform: Any) -> None:
    """Lets timm's RandAugment go on where Pillow 13 refuses to keep none of 8 bits."""
    for step in transform.transforms:
        for operation in getattr(step, "ops", ()):
            if operation.aug_fn is augmentation.timm_posterize:
                operation.aug_fn = augmentation.posterize


def side_of(name: str, recipe: Recipe, root, *, steps: int, workers: int, device: torch.device) -> Callable:
    """What trains `steps` updates of one side, after WARM ones; gives the seconds of wall and processor."""
    updates = 10_000  # an epoch: long enough for the rate to stay in its warm-up
    wait = waiter(device.type)
    precision = best_precision(device)
    bfloat16 = precision == "bfloat16"
    total = WARM + steps

    if name.startswith(PEER):
        compiled = name.endswith("compiled")
        peer = peer_of(recipe, device, updates_per_epoch=updates, amp=bfloat16, compiled=compiled)
        dataset: Any = folder(str(root))
        samples = dataset.reader.samples
        # one epoch, as of a large set, and longer than a round: what a loader has made ahead is paid for
        images = (total + 2 + 2 * workers) * recipe.batch
        dataset.reader.samples = (samples * -(-images // len(samples)))[:images]
        loader = peer_loader(dataset, recipe, device, workers=workers, bfloat16=bfloat16 and CUDA)
        mend(dataset.transform)

        def batches(round: int) -> Iterator:
            yield from loader

        def step(batch, update: int) -> None:
            peer.step(*batch)
    else:
        source = sources.from_folder(root)
        pictures = datasets.pictures(source, "train", recipe)
        state = begin_state(recipe, 0, device)
        state.tally = Tally.empty(device)
        state.model.train()

        def batches(round: int) -> Iterator:
            return training_batches(
                pictures,
                recipe,
                seed=round,  # or every round would have the same crops
                workers=workers,
                pinned=device.type == "cuda",
                feed=FEEDS[name],
                device=device,
            )

        def step(batch, update: int) -> None:
            train_step(
                state, recipe, batch, update=update, updates_per_epoch=updates, seed=0, precision=precision
            )

    done = 0

    def run() -> tuple[float, float]:
        nonlocal done
        # as `training.fit` has it, and only for us
        manner = nullcontext() if name.startswith(PEER) else flushed_denormals()
        with manner, closing(batches(done)) as stream:
            for number in range(total):
                if number == WARM:
                    wait()
                    begun = perf_counter(), process_time()
                step(next(stream), done)
                done += 1
            wait()
            return perf_counter() - begun[0], process_time() - begun[1]

    return run


def compared(
    recipe: Recipe, root, names, *, steps: int, workers: int, rounds: int, device: torch.device
) -> dict[str, Times]:
    """Seconds of `steps` updates of each side, in interleaved rounds."""
    sides = {name: side_of(name, recipe, root, steps=steps, workers=workers, device=device) for name in names}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number, name in in_turn(sides, rounds + 1):
        found = sides[name]()
        if number or rounds == 1:
            taken[name].append(found)
    return {name: times_of(both) for name, both in taken.items()}


def decoding(root) -> float:
    """Seconds in which one core decodes an image, and does nothing with it."""
    pictures = datasets.pictures(
        sources.from_folder(root), "train", comparable(DEIT_T, images="folder", classes=2)
    )
    some = range(min(len(pictures), 64))
    times = interleaved({"": lambda: [decoded(pictures, index) for index in some]}, rounds=5)
    return min(times[""].cpu) / len(some)


def bound_of(recipe: Recipe, root, *, at_once: int) -> tuple[float, str]:
    """Seconds an image that nothing avoids on so many cores, and what takes them: both one after the other on cores
    that do both, the slower where a GPU multiplies."""
    device = torch.device("cuda" if CUDA else "cpu")
    taken = multiplying(recipe, gemm_rate(device.type, dtype=best_precision(device)))
    if not CUDA:
        return (decoding(root) + taken) / at_once, "decoding and multiplications"
    return max((decoding(root) / at_once, "decoding"), (taken, "multiplications"))


def report(
    benchmark,
    times,
    recipe: Recipe,
    what: str,
    *,
    steps: int,
    workers: int,
    clock: str,
    bound: tuple[float, str],
) -> None:
    """Puts ratios and rates where the session finds them."""
    images = steps * recipe.batch
    results = [
        result_of(
            times,
            peer=peer,
            ours=ours,
            what=f"{what}, {ours}, {workers} workers",
            unit="an image",
            per=images,
            bound=bound[0],
            bound_of=bound[1],
            clock=clock,
        )
        for ours in FEEDS
        for peer in times
        if peer not in FEEDS
    ]
    of_timm = {result.what: result for result in results if result.peer == PEER}
    rates = {
        name.split(", ")[1]: 1 / result.ours_seconds
        for name, result in zip(FEEDS, of_timm.values(), strict=True)
    }
    benchmark.extra_info["results"] = [result.as_data() for result in results]
    benchmark.extra_info["images_per_second_timm"] = 1 / results[0].peer_seconds
    for name, result in zip(rates, of_timm.values(), strict=True):
        benchmark.extra_info[f"images_per_second_{name}"] = rates[name]
        benchmark.extra_info[f"times_faster_than_timm_{name}"] = result.ratio
    if CUDA:
        benchmark.extra_info["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    if CUDA or clock == "cpu":  # on a CPU the rate of one run with one thread is asked for
        benchmark.extra_info["training"] = [
            {
                "backbone": as_data(recipe.backbone),
                "resolution": recipe.resolution,
                "images_per_second": rate,
                "augmentation": name,
            }
            for name, rate in rates.items()
        ]
    print(
        "\n"
        + "\n".join(
            f"{one.what} against {one.peer}: {one.ratio:.2f} times, {1 / one.ours_seconds:.0f} img/s"
            for one in results
        )
    )


@pytest.fixture
def from_disk(monkeypatch):
    """No set is small enough to be held in memory, or on a GPU."""
    datasets._pictures.cache_clear()
    monkeypatch.setattr(datasets, "HELD_BYTES", -1)
    monkeypatch.setattr(feeding, "in_memory", lambda *_, **__: None)
    yield
    datasets._pictures.cache_clear()


@pytest.mark.parametrize("helped", [False, True], ids=["alone", "with-workers"])
def test_small_vit_on_the_cpu(benchmark, from_disk, tmp_path, helped):
    """Alone: all in one thread, by its processor time, so that neighbours do not count. Else on all cores, by the
    clock on the wall: all but one load."""
    quick = benchmark.disabled
    recipe = comparable(
        DEIT_T,
        images="folder",
        backbone=VisionTransformer(width=96, heads=3, depth=4, patch_size=16),
        resolution=32 if quick else 112,
        classes=2,
        batch=4 if quick else 32,
    )
    steps, rounds = (1, 1) if quick else (6, 7)
    workers = max(1, cores() - 1) if helped else 0
    jpegs(tmp_path, count=8 if quick else 96, size=(64, 48) if quick else (500, 375))
    with one_thread():
        times = benchmark.pedantic(
            lambda: compared(
                recipe,
                tmp_path,
                (PEER, *FEEDS),
                steps=steps,
                workers=workers,
                rounds=rounds,
                device=torch.device("cpu"),
            ),
            rounds=1,
        )
        bound = bound_of(recipe, tmp_path, at_once=cores() if helped else 1)
    what = f"ViT of width 96, depth 4, {recipe.resolution} px, batch {recipe.batch}, CPU"
    clock = "wall" if helped else "cpu"
    report(benchmark, times, recipe, what, steps=steps, workers=workers, clock=clock, bound=bound)


def test_loading_by_one_core(benchmark, from_disk, tmp_path):
    """Images a second of one core, from files to what the device is given: by PIL with RandAugment, which the device
    else does itself."""
    quick = benchmark.disabled
    side, batch, steps, rounds = (16, 4, 1, 1) if quick else (224, 32, 3, 7)
    jpegs(tmp_path, count=2 * batch, size=(64, 48) if quick else (500, 375))
    by_pil = comparable(DEIT_T, images="folder", classes=2, batch=batch, resolution=side - side % 16)
    plain = replace(by_pil, augmentation=replace(by_pil.augmentation, randaugment=None, flip=0.0))
    pictures = datasets.pictures(sources.from_folder(tmp_path), "train", by_pil)

    def load(recipe, kind):
        def run():
            feed = Feed(augmentation=kind)
            with closing(training_batches(pictures, recipe, seed=0, feed=feed)) as batches:
                for _ in range(steps):
                    next(batches)

        return run

    with one_thread():
        with augmentation.global_generators_kept():
            calls = {"pil": load(by_pil, "pil"), "device": load(plain, "device")}
            times = benchmark.pedantic(lambda: interleaved(calls, rounds=rounds), rounds=1)
        bound = decoding(tmp_path)
    result = result_of(
        times,
        peer="pil",
        ours="device",
        what=f"JPEG files to what the device is given, {by_pil.resolution} px, 0 workers",
        unit="an image",
        per=steps * batch,
        bound=bound,
        bound_of="decoding",
        clock="cpu",
    )
    benchmark.extra_info["results"] = [result.as_data()]
    rates = {"pil": 1 / result.peer_seconds, "device": 1 / result.ours_seconds}
    benchmark.extra_info["loading"] = [
        {"augmentation": kind, "images_per_second_per_core": rate} for kind, rate in rates.items()
    ]
    benchmark.extra_info["device_over_pil"] = result.ratio
    print(f"\nloading by one core, {side} px: {rates}")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """JPEGs as large as ImageNet's."""
    return jpegs(tmp_path_factory.mktemp("jpegs"), count=1024)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("name", GPU_NETWORKS)
def test_on_a_gpu(benchmark, from_disk, many, name):
    quick = benchmark.disabled
    recipe = comparable(NETWORKS[name], images="folder", batch=8 if quick else 256, classes=1000)
    steps, rounds, workers = (2, 1, 1) if quick else (24, 3, cores())
    names = (PEER, f"{PEER}, compiled", *FEEDS)
    times = benchmark.pedantic(
        lambda: compared(
            recipe, many, names, steps=steps, workers=workers, rounds=rounds, device=torch.device("cuda")
        ),
        rounds=1,
    )
    what = f"{name}, {recipe.resolution} px, batch {recipe.batch}, GPU"
    bound = bound_of(recipe, many, at_once=workers)
    report(benchmark, times, recipe, what, steps=steps, workers=workers, clock="wall", bound=bound)
