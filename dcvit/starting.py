"""The one command that trains one run, as every engine starts it. It may be started twice, and resumes by itself.

    python -m dcvit train RUN_ID --seed N --scale S [...] --out OUT

No torch.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
import os
from pathlib import Path
import shlex

from dcvit.feed import Compiling, Feed
from dcvit.options import feed_of
from dcvit.runs import Run
from dcvit.scale import Scale
from dcvit.slurm_options import gpus_per_run


@dataclass(frozen=True, kw_only=True)
class How:
    """What the command of a run says besides the run: the options of the table's command that are the run's, too."""

    scale: Scale
    out: Path
    data: str | None = None  # as the command line has it
    train_images: int | None = None
    test_images: int | None = None
    device: str | None = None
    workers: int | None = None  # None: what suits the machine that the run gets
    gpus_per_run: int = 1
    micro_batch: int | None = None
    checkpoint_minutes: float = 10.0
    allow_version_change: bool = False
    feed: Feed = field(default_factory=Feed)
    compiling: Compiling = "default"


def how_of(arguments: argparse.Namespace, out: Path) -> How:
    """What the command of a run takes over from the command of a table that writes into `out`."""
    return How(
        scale=arguments.scale,
        out=out,
        data=arguments.data,
        train_images=arguments.train_images,
        test_images=arguments.test_images,
        device=arguments.device,
        workers=arguments.workers,
        gpus_per_run=gpus_per_run(arguments.gpus_per_run, arguments.slurm or {}),
        micro_batch=arguments.micro_batch,
        checkpoint_minutes=arguments.checkpoint_minutes,
        allow_version_change=arguments.allow_version_change,
        feed=feed_of(arguments),
        compiling=arguments.compile,
    )


def arguments_of(run: Run, how: How) -> list[str]:
    """What follows `python`: module, command and options. Paths are absolute, a job may start in another folder.

    >>> from dcvit.baselines import DEIT_T
    >>> run = Run(DEIT_T, 0)
    >>> words = arguments_of(run, How(scale="paper", out=Path("/runs"), data="/imagenet"))
    >>> " ".join(words).replace(run.id, "RUN_ID")
    '-m dcvit train RUN_ID --seed 0 --scale paper --data /imagenet --out /runs'
    """
    options = {
        "--seed": run.seed,
        "--scale": how.scale,
        "--data": _absolute(_data(how)),
        "--train-images": how.train_images,
        "--test-images": how.test_images,
        "--out": how.out.absolute(),
        "--device": how.device,
        "--workers": how.workers,
        "--augmentation": how.feed.augmentation if how.feed.augmentation != "device" else None,
        "--cache": how.feed.cache and how.feed.cache.absolute(),
        "--decoder": how.feed.decoder if how.feed.decoder != "cpu" else None,
        "--compile": how.compiling if how.compiling != "default" else None,
        "--gpus-per-run": how.gpus_per_run if how.gpus_per_run > 1 else None,
        "--micro-batch": how.micro_batch,
        "--checkpoint-minutes": how.checkpoint_minutes if how.checkpoint_minutes != 10 else None,
    }
    words = ["-m", "dcvit", "train", run.id]
    for name, value in options.items():
        if value is not None:
            words += [name, str(value)]
    return [*words, "--allow-version-change"] if how.allow_version_change else words


def _data(how: How) -> str | None:
    """The images as they are named here: another machine's DCVIT_DATA may be another one."""
    if how.data is None and how.scale != "smoke":
        return os.environ.get("DCVIT_DATA") or None
    return how.data


def _absolute(data: str | None) -> str | None:
    if data is None or data.startswith("hfds/"):
        return data
    if data.startswith("wds/"):
        return f"wds/{Path(data.removeprefix('wds/')).absolute()}"
    return str(Path(data).absolute())


def shell_lines(runs: Iterable[Run], how: How) -> list[str]:
    """One line for a shell for each run, in the order given; for several GPUs it starts a process each itself."""
    return [shlex.join(["python", *arguments_of(run, how)]) for run in runs]
