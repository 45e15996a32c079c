"""What this machine has for the tables, and which command to run next."""

import os
from pathlib import Path
import shutil
import sys

from dcvit.errors import DATA_OR_ENVIRONMENT, OK, DataError
from dcvit.feed import Feed
from dcvit.host import c_compiler
from dcvit.provenance import provenance
from dcvit.sources import Source, find

GIB = 1 << 30


def examine() -> int:
    """Prints the machine, the images and the next command; returns the exit code."""
    made_with = provenance()
    print(f"python        {made_with['python']}")
    for package, version in made_with["versions"].items():
        print(f"{package:<13} {version or 'not installed'}")
    print(
        f"commit        {made_with['commit'] or 'not a git checkout'}{' with changes' * bool(made_with['dirty'])}"
    )
    if made_with["versions"]["torch"] is None or made_with["versions"]["timm"] is None:
        print("\ntorch and timm are needed: python -m pip install -e .", file=sys.stderr)
        return DATA_OR_ENVIRONMENT

    import torch

    from dcvit.devices import best_precision, describe

    cpu = torch.device("cpu")
    print(
        f"cores         {os.cpu_count()} ({describe(cpu, 'float32')['device_name']}, {best_precision(cpu)})"
    )
    print(f"memory        {_memory()}")
    print(f"disk here     {shutil.disk_usage('.').free / GIB:.0f} GiB free")
    gpus = [
        f"{torch.cuda.get_device_name(index)}, {torch.cuda.get_device_properties(index).total_memory / GIB:.0f} GiB"
        for index in range(torch.cuda.device_count())
    ]
    print(f"CUDA          {'; '.join(gpus) or 'no device'}")

    print(f"augmentation  {Feed().augmentation} (the default; --augmentation)")
    compiler = " ".join(c_compiler() or ["none: on a CPU the batch transform stays slower"])
    print(f"C compiler    {compiler}")

    source, problem = _images()
    print(f"DCVIT_DATA    {os.environ.get('DCVIT_DATA') or 'not set'}")
    if source is not None:
        print(
            f"              {source.name} in {source.root}: {source.count('train'):,} training, "
            f"{source.count('val'):,} test images, {len(source.classes)} classes"
        )
    elif problem:
        print(f"              {problem}")
    print(f"\nnext: {_next(source, gpu=bool(gpus))}")
    return OK


def _images() -> tuple[Source | None, str]:
    """The images that DCVIT_DATA names, or why there are none."""
    place = os.environ.get("DCVIT_DATA")
    if not place:
        return None, ""
    try:
        return find(place, "paper" if place.startswith("hfds/") else "smoke"), ""
    except (DataError, OSError) as error:
        return None, str(error)


def _next(source: Source | None, *, gpu: bool) -> str:
    script = "python -m reproductions.table5_backbones"
    if not gpu:
        return f"{script}    (scale smoke, on digits, minutes; larger scales want a GPU)"
    if source is None:
        return f"{script} --scale small    (fetches Imagenette, or says where to put it)"
    scale = "paper" if len(source.classes) == 1000 else "small"
    return f"{script} --scale {scale} --plan    (then the same without --plan)"


def _memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        facts = dict(line.split(":") for line in lines)
        total, free = (int(facts[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return "unknown"
    return f"{total:.0f} GiB, {free:.0f} GiB free"
