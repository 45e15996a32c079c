"""The batch transform on one thread of a CPU against timm's: normalise, erase, mix.

A fresh tensor of 154 MB costs a CPU more than the arithmetic on it, so timm is measured twice:
with the allocator as it is, and with one told to keep large blocks. That must be said before the
first of them, hence a child process for each, in which timm, ours and a copy of as many bytes
take turns; what counts are the ratios of the medians.

    byte bound = (uint8 pixels read + float32 pixels written) / the rate of the copy
"""

from collections.abc import Callable
import ctypes
from dataclasses import replace
import json
import os
from pathlib import Path
from statistics import median
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.measuring import Times, interleaved, result_of

ROOT = Path(__file__).parent.parent
SIZES = {  # images, pixels a side, pixels a patch
    "256 x 224 px": (256, 224, 16),
    "512 x 32 px": (512, 32, 4),
}
FILLS = ("zero", "pixel", "rectangles")
TINY = (4, 16, 4)
ROUNDS = 11


def tune_allocator() -> None:
    """Tells glibc never to give large blocks back; no other C library has this, and there it does nothing."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        for parameter, value in ((mmap_threshold, 2**31 - 1), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
            libc.mallopt(parameter, value)


def seconds(size: tuple[int, int, int], fill: str, *, rounds: int, compiled: bool | None) -> dict[str, Any]:
    """Processor seconds of each round for timm, ours and a copy, in turn."""
    from timm.data.mixup import Mixup
    from timm.data.random_erasing import RandomErasing as TimmErasing
    import torch

    from dcvit.baselines import DEIT_T
    from dcvit.batch import IMAGENET_MEAN, IMAGENET_STD, mixed_batch
    from dcvit.recipe import PatchErasing, Periods
    from dcvit.transform import workspace_for

    torch.set_num_threads(1)
    batch, side, patch_size = size
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, 1000, (batch,))
    alpha = torch.tensor(0.8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    erasing = TimmErasing(0.25, mode="pixel", device="cpu")
    mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=1000)
    recipe = replace(DEIT_T, batch=batch, groups=1, resolution=side, periods=Periods(0, 0))
    if fill != "rectangles":
        recipe = replace(
            recipe,
            exploration_erasing=PatchErasing(
                patch_size=patch_size, fill="pixel" if fill == "pixel" else "zero"
            ),
        )
    workspace = workspace_for(pixels.shape, pixels.device, compiled=compiled)
    updates = iter(range(10**9))

    def timm() -> object:
        """What timm's prefetching loader and its training script do to a batch."""
        return mixup(erasing(pixels.float().sub_(mean).div_(std)), labels)

    def ours() -> object:
        return mixed_batch(
            pixels,
            labels,
            recipe,
            alpha=alpha,
            progress=0.5,
            seed=0,
            update=next(updates),
            workspace=workspace,
        )

    source, target = torch.zeros(batch, 3, side, side), torch.zeros(batch, 3, side, side)
    calls: dict[str, Callable[[], object]] = {
        "timm": timm,
        "ours": ours,
        "copy": lambda: target.copy_(source),
    }
    taken = {name: times.cpu for name, times in interleaved(calls, rounds=rounds, warmup=2).items()}
    read_and_written = pixels.nbytes + source.nbytes
    bound = median(taken["copy"]) * read_and_written / (2 * source.nbytes)
    return {**taken, "bound": bound, "compiled": workspace.fused is not None}


def in_a_child(size: tuple[int, int, int], fill: str, *, rounds: int, tuned: bool) -> dict[str, Any]:
    """`seconds` with an allocator of its own."""
    arguments = json.dumps({"size": size, "fill": fill, "rounds": rounds, "tuned": tuned})
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_transform", arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def in_two_children(size: tuple[int, int, int], fill: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same with the allocator as it is, and tuned."""
    return in_a_child(size, fill, rounds=ROUNDS, tuned=False), in_a_child(
        size, fill, rounds=ROUNDS, tuned=True
    )


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", SIZES)
def test_batch_transform_against_timm(benchmark, name, fill):
    if benchmark.disabled:
        found = benchmark.pedantic(seconds, args=(TINY, fill), kwargs={"rounds": 1, "compiled": False})
        assert len(found["ours"]) == len(found["timm"]) == 1
        assert found["bound"] > 0
        return
    default, tuned = benchmark.pedantic(in_two_children, args=(SIZES[name], fill), rounds=1)
    what, unit = f"normalise, erase ({fill}), mix, {name}", f"a batch of {SIZES[name][0]}"
    of_default, of_tuned = (
        result_of(
            {side: Times(wall=(), cpu=tuple(found[side])) for side in ("timm", "ours")},
            peer="timm",
            ours="ours",
            what=f"{what}, {allocator}",
            unit=unit,
            bound=found["bound"],
            bound_of="bytes",
            clock="cpu",
        )
        for found, allocator in ((default, "allocator as it is"), (tuned, "allocator tuned"))
    )
    benchmark.extra_info["results"] = [of_default.as_data(), of_tuned.as_data()]
    benchmark.extra_info["times_faster_than_timm_default"] = of_default.ratio
    benchmark.extra_info["times_faster_than_timm_tuned"] = of_tuned.ratio
    benchmark.extra_info["times_byte_bound"] = of_default.ours_seconds / default["bound"]
    benchmark.extra_info["compiled"] = default["compiled"]
    print(
        f"\n{what}: {of_default.ratio:.1f} times as fast as timm, {of_tuned.ratio:.1f} with its allocator tuned, "
        f"{of_default.ours_seconds * 1e3:.1f} ms, {of_default.ours_seconds / default['bound']:.2f} times the byte bound"
    )


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if asked.pop("tuned"):
        tune_allocator()
    print(json.dumps(seconds(tuple(asked["size"]), asked["fill"], rounds=asked["rounds"], compiled=None)))
