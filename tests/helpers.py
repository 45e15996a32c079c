"""Small image folders, small recipes and a small table, all of which train in a fraction of a second."""

from dataclasses import replace
from functools import cache
from importlib.metadata import version
from multiprocessing import parent_process
import os
from pathlib import Path
import sys
import threading
from time import sleep

import numpy as np
from PIL import Image

from dcvit import launch
from dcvit.launch import Outcome
from dcvit.ledger import LAYOUT, Record
from dcvit.recipe import (
    Augmentation,
    FixedAlpha,
    NoErasing,
    Recipe,
    ResNet,
    SwinTransformer,
    VisionTransformer,
    WarmupCosine,
    as_data,
    run_id,
)
from dcvit.tables import Cell, Table

ROOT = Path(__file__).parent.parent
OLD_TORCH = tuple(int(part) for part in version("torch").split(".")[:2]) < (2, 14)
CLASSES = ("blue", "green", "red")

VIT = VisionTransformer(width=16, heads=2, depth=2, patch_size=4)
SWIN = SwinTransformer(width=8, depths=(1, 1), heads=(1, 2), patch_size=2, window=2)
RESNET = ResNet(depths=(1, 1, 1, 1))
PLAIN = dict(alpha=FixedAlpha(alpha=0.0), cutmix_probability=0.0, erasing=NoErasing(), label_smoothing=0.0)


def tiny(**changes):
    """A recipe of 2 epochs of 12 images at 8 px, in batches of 4; the method's own fields are the defaults."""
    values = dict(
        backbone=VIT,
        resolution=8,
        classes=len(CLASSES),
        images="folder",
        epochs=2,
        batch=4,
        schedule=WarmupCosine(
            peak=0.1, warmup=1e-4, final=1e-5, warmup_epochs=1, scales="peak", every="update"
        ),
        augmentation=Augmentation(crop_scale=(0.6, 1.0), flip=0.0, randaugment=None),
    )
    return Recipe(**{**values, **changes})


def image_folder(root, *, train=4, val=2, classes=CLASSES, size=12):
    """`train` and `val` noisy PNG images a class, each class of a colour of its own."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
                pixels[..., label % 3] += 180
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def tiny_table(**recipes):
    """A table with one cell for each column and metric; the first column is the baseline."""
    return Table(
        number=99,
        title="A tiny table",
        cells=tuple(
            Cell(row="model", column=column, metric=metric, recipe=recipe, paper=paper)
            for column, recipe in recipes.items()
            for metric, paper in (("top1", 70.0), ("top5", 90.0))
        ),
        baseline=next(iter(recipes)),
        chosen_here=("Nothing of it is in the paper.",),
    )


def record_of(recipe, seed, top1, *, top5=95.0, best=None, **changes):
    """A made-up record of a run that ended at `top1`; `changes` are fields of it."""
    values = dict(
        layout=LAYOUT,
        run_id=run_id(recipe, seed),
        recipe=as_data(recipe),
        seed=seed,
        data={"name": "folder", "fingerprint": "0123456789abcdef", "classes": 3, "test_images": 8},
        environment={
            "versions": {"torch": "2.9", "timm": "1.0"},
            "commit": "abc",
            "dirty": True,
            "device": "cpu",
            "device_name": "a processor",
            "precision": "float32",
        },
        parameters=1_234_567,
        samples_seen=24,
        last={"top1": top1, "top5": top5},
        best={"top1": top1 if best is None else best, "top5": top5, "epoch": 1},
        correct="ff",
        evolution=[],
        weights={},
        started="2024-01-01T00:00:00+00:00",
        seconds=1.5,
    )
    return Record(**{**values, **changes})


TWO = tiny_table(baseline=tiny(), ours=tiny(**PLAIN))


def files_below(folder):
    """Names of all files below a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def without_times(record):
    """What of a record must not change when the run is repeated."""
    evolution = [{**entry, "seconds": None} for entry in record.evolution]
    return replace(record, started="", seconds=0.0, evolution=evolution)


def threads_of_ours():
    """Those that load or work ahead in this process."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("dcvit")]


@cache
def environment():
    """Of a child process that finds the checkout, has one thread, and knows of no images."""
    inherited = {name: value for name, value in os.environ.items() if name != "DCVIT_DATA"}
    return {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}


def python(*arguments):
    """The command line of a child process."""
    return [sys.executable, *map(str, arguments)]


class LethalFile:
    """A file that ends the process which wants to read it, as a lack of memory would."""

    label, size = 0, 100

    def __getattr__(self, name):
        if name.startswith("__"):  # pickle asks for some of these
            raise AttributeError(name)
        assert parent_process() is not None, "only a process of its own may be ended"
        os._exit(7)


def with_lethal_file(source):
    """The source with one more training image, which all but runs of fewer images will meet."""
    return replace(source, train=(*source.train, LethalFile()))


def pretend(pipe, place):
    """What a process of `dcvit.launch` does, with `_pretend` for the training."""
    launch.execute = _pretend
    launch._work(pipe, place)


def _pretend(run, place, observe, stopped):
    """Says its process, waits while there is a file RUN.wait, and ends with the number of runs at that time."""
    begun = place.out / f"{run.id}.begun"
    begun.touch()
    observe(os.getpid())
    sleep(0.05)
    while (place.out / f"{run.id}.wait").exists():
        sleep(0.01)
    running = len(list(place.out.glob("*.begun")))
    begun.unlink()
    return Outcome(record=running)
