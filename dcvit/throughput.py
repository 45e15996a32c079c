"""What benchmarks have measured, on this machine or on another one: images a second. No torch.

Their results are files of JSON, which `benchmarks/` writes into `benchmarks/results/` of a checkout:

    {"machine": {"device_name": "NVIDIA H100 80GB HBM3", "cores": 16, ...},
     "date": "2026-11-24",
     "training": [{"backbone": {"type": "VisionTransformer", "width": 384, ...}, "resolution": 224,
                   "augmentation": "device", "runs_per_gpu": 1, "images_per_second": 7000.0}, ...],
     "loading": [{"augmentation": "pil", "images_per_second_per_core": 236.0}, ...],
     ...}

`backbone` is `recipe.as_data` of a recipe's backbone. A rate of training is that of whole updates, from files by
augmentation "pil" or "device", or ("none") on images that are there already: on a GPU of all its `runs_per_gpu` runs
together (1 where left out), on a CPU of one run with one thread. A rate of loading is from files to pixels. Entries
of another augmentation, and what else a file holds, are not asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
import json
from math import inf
from pathlib import Path
import subprocess
import sys
from typing import Any, NamedTuple

from dcvit.feed import Augmenting
from dcvit.recipe import Recipe, as_data

# The rates that say how fast a run trains, the best first. Loading is counted beside each, so that what holds less of
# it will do; but by PIL it holds more than the device's way has.
STANDING_IN: dict[Augmenting, tuple[str, ...]] = {
    "pil": ("pil", "none", "device"),
    "device": ("device", "none"),
}
FOLDER = Path(__file__).parent.parent / "benchmarks" / "results"  # of a checkout


class Rate(NamedTuple):
    """Images a second, and the day on which that was measured."""

    images_per_second: float
    date: str


class Key(NamedTuple):
    """What a rate of training depends on, besides the device."""

    backbone: str  # JSON
    resolution: int
    augmentation: str
    runs_per_gpu: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of one device: rates of training, and of loading for each core beside it."""

    device_name: str
    training: Mapping[Key, Rate] = field(default_factory=dict)
    loading: Mapping[str, Rate] = field(default_factory=dict)

    def rate(self, recipe: Recipe, augmentation: Augmenting, *, runs_per_gpu: int = 1) -> Rate | None:
        """How fast a recipe's network trains at its resolution; None if nobody has measured it.

        Where it was not measured by this augmentation, one that can stand in for it.
        """
        for name in STANDING_IN[augmentation]:
            found = self.training.get(_key(as_data(recipe.backbone), recipe.resolution, name, runs_per_gpu))
            if found is not None:
                return found
        return None


def measured(folder: Path | None = None) -> dict[str, Measured]:
    """What the results in a folder (that of the checkout) say, by the name of the device; of two the newer one.

    A file that can't be read is named on stderr and left out.
    """
    files = []
    for path in sorted((folder or FOLDER).glob("*.json")):
        try:
            files.append(_read(path))
        except (OSError, ValueError, TypeError, KeyError) as error:
            why = f"{type(error).__name__}: {error}"
            print(f"note: {path} is no result of a benchmark and is not used ({why})", file=sys.stderr)
    found: dict[str, Measured] = {}
    for _, one in sorted(files, key=lambda file: file[0]):
        known = found.get(one.device_name, Measured(device_name=one.device_name))
        found[one.device_name] = Measured(
            device_name=one.device_name,
            training={**known.training, **one.training},
            loading={**known.loading, **one.loading},
        )
    return found


def _read(path: Path) -> tuple[str, Measured]:
    """The date of a file, and what it says. KeyError, TypeError or ValueError if it is no such file."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    date, name = str(facts["date"]), facts["machine"]["device_name"]
    if not isinstance(name, str):
        raise TypeError(f"device_name is {name!r}, and no text")
    training = {
        _key(
            entry["backbone"],
            entry["resolution"],
            _augmentation(entry["augmentation"]),
            entry.get("runs_per_gpu", 1),
        ): Rate(_positive(entry["images_per_second"]), date)
        for entry in facts.get("training", [])
    }
    loading = {
        _augmentation(entry["augmentation"]): Rate(_positive(entry["images_per_second_per_core"]), date)
        for entry in facts.get("loading", [])
    }
    return date, Measured(device_name=name, training=training, loading=loading)


def _key(backbone: Any, resolution: int, augmentation: str, runs_per_gpu: int) -> Key:
    return Key(json.dumps(backbone, sort_keys=True), resolution, augmentation, runs_per_gpu)


def _augmentation(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"augmentation is {name!r}, and no text")
    return name


def _positive(number: Any) -> float:
    if isinstance(number, bool) or not 0 < float(number) < inf:
        raise ValueError(f"{number!r} images a second")
    return float(number)


# --- devices -------------------------------------------------------------------------------


def gpu_here() -> str | None:
    """The name of this machine's first GPU, as CUDA has it; None where there is none."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line.strip() for line in told.splitlines() if line.strip()), None)
